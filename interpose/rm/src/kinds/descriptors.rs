//! All descriptors of an application: numbers, sharing, flags; one file per kind of what is behind them.
//!
//! Position: after memory, since the clone needs nothing of them, and before threads. Capture works on
//! duplicates in the agent (`pidfd_getfd`), and on nothing that the application could notice. At the
//! restore the agent makes the objects and passes them to the clone; only what belongs to a process itself
//! (epoll membership, record locks, owners) is done by the clone.

use super::counted::counted;
use super::epoll::{self, EpollState, Member};
use super::eventfd::EventState;
use super::fifos::FifoState;
use super::files::FileState;
use super::inotify::InotifyState;
use super::ipc::{self, Ipc};
use super::known_options::KnownOptions;
use super::listing::{AskCloexec, Listed};
use super::locks::Lock;
use super::memfd::{self, MemfdState};
use super::mqueue::{self, QueueState};
use super::netlink::NetlinkState;
use super::open::{Common, Dumping, Each, Making, Place};
use super::passed::{NOWHERE, Passed};
use super::pidfd::PidState;
use super::pipes::PipeState;
use super::ptys::{self, TerminalsState};
use super::shared::SharedObjects;
use super::signalfd::SignalState;
use super::sockdiag::SockDiag;
use super::tcp::TcpState;
use super::terminals::TerminalState;
use super::timerfd::{self, TimerState};
use super::udp::UdpState;
use super::unix_sockets::UnixState;
use super::watched::{self, Names};
use super::{listing, moments, place, sharing, tcp_under_way, unix_restore};
use crate::fds::Look;
use crate::install::{Install, install};
use crate::manager::{Context, DumpCx, ResourceManager, RmResult, SwitchCx};
use crate::remote::Remote;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

/// Name of the kind and of its section.
pub const NAME: &str = "descriptors";
/// Version of the section.
const VERSION: u16 = 9;

/// A descriptor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Number {
    /// The process, by its place in the tree.
    pub(crate) process: u32,
    pub(crate) number: i32,
    pub(crate) cloexec: bool,
    /// Index of its description.
    pub(crate) description: u32,
}

/// The section: numbers, what is common to descriptions, and a list per kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Pids of the processes on the node of the epoch.
    pub(crate) pids: Vec<i32>,
    pub(crate) numbers: Vec<Number>,
    /// Locks that processes hold, each with a descriptor of its file.
    pub(crate) locks: Vec<(Place, Lock)>,
    pub(crate) common: Vec<Common>,
    pub(crate) files: Each<FileState>,
    pub(crate) memfds: Each<MemfdState>,
    pub(crate) terminals: Each<TerminalState>,
    pub(crate) pipes: Each<PipeState>,
    pub(crate) fifos: Each<FifoState>,
    pub(crate) events: Each<EventState>,
    pub(crate) timers: Each<TimerState>,
    pub(crate) signals: Each<SignalState>,
    pub(crate) inotify: Each<InotifyState>,
    pub(crate) epolls: Each<EpollState>,
    pub(crate) unix: Each<UnixState>,
    pub(crate) tcp: Each<TcpState>,
    pub(crate) udp: Each<UdpState>,
    pub(crate) netlink: Each<NetlinkState>,
    pub(crate) pidfds: Each<PidState>,
    pub(crate) queues: Each<QueueState>,
    /// Pairs of terminals: a section of their own, which is needed before the processes.
    #[serde(skip)]
    pub(crate) pairs: TerminalsState,
}

/// The manager of descriptors.
pub struct Descriptors {
    shared: SharedObjects,
    ipc: Ipc,
    state: State,
    made: BTreeMap<u32, OwnedFd>,
    watched: Names,
    options: KnownOptions,
    /// By process, while it ran before the last stop.
    looks: BTreeMap<i32, Look>,
}

impl Descriptors {
    /// A manager that shares objects with the one of memory, and tells `ipc` of message queues.
    #[must_use]
    pub fn new(shared: SharedObjects, ipc: Ipc) -> Self {
        let (watched, options) = (Names::default(), KnownOptions::default());
        let (state, made, looks) = (State::default(), BTreeMap::new(), BTreeMap::new());
        Self { shared, ipc, state, made, watched, options, looks }
    }
}

