//! Makes the process tree of a clone: every process with its own pid, parent, process group and session.
//!
//! ```text
//! init ── seed ─┬ fork(set_tid) ── process ── fork(set_tid) ── ...      a child by its parent
//!               └ clone(PARENT) ── process                              one whose parent is gone: init's child
//! ```
//!
//! All processes are forked while they are empty, and filled afterwards. A session is inherited, so that a child whose
//! session its parent has left is forked before the parent's `setsid`. One that was adopted, by init or by a subreaper, is
//! made as it once was: by a child of its session's leader that ends at once. Sessions and groups whose leader is gone
//! get one for a moment.

use crate::corpses::{bury, corpse};
use crate::install::{Channel, Install, install};
use crate::kinds::process::ProcessState;
use crate::kinds::ptys::Terminals;
use crate::kinds::tree::{Ended, TreeState};
use crate::manager::{Context, RmError, RmResult};
use crate::page::Page;
use crate::remote::{Remote, call};
use crate::tree::{child_of, state_and_parent};
use holo_abi::control::{CALL_CLONE, CALL_JUMP, CONTROL_BYTES, slot};
use holo_abi::sysno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_PARENT: u64 = 0x8000;
const SIGCHLD: u64 = 17;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
pub(crate) const WALL: u64 = 0x4000_0000;
const MAP_SHARED_FIXED_NOREPLACE: u64 = 0x01 | 0x10_0000;
const PATIENCE: Duration = Duration::from_secs(10);
/// Numbers above the channel's that are used for a moment.
const PAGE_PLACE: i32 = 16;
/// Where processes have their controlling terminal until all others are given theirs.
const TERMINAL_PLACE: i32 = 17;

/// What the tree is made from.
pub(crate) struct Ground<'a> {
    /// Pid of the clone's init on this node.
    pub(crate) init: i32,
    /// A process that is not the application's, child of init, on page `pages[tree.processes[0].page]`.
    pub(crate) seed: &'a Remote,
    /// A pid that nobody uses.
    pub(crate) spare: i32,
    /// The tree.
    pub(crate) tree: &'a TreeState,
    /// State of each process.
    pub(crate) states: &'a [ProcessState],
    /// Control pages.
    pub(crate) pages: &'a [Arc<Page>],
    /// Terminals that sessions have.
    pub(crate) terminals: &'a Terminals,
    /// The way to the processes, which all inherit it.
    pub(crate) channel: Channel<'a>,
}

/// Two pids that an application uses in no way: for the seed and for what is made for a moment.
pub(crate) fn spare_pids(states: &[ProcessState], tree: &TreeState, tids: &BTreeSet<i32>) -> [i32; 2] {
    let mut used: BTreeSet<i32> =
        states.iter().flat_map(|state| [state.pid, state.pgid, state.sid]).collect();
    used.extend(tree.ended.iter().flat_map(|ended| [ended.pid, ended.pgid, ended.sid]));
    used.extend(tids);
    let mut free = (2..).filter(|pid| !used.contains(pid));
    [free.next().unwrap_or(2), free.next().unwrap_or(3)]
}

/// Forks a child of `parent` (or, with `orphan`, of init) that is `inner` to itself and serves calls.
fn fork(ground: &Ground, parent: &Remote, inner: i32, orphan: bool) -> RmResult<Remote> {
    if orphan { clone_of(parent, Some(inner), ground.init, CLONE_PARENT, 0) } else { fork_of(parent, inner) }
}

/// Forks a child of `parent` that is `inner` to itself and serves calls.
pub(crate) fn fork_of(parent: &Remote, inner: i32) -> RmResult<Remote> {
    clone_of(parent, Some(inner), parent.pid, 0, SIGCHLD)
}

/// Makes a child of `parent` for a moment, which shares its memory, with any pid that is free.
pub(crate) fn any_child(parent: &Remote) -> RmResult<Remote> {
    clone_of(parent, None, parent.pid, CLONE_VM, 0)
}

/// Makes one that shares its memory and descriptors, with this pid, which must be free.
pub(crate) fn child_with(parent: &Remote, inner: i32) -> RmResult<Remote> {
    clone_of(parent, Some(inner), parent.pid, CLONE_VM | CLONE_FILES, 0)
}

