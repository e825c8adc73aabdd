//! All descriptors of a process: numbers, sharing, flags; one file per kind of what is behind them.
//!
//! Position: after memory, since the clone needs nothing of them, and before threads. Capture works on
//! duplicates in the agent (`pidfd_getfd`), and on nothing that the application could notice. At the
//! restore the agent makes the objects and passes them to the clone; only what belongs to a process itself
//! (epoll membership, record locks, owners) is done by the clone.

use super::epoll::{self, EpollState, Member};
use super::eventfd::EventState;
use super::fifos::FifoState;
use super::files::FileState;
use super::inotify::InotifyState;
use super::listing::AskCloexec;
use super::memfd::{self, MemfdState};
use super::netlink::NetlinkState;
use super::open::{Common, Dumping, Each, Making};
use super::pipes::PipeState;
use super::shared::SharedObjects;
use super::signalfd::SignalState;
use super::sockdiag::SockDiag;
use super::tcp::TcpState;
use super::terminals::TerminalState;
use super::timerfd::TimerState;
use super::udp::UdpState;
use super::unix_sockets::UnixState;
use super::watched::{self, Names};
use super::{listing, place};
use crate::manager::{Context, DumpCx, ResourceManager, RmResult, SwitchCx};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

/// Name of the kind and of its section.
pub const NAME: &str = "descriptors";
/// Version of the section.
const VERSION: u16 = 1;

/// A descriptor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Number {
    pub(crate) number: i32,
    pub(crate) cloexec: bool,
    /// Index of its description.
    pub(crate) description: u32,
}

/// The section: numbers, what is common to descriptions, and a list per kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) pid: i32,
    pub(crate) numbers: Vec<Number>,
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
}

/// The manager of descriptors.
pub struct Descriptors {
    shared: SharedObjects,
    state: State,
    made: BTreeMap<u32, OwnedFd>,
    watched: Names,
}

impl Descriptors {
    /// A manager that shares objects with the one of memory.
    #[must_use]
    pub fn new(shared: SharedObjects) -> Self {
        Self { shared, state: State::default(), made: BTreeMap::new(), watched: Names::new() }
    }
}

/// Reads the descriptors of a parked process.
pub(crate) fn capture(
    cx: &mut DumpCx,
    shared: &SharedObjects,
    watched: &Names,
    ask: AskCloexec,
) -> RmResult<State> {
    let remote = cx.remote;
    let (numbers, opens) = listing::list(remote, ask)?;
    let mut state = State { pid: remote.pid, numbers, ..State::default() };
    let mut dumping = Dumping { cx, shared, recorded: BTreeSet::new(), watched, diag: SockDiag::default() };
    for (index, open) in opens.iter().enumerate() {
        let owner = super::owner::Owner::of(open, open.flags())?;
        state.common.push(Common { flags: open.flags(), number: open.number, owner });
        listing::describe(index as u32, open, &mut state, &mut dumping)?;
    }
    let by_number: BTreeMap<i32, u32> =
        state.numbers.iter().map(|one| (one.number, one.description)).collect();
    for (index, epoll) in &mut state.epolls {
        let set = state.common[*index as usize].number;
        epoll.resolve(remote.pid, set, &by_number, dumping.cx.remarks)?;
    }
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
    super::timerfd::recreate(&state.timers, making)?;
    super::signalfd::recreate(&state.signals, making)?;
    super::inotify::recreate(&state.inotify, making)?;
    epoll::recreate(&state.epolls, making)?;
    super::unix_restore::recreate(&state.unix, making)?;
    super::tcp_restore::recreate(&state.tcp, making)?;
    super::udp::recreate(&state.udp, making)?;
    super::netlink::recreate(&state.netlink, making)
}

impl State {
    /// Numbers of each description, lowest first.
    pub(crate) fn numbers_of(&self) -> BTreeMap<u32, Vec<i32>> {
        let mut numbers: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
        for one in &self.numbers {
            numbers.entry(one.description).or_default().push(one.number);
        }
        numbers
    }

    /// Members whose number now leads elsewhere: set, member, description.
    pub(crate) fn stale_members(&self) -> Vec<(u32, &Member, u32)> {
        let now: BTreeMap<i32, u32> = self.numbers.iter().map(|one| (one.number, one.description)).collect();
        let mut stale = Vec::new();
        for (set, epoll) in &self.epolls {
            for member in &epoll.members {
                if let Some(description) = member.description
                    && now.get(&member.number) != Some(&description)
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
        watched::search(cx.remote, &mut self.watched);
        // What is open may change at any time now: this only makes the kernel's own tables ready.
        let _ = listing::entries(cx.remote);
        Ok(())
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let remote = cx.remote;
        let ask = |numbers: &[i32]| listing::ask_cloexec(remote, numbers);
        self.state = capture(cx, &self.shared, &self.watched, &ask)?;
        Ok(())
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let state = std::mem::take(&mut self.state);
        self.shared.clear();
        cx.sections.put(NAME, VERSION, &state)
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.state = State::default();
        self.shared.clear();
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: State = cx.section(NAME, VERSION)?;
        let numbers = state.numbers_of();
        place::check(&state)?;
        let mut remarks = Vec::new();
        let mut making = Making {
            common: &state.common,
            made: BTreeMap::new(),
            replaced: BTreeMap::new(),
            numbers: &numbers,
            contents: &*cx,
            shared: &self.shared,
            stdio: cx.stdio,
            output: cx.output,
            remarks: &mut remarks,
            clone: Some(cx.remote),
            pids: (state.pid, cx.remote.pid),
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
        // Last, since time runs from here.
        for (index, timer) in &self.state.timers {
            if let Some(fd) = self.made.get(index) {
                timer.arm(fd, cx.remote.pid).on("arming timer", self.state.common[*index as usize].number)?;
            }
        }
        self.made.clear();
        self.shared.clear();
        Ok(())
    }

    fn abort_switch(&mut self, _: &mut SwitchCx) {
        self.made.clear();
        self.shared.clear();
    }
}