/// Reads the descriptors of all parked processes.
pub(crate) fn capture(
    cx: &mut DumpCx,
    shared: &SharedObjects,
    watched: &Names,
    options: &mut KnownOptions,
    ask: AskCloexec,
) -> RmResult<State> {
    let remotes: Vec<&Remote> = cx.processes.iter().map(|process| &process.remote).collect();
    let Listed { numbers, mut opens, locks } = listing::list(&remotes, &sharing::holders(cx), ask)?;
    let pids = remotes.iter().map(|remote| remote.pid).collect();
    let mut state = State { pids, numbers, locks, ..State::default() };
    let (first, index_of_first) = (cx.remote, cx.index);
    let passed = Passed::new(&opens);
    let diag = SockDiag::default();
    let mut dumping = Dumping {
        cx,
        shared,
        recorded: BTreeSet::new(),
        watched,
        options,
        diag,
        passed,
        groups: None,
        offsets: super::clock::Offsets::default(),
    };
    let mut index = 0;
    while let Some(open) = opens.get(index) {
        (dumping.cx.remote, dumping.cx.index) = (remotes[open.process], open.process);
        let owner = super::owner::Owner::of(open, open.flags())?;
        let (flags, process, number) = (open.flags(), open.process as u32, open.number);
        state.common.push(Common { flags, process, number, owner });
        listing::describe(index as u32, open, &mut state, &mut dumping)?;
        opens.append(&mut dumping.passed.take());
        index += 1;
    }
    let faces: Vec<i32> = remotes.iter().map(|remote| remote.face).collect();
    timerfd::settle(&mut state.timers, &faces, |index| {
        let open = &opens[index as usize];
        (dumping.cx.remote, dumping.cx.index) = (remotes[open.process], open.process);
        timerfd::has_expired(open).then(|| TimerState::describe(open, &mut dumping)).transpose()
    })?;
    (dumping.cx.remote, dumping.cx.index) = (first, index_of_first);
    for (index, epoll) in &mut state.epolls {
        let process = state.common[*index as usize].process;
        let own = state.numbers.iter().filter(|one| one.process == process);
        let by_number: BTreeMap<i32, u32> = own.map(|one| (one.number, one.description)).collect();
        epoll.resolve(*index as usize, &by_number, &opens, dumping.cx.remarks)?;
    }
    state.pairs = ptys::capture(dumping.cx, &opens, &mut state.terminals)?;
    tcp_under_way::look(&mut state.tcp, &opens);
    moments::look(&state, dumping.cx);
    Ok(state)
}

/// Makes all descriptions in the agent. The order matters only for names: connections before listeners,
/// which their files see to.
pub(crate) fn recreate(state: &State, making: &mut Making) -> RmResult<()> {
    super::files::recreate(&state.files, making)?;
    memfd::recreate(&state.memfds, making)?;
    super::terminals::recreate(&state.terminals, making)?;
    super::pipes::recreate(&state.pipes, making)?;
    super::fifos::recreate(&state.fifos, making)?;
    super::eventfd::recreate(&state.events, making)?;
    timerfd::recreate(&state.timers, making)?;
    super::signalfd::recreate(&state.signals, making)?;
    super::inotify::recreate(&state.inotify, making)?;
    epoll::recreate(&state.epolls, making)?;
    let unfinished = unix_restore::recreate(&state.unix, making)?;
    super::tcp_restore::recreate(&state.tcp, making)?;
    super::udp::recreate(&state.udp, making)?;
    super::netlink::recreate(&state.netlink, making)?;
    super::pidfd::recreate(&state.pidfds, making)?;
    mqueue::recreate(&state.queues, making)?;
    // What is in queues of sockets may be any of them.
    unix_restore::finish(unfinished, &state.unix, making)
}

impl State {
    /// Where each description is, lowest first.
    pub(crate) fn numbers_of(&self) -> BTreeMap<u32, Vec<Place>> {
        let mut numbers: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
        for one in &self.numbers {
            numbers.entry(one.description).or_default().push((one.process, one.number));
        }
        numbers
    }

    /// What a process has at its numbers.
    pub(crate) fn now(&self, process: u32) -> BTreeMap<i32, u32> {
        let own = self.numbers.iter().filter(|one| one.process == process);
        own.map(|one| (one.number, one.description)).collect()
    }

    /// The process that a description is of, first of all.
    pub(crate) fn process_of(&self, description: u32) -> u32 {
        self.common[description as usize].process
    }