fn clone_of(parent: &Remote, wanted: Option<i32>, of: i32, flags: u64, signal: u64) -> RmResult<Remote> {
    let page = &parent.page;
    let index = page.reserve().ok_or_else(|| RmError::Unsupported("no free slot for a process".into()))?;
    // SAFETY: reserved by us.
    unsafe {
        (*page.slot(index)).leave = 1;
        (*page.slot(index)).generation = 0;
    }
    let mut arguments = [0u64; 11];
    arguments[0] = flags;
    arguments[4] = signal;
    if let Some(pid) = wanted {
        arguments[8] = page.put(256, &pid.to_le_bytes());
        arguments[9] = 1;
    }
    let bytes: Vec<u8> = arguments.iter().flat_map(|word| word.to_le_bytes()).collect();
    let at = page.put(0, &bytes);
    let what = || wanted.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
    let made = parent.call(CALL_CLONE, &[at, bytes.len() as u64, page.slot_address(index)]);
    let inner = match made {
        Ok(pid) => pid as i32,
        Err(cause) => {
            page.state(index).store(slot::FREE, Ordering::SeqCst);
            return Err(cause).on("making", what());
        }
    };
    page.wait_state(index, PATIENCE, |now| now == slot::DONE).on("starting", what())?;
    let pid = child_of(of, inner).ok_or_else(|| RmError::Unsupported(format!("{} is gone", what())))?;
    Remote::new(Arc::clone(page), pid, index).on("opening", what())
}

/// Ends a process that was made for a moment; its parent, if it is one of ours, reaps it and sees no signal.
pub(crate) fn end(helper: &Remote, parent: Option<(&Remote, i32)>) -> RmResult<()> {
    helper.page.start(helper.leader, &[call(sysno::exit_group, &[0])], false);
    match parent {
        Some((parent, inner)) => {
            parent.call(sysno::wait4, &[inner as u64, 0, WALL, 0]).on("reaping", inner)?;
            forget_child_signal(parent)?;
        }
        None => wait_for_end(helper.pid)?,
    }
    helper.page.state(helper.leader).store(slot::FREE, Ordering::SeqCst);
    Ok(())
}

pub(crate) fn wait_for_end(pid: i32) -> RmResult<()> {
    let until = Instant::now() + PATIENCE;
    while state_and_parent(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X')) {
        if Instant::now() > until {
            return Err(RmError::Unsupported(format!("process {pid} does not end")));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Takes the signal of a child's end away: the application had it before.
pub(crate) fn forget_child_signal(parent: &Remote) -> RmResult<()> {
    let set = parent.page.put(0, &(1u64 << (SIGCHLD - 1)).to_le_bytes());
    let at_once = parent.page.put(8, &[0; 16]);
    // Nothing may be there: an error is an answer, too.
    parent.run(&mut [call(sysno::rt_sigtimedwait, &[set, 0, at_once, 8])], false).on("settling", "a parent")
}

/// The tree in the making.
struct Growing<'a> {
    ground: &'a Ground<'a>,
    made: Vec<Option<Remote>>,
    /// Children by their parent's pid.
    kids: BTreeMap<i32, Vec<usize>>,
    /// Places of processes by their pids.
    alive: BTreeMap<i32, usize>,
    /// Leaders, for a moment, of sessions that have none, and whose children they are: init's, or those of a process.
    leaders: BTreeMap<i32, (Remote, Option<usize>)>,
    /// Children that are to be found ended, with the places of their parents.
    corpses: BTreeMap<i32, (Remote, usize, Ended)>,
    /// Those that are to be adopted, with the places of their parents; none: init.
    orphans: Vec<(usize, Option<usize>)>,
}

impl Growing<'_> {
    fn state(&self, index: usize) -> &ProcessState {
        &self.ground.states[index]
    }

    /// Whom a process shares with, and what.
    fn sharing(&self, index: usize) -> Option<(usize, u64)> {
        let one = self.ground.tree.shared.iter().find(|one| one.process as usize == index)?;
        let files = if one.files { CLONE_FILES } else { 0 };
        let directory = if one.directory { CLONE_FS } else { 0 };
        Some((one.with as usize, files | directory))
    }

    /// Forks a process of the application, child of `parent`, or of init if that is none of the application's.
    fn birth(&self, index: usize, parent: Option<&Remote>) -> RmResult<Remote> {
        let (pid, ground) = (self.state(index).pid, self.ground);
        let signal = ground.tree.processes[index].exit_signal as u64;
        let (with, flags) = match self.sharing(index) {
            Some((with, flags)) => (Some(self.made(with)?), flags),
            None => (None, 0),
        };
        let Some(parent) = parent else {
            return clone_of(with.unwrap_or(ground.seed), Some(pid), ground.init, flags | CLONE_PARENT, 0);
        };
        match with {
            Some(sibling) if sibling.pid != parent.pid => {
                clone_of(sibling, Some(pid), parent.pid, flags | CLONE_PARENT, 0)
            }
            _ => clone_of(parent, Some(pid), parent.pid, flags, signal),
        }
    }

    fn made(&self, index: usize) -> RmResult<&Remote> {
        self.made[index].as_ref().ok_or_else(|| RmError::Unsupported("a process was not made".into()))
    }

    /// One whose parent did not make it, or not in this session. False: the leader of its session, or who shares with it, is to
    /// be made before.
    fn adopt(&mut self, index: usize, parent: Option<usize>) -> RmResult<bool> {
        let (pid, sid) = (self.state(index).pid, self.state(index).sid);
        let partner = self.sharing(index).map(|(with, _)| with);
        if partner.is_some_and(|with| self.made[with].is_none()) {
            return Ok(false);
        }
        let (remote, inherited) = if let Some(with) = partner {
            let of = parent.map(|parent| self.made(parent)).transpose()?;
            (self.birth(index, of)?, self.state(with).sid)
        } else if sid == pid || sid == 0 {
            (self.birth(index, None)?, 0)
        } else if let Some(leader) = self.alive.get(&sid) {
            let Some(leader) = self.made[*leader].as_ref() else { return Ok(false) };
            (self.orphan(pid, leader, parent)?, sid)
        } else if let Some(ended) = self.ground.tree.ended.iter().find(|ended| ended.pid == sid) {
            if !self.make_corpse(ended)? {
                return Ok(false);
            }
            (self.orphan(pid, &self.corpses[&sid].0, parent)?, sid)
        } else {
            (self.of_a_moments_session(pid, sid, parent)?, sid)
        };
        self.made[index] = Some(remote);
        self.grow(index, inherited)?;
        Ok(true)
    }

    /// Forks a process in the session of `leader` and lets it be adopted.
    fn orphan(&self, pid: i32, leader: &Remote, parent: Option<usize>) -> RmResult<Remote> {
        let ground = self.ground;
        let parent = parent.map(|parent| self.made(parent)).transpose()?;
        let adopts = |now: u64| match parent {
            Some(parent) => parent.call(sysno::prctl, &[PR_SET_CHILD_SUBREAPER, now]).map(|_| ()),
            None => Ok(()),
        };
        adopts(1).on("making", "a subreaper")?;
        let middle = fork(ground, leader, ground.spare, false)?;
        let made = fork(ground, &middle, pid, false);
        end(&middle, Some((leader, ground.spare)))?;
        adopts(0).on("making", "a subreaper")?;
        let made = made?;
        let wanted = parent.map_or(ground.init, |parent| parent.pid);
        if state_and_parent(made.pid).is_some_and(|(_, parent)| parent == wanted) {
            return Ok(made);
        }
        Err(RmError::Unsupported(format!("process {pid} cannot be made a child of who has adopted it")))
    }

    /// Forks a process in a session whose leader is gone.
    fn of_a_moments_session(&mut self, pid: i32, sid: i32, parent: Option<usize>) -> RmResult<Remote> {
        let ground = self.ground;
        if !self.leaders.contains_key(&sid) {
            let leader = match parent {
                Some(parent) => fork(ground, self.made(parent)?, sid, false)?,
                None => fork(ground, ground.seed, sid, true)?,
            };
            leader.call(sysno::setsid, &[]).on("making", format!("session {sid}"))?;
            self.leaders.insert(sid, (leader, parent));
        }
        let (leader, of) = &self.leaders[&sid];
        if *of != parent {
            let why = format!("process {pid} is in session {sid}, of which others have another parent");
            return Err(RmError::Unsupported(why));
        }
        let of = parent.map(|parent| self.made(parent)).transpose()?.map_or(ground.init, |parent| parent.pid);
        clone_of(leader, Some(pid), of, CLONE_PARENT, 0)
    }

    /// Makes the children of a process that was forked in the session `inherited`.
    fn grow(&mut self, index: usize, inherited: i32) -> RmResult<()> {
        let (pid, sid) = (self.state(index).pid, self.state(index).sid);
        let kids = self.kids.remove(&pid).unwrap_or_default();
        let mut born = Vec::new();
        let leads = sid == pid;
        for early in [true, false] {
            if !early && leads {
                self.made(index)?.call(sysno::setsid, &[]).on("making", format!("session {sid}"))?;
                self.take_terminal(index)?;
            }
            for kid in &kids {
                let (kid_pid, kid_sid) = (self.state(*kid).pid, self.state(*kid).sid);
                let own = kid_sid == kid_pid;
                let of_before = leads && self.born_in(*kid).is_some_and(|born_in| born_in != sid);
                if of_before != early {
                    continue;
                }
                let now = if early { inherited } else { sid };
                if !own && kid_sid != now {
                    self.orphans.push((*kid, Some(index)));
                    continue;
                }
                self.made[*kid] = Some(self.birth(*kid, Some(self.made(index)?))?);
                born.push((*kid, now));
            }
        }
        born.into_iter().try_for_each(|(kid, now)| self.grow(kid, now))
    }

    /// The session that a process was born in, where it matters: that of a leader shows in children that it had before it led.
    fn born_in(&self, index: usize) -> Option<i32> {
        let (pid, sid) = (self.state(index).pid, self.state(index).sid);
        if sid != pid {
            return Some(sid);
        }
        let mut kids = self.kids.get(&pid).into_iter().flatten();
        kids.find_map(|kid| self.born_in(*kid).filter(|born_in| *born_in != sid))
    }

    /// The leader of a session takes its controlling terminal before it has children, which inherit it.
    fn take_terminal(&self, index: usize) -> RmResult<()> {
        let Some(slave) = self.ground.terminals.of_process(index) else { return Ok(()) };
        let (remote, at) = (self.made(index)?, self.ground.channel.theirs + TERMINAL_PLACE);
        install(&self.ground.channel, remote, &[Install { fd: slave.as_fd(), at, cloexec: true }])?;
        let take = [at as u64, libc::TIOCSCTTY, 0];
        remote.call(sysno::ioctl, &take).on("taking the terminal of", self.state(index).pid).map(|_| ())
    }

    /// Takes the terminal from those that had given theirs up, and gives it to the group in the foreground.
    fn give_terminals(&self) -> RmResult<()> {
        let (states, terminals) = (self.ground.states, self.ground.terminals);
        let at = (self.ground.channel.theirs + TERMINAL_PLACE) as u64;
        for (index, state) in states.iter().enumerate() {
            let leader = states.iter().position(|leader| leader.pid == state.sid);
            let Some(leader) = leader.filter(|leader| terminals.of_process(*leader).is_some()) else {
                continue;
            };
            let remote = self.made(index)?;
            if terminals.of_process(index).is_none() {
                remote
                    .call(sysno::ioctl, &[at, libc::TIOCNOTTY])
                    .on("detaching from its terminal", state.pid)?;
            }
            if leader == index
                && let Some(group) = terminals.foreground(index)
            {
                let group_at = remote.page.put(0, &group.to_le_bytes());
                let mut give = [call(sysno::ioctl, &[at, libc::TIOCSPGRP, group_at])];
                // A group of which nobody is left cannot be made.
                remote.run(&mut give, false).on("setting the foreground of", state.pid)?;
            }
        }
        Ok(())
    }

    /// Puts every process into its group.
    fn group(&self) -> RmResult<()> {
        for leaders in [true, false] {
            for (index, state) in self.ground.states.iter().enumerate() {
                let leads = state.pgid == state.pid;
                if leads != leaders || state.pgid == 0 || leads && state.sid == state.pid {
                    continue;
                }
                self.join(self.made(index)?, state.pgid, state.pid)?;
            }
        }
        // Those that are to be found ended, by group for example. One that cannot be made stays where it was born.
        for (corpse, _, ended) in self.corpses.values() {
            if ![0, ended.pid].contains(&ended.pgid) && ended.sid != ended.pid {
                let _ = self.join(corpse, ended.pgid, ended.pid);
            }
        }
        Ok(())
    }

    fn join(&self, remote: &Remote, pgid: i32, pid: i32) -> RmResult<()> {
        let wanted = [0, pgid as u64];
        if remote.call(sysno::setpgid, &wanted).is_ok() {
            return Ok(());
        }
        let what = || format!("process {pid} into group {pgid}");
        let leader = fork(self.ground, remote, pgid, false)?;
        let grouped = leader.call(sysno::setpgid, &[0, 0]).and_then(|_| remote.call(sysno::setpgid, &wanted));
        end(&leader, Some((remote, pgid)))?;
        grouped.on("putting", what()).map(|_| ())
    }

    /// Makes a child that is to be found ended, unless it is there. False: its parent is to be made before.
    fn make_corpse(&mut self, ended: &Ended) -> RmResult<bool> {
        if self.corpses.contains_key(&ended.pid) {
            return Ok(true);
        }
        let bad = || RmError::Unsupported(format!("zombie {} has no parent", ended.pid));
        let parent = *self.alive.get(&ended.ppid).ok_or_else(bad)?;
        let Some(remote) = self.made[parent].as_ref() else { return Ok(false) };
        let corpse = corpse(remote, ended)?;
        self.corpses.insert(ended.pid, (corpse, parent, *ended));
        Ok(true)
    }

    /// Ends those that are to be found ended, and those that were made for a moment.
    fn bury(&mut self) -> RmResult<()> {
        for (corpse, parent, ended) in std::mem::take(&mut self.corpses).into_values() {
            bury(&corpse, self.made(parent)?, &ended)?;
        }
        for (sid, (leader, parent)) in std::mem::take(&mut self.leaders) {
            let parent = parent.map(|parent| self.made(parent)).transpose()?;
            end(&leader, parent.map(|parent| (parent, sid)))?;
        }
        Ok(())
    }
}

/// Makes all processes; each serves calls on its own page, and has nothing else yet.
pub(crate) fn grow(ground: &Ground) -> RmResult<Vec<Remote>> {
    let alive: BTreeMap<i32, usize> =
        ground.states.iter().enumerate().map(|(index, state)| (state.pid, index)).collect();
    let mut growing = Growing {
        ground,
        made: ground.states.iter().map(|_| None).collect(),
        kids: BTreeMap::new(),
        alive,
        leaders: BTreeMap::new(),
        corpses: BTreeMap::new(),
        orphans: Vec::new(),
    };
    for (index, state) in ground.states.iter().enumerate() {
        // The first process's parent is shown to it, and may by chance have the number of another.
        if index > 0 && growing.alive.contains_key(&state.ppid) && state.ppid != state.pid {
            growing.kids.entry(state.ppid).or_default().push(index);
        } else {
            growing.orphans.push((index, None));
        }
    }
    while !growing.orphans.is_empty() {
        let orphans = std::mem::take(&mut growing.orphans);
        let waiting = orphans.len();
        let mut later = Vec::new();
        for (orphan, parent) in orphans {
            if !growing.adopt(orphan, parent)? {
                later.push((orphan, parent));
            }
        }
        if later.len() == waiting {
            let pid = ground.states[later[0].0].pid;
            return Err(RmError::Unsupported(format!("the session of process {pid} cannot be made again")));
        }
        growing.orphans.append(&mut later);
    }
    for ended in &ground.tree.ended {
        growing.make_corpse(ended)?;
    }
    growing.group()?;
    growing.give_terminals()?;
    growing.bury()?;
    let made: Option<Vec<Remote>> = growing.made.into_iter().collect();
    let made = made.ok_or_else(|| RmError::Unsupported("the tree has processes without a root".into()))?;
    let first = ground.tree.processes[0].page;
    let mut out = Vec::with_capacity(made.len());
    for (remote, branch) in made.into_iter().zip(&ground.tree.processes) {
        out.push(if branch.page == first { remote } else { turn(ground, remote, branch.page as usize)? });
    }
    end(ground.seed, None)?;
    Ok(out)
}

/// Lets a process serve on its own page.
fn turn(ground: &Ground, remote: Remote, page: usize) -> RmResult<Remote> {
    let new = &ground.pages[page];
    let no_slot = || RmError::Unsupported("no free slot for a process".into());
    let index = new.reserve().ok_or_else(no_slot)?;
    let (header, old) = (new.header(), remote.page.header());
    // SAFETY: nobody reads these words meanwhile; the slot was reserved by us.
    let code = unsafe {
        (*header).serve_start = (*old).serve_start;
        (*header).serve_end = (*old).serve_end;
        (*new.slot(index)).leave = 1;
        (*new.slot(index)).generation = 0;
        (*old).serve_start
    };
    new.state(index).store(slot::DONE, Ordering::SeqCst);
    let at = ground.channel.theirs + PAGE_PLACE;
    install(&ground.channel, &remote, &[Install { fd: new.fd().as_fd(), at, cloexec: true }])?;
    let (address, bytes) = (new.address(), CONTROL_BYTES as u64);
    let mut calls = [
        call(sysno::mmap, &[address, bytes, 3, MAP_SHARED_FIXED_NOREPLACE, at as u64, 0]),
        call(sysno::close, &[at as u64]),
    ];
    remote.run_all(&mut calls).on("mapping", "a control page")?;
    remote.call(CALL_JUMP, &[code, new.slot_address(index), address]).on("moving", "the server")?;
    remote.page.state(remote.leader).store(slot::FREE, Ordering::SeqCst);
    Remote::new(Arc::clone(new), remote.pid, index).on("opening", "a process")
}