    /// It is only on its way through a socket.
    pub(crate) fn is_nowhere(&self, description: u32) -> bool {
        self.common[description as usize].number == NOWHERE
    }

    /// Members of sets of a process whose number now leads elsewhere, or whose set has none: set, member, description.
    pub(crate) fn stale_members(&self, process: u32) -> Vec<(u32, &Member, u32)> {
        let now = self.now(process);
        let mut stale = Vec::new();
        for (set, epoll) in self.epolls.iter().filter(|(set, _)| self.process_of(*set) == process) {
            for member in &epoll.members {
                if let Some(description) = member.description
                    && (self.is_nowhere(*set) || now.get(&member.number) != Some(&description))
                {
                    stale.push((*set, member, description));
                }
            }
        }
        stale
    }
}

impl ResourceManager for Descriptors {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let before = std::mem::take(&mut self.looks);
        for process in cx.processes {
            let remote = &process.remote;
            // One that ends meanwhile is no obstacle.
            let Ok(look) = Look::at(remote, before.get(&remote.pid)) else { continue };
            watched::search(remote, &look.watching, &mut self.watched);
            self.looks.insert(remote.pid, look);
        }
        Ok(())
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.options.begin(counted(cx, |header| &header.options_set));
        self.state = capture(cx, &self.shared, &self.watched, &mut self.options, &listing::ask_cloexec)?;
        if !self.state.queues.is_empty() {
            self.ipc.is_used();
        }
        Ok(())
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let state = std::mem::take(&mut self.state);
        self.shared.clear();
        cx.put(ptys::NAME, ptys::VERSION, &state.pairs)?;
        cx.put(NAME, VERSION, &state)
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.state = State::default();
        self.shared.clear();
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: State = cx.section(NAME, VERSION)?;
        let numbers = state.numbers_of();
        place::check(&state, cx.tree.len())?;
        if !state.queues.is_empty() {
            ipc::namespace(cx)?;
        }
        let now = cx.tree.iter().map(|remote| remote.pid);
        let pids: Vec<(i32, i32)> = state.pids.iter().copied().zip(now).collect();
        let mut remarks = Vec::new();
        let mut making = Making {
            common: &state.common,
            made: BTreeMap::new(),
            replaced: BTreeMap::new(),
            reach: BTreeMap::new(),
            numbers: &numbers,
            contents: &*cx,
            shared: &self.shared,
            terminals: cx.terminals,
            stdio: cx.stdio,
            output: cx.output,
            remarks: &mut remarks,
            clone: Some(cx.remote),
            way: Some(cx.way()),
            tree: cx.tree,
            pids: &pids,
        };
        recreate(&state, &mut making)?;
        let (made, replaced) = (making.made, making.replaced);
        cx.remarks.append(&mut remarks);
        place::place(&state, &made, &replaced, cx)?;
        (self.state, self.made) = (state, made);
        Ok(())
    }

    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        for (index, memory) in &self.state.memfds {
            if let Some(fd) = self.made.get(index)
                && let Err(cause) = memfd::seal(memory, fd)
            {
                let number = self.state.common[*index as usize].number;
                cx.remarks.push(format!("descriptor {number}: not sealed as it was: {cause}"));
            }
        }
        let now = cx.tree.iter().map(|remote| remote.pid);
        let pids: Vec<(i32, i32)> = self.state.pids.iter().copied().zip(now).collect();
        for (index, file) in &self.state.files {
            let flags = self.state.common[*index as usize].flags;
            let Some(fd) = super::files::reopen_of_thread(file, flags, &pids)? else { continue };
            for one in self.state.numbers.iter().filter(|one| one.description == *index) {
                let list = [Install { fd: fd.as_fd(), at: one.number, cloexec: one.cloexec }];
                install(&cx.way(), &cx.tree[one.process as usize], &list)?;
            }
        }
        // Nobody has a write lease on a file that somebody else has open to write.
        self.shared.clear();
        place::lock(&self.state, cx)?;
        mqueue::notify(&self.state.queues, cx)?;
        // Last, since time runs from here.
        for (index, timer) in &self.state.timers {
            if let Some(fd) = self.made.get(index) {
                timer.arm(fd, cx.remote.pid).on("arming timer", self.state.common[*index as usize].number)?;
            }
        }
        self.made.clear();
        Ok(())
    }

    fn abort_switch(&mut self, _: &mut SwitchCx) {
        self.made.clear();
        self.shared.clear();
    }
}
