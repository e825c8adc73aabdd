//! Puts descriptors where they belong in the clone, and does there what belongs to a process.

use super::descriptors::{NAME, State};
use super::epoll::{self, Member};
use super::open::Place;
use super::passed::NOWHERE;
use crate::install::{Install, install};
use crate::manager::{Context, RmError, RmResult, SwitchCx};
use crate::remote::call;
use holo_abi::sysno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// An image is a hostile input: every index leads somewhere, every number can be one.
pub(crate) fn check(state: &State, processes: usize) -> RmResult<()> {
    let bad = |what: String| Err(RmError::BadSection { kind: NAME, what });
    let count = state.common.len();
    for one in &state.numbers {
        if one.description as usize >= count || one.number < 0 || one.process as usize >= processes {
            return bad(format!("number {} of description {}", one.number, one.description));
        }
    }
    if let Some(common) = state.common.iter().find(|common| common.process as usize >= processes) {
        return bad(format!("descriptor {} of process {} of {processes}", common.number, common.process));
    }
    if let Some(((process, _), _)) =
        state.locks.iter().find(|((process, _), _)| *process as usize >= processes)
    {
        return bad(format!("a lock of process {process} of {processes}"));
    }
    let mut queued =
        state.unix.iter().flat_map(|(_, socket)| &socket.queued).flat_map(|message| &message.passed);
    if let Some(index) = queued.find(|index| **index as usize >= count) {
        return bad(format!("description {index} of {count} on its way through a socket"));
    }
    let mut described = vec![0u32; count];
    macro_rules! count {
        ($($list:ident)*) => {$(
            for (index, _) in &state.$list {
                match described.get_mut(*index as usize) {
                    Some(times) => *times += 1,
                    None => return bad(format!("description {index} of {count}")),
                }
            }
        )*};
    }
    count!(files memfds terminals pipes fifos events timers signals inotify epolls unix tcp udp netlink pidfds queues);
    match described.iter().position(|times| *times != 1) {
        Some(index) => bad(format!("description {index} is there {} times", described[index])),
        None => Ok(()),
    }
}

/// Installs all descriptors, then sets what only the clone can set.
pub(crate) fn place(
    state: &State,
    made: &BTreeMap<u32, OwnedFd>,
    replaced: &BTreeMap<Place, OwnedFd>,
    cx: &SwitchCx,
) -> RmResult<()> {
    for (process, remote) in cx.tree.iter().enumerate() {
        let process = process as u32;
        enter_stale(state, made, cx, process)?;
        let mut list = Vec::with_capacity(state.numbers.len());
        for one in state.numbers.iter().filter(|one| one.process == process) {
            let fd = replaced.get(&(process, one.number)).or_else(|| made.get(&one.description));
            let fd = fd.ok_or_else(|| missing(one.description))?;
            list.push(Install { fd: fd.as_fd(), at: one.number, cloexec: one.cloexec });
        }
        install(&cx.way(), remote, &list)?;
    }
    let holder = |index: u32| &cx.tree[state.process_of(index) as usize];
    let now: Vec<BTreeMap<i32, u32>> = (0..cx.tree.len()).map(|process| state.now(process as u32)).collect();
    let order = epoll::inner_first(&state.epolls)?;
    for i in &order {
        let (index, set) = &state.epolls[*i];
        if state.is_nowhere(*index) {
            continue;
        }
        let now = &now[state.process_of(*index) as usize];
        let live: Vec<&Member> = set
            .members
            .iter()
            .filter(|member| {
                member.description.is_some() && now.get(&member.number) == member.description.as_ref()
            })
            .collect();
        epoll::enter(holder(*index), state.common[*index as usize].number, &live)?;
    }
    for i in &order {
        let (index, set) = &state.epolls[*i];
        if state.is_nowhere(*index) {
            epoll::consume_edges_of(made.get(index).ok_or_else(|| missing(*index))?, set);
            continue;
        }
        epoll::consume_edges(holder(*index), state.common[*index as usize].number, set)?;
    }
    for common in &state.common {
        if let Some(owner) = common.owner.as_ref().filter(|_| common.number != NOWHERE) {
            owner.set(&cx.tree[common.process as usize], common.number)?;
        }
    }
    Ok(())
}

/// Takes the locks of processes, and leases. When memory is there: to map a file it is opened and closed, which ends a process's locks
/// of that file.
pub(crate) fn lock(state: &State, cx: &SwitchCx) -> RmResult<()> {
    let files = state.files.iter().map(|(index, file)| (index, &file.locks));
    for (index, locks) in files.chain(state.memfds.iter().map(|(index, memory)| (index, &memory.locks))) {
        let common = &state.common[*index as usize];
        let holder = &cx.tree[common.process as usize];
        locks.iter().try_for_each(|lock| lock.take_lease(holder, common.number))?;
    }
    for ((process, number), lock) in &state.locks {
        lock.take_in_process(&cx.tree[*process as usize], *number)?;
    }
    Ok(())
}

fn missing(description: u32) -> RmError {
    RmError::BadSection { kind: NAME, what: format!("description {description} was not made") }
}

/// Members whose number leads elsewhere: their sets and descriptions are placed for a moment.
fn enter_stale(state: &State, made: &BTreeMap<u32, OwnedFd>, cx: &SwitchCx, process: u32) -> RmResult<()> {
    let remote = &cx.tree[process as usize];
    let stale = state.stale_members(process);
    let last =
        state.numbers.iter().map(|one| one.number).chain(stale.iter().map(|(_, member, _)| member.number));
    // Above all numbers that anything else has; the channel and the page are higher still.
    let Some(above) = last.max().map(|last| last + 1).filter(|_| !stale.is_empty()) else { return Ok(()) };
    for (set, member, description) in stale {
        let set = made.get(&set).ok_or_else(|| missing(set))?;
        let fd = made.get(&description).ok_or_else(|| missing(description))?;
        let above = if above == cx.channel_fd { above + 1 } else { above };
        install(
            &cx.way(),
            remote,
            &[
                Install { fd: set.as_fd(), at: above, cloexec: true },
                Install { fd: fd.as_fd(), at: member.number, cloexec: true },
            ],
        )?;
        epoll::enter(remote, above, &[member])?;
        let mut close = [call(sysno::close, &[above as u64]), call(sysno::close, &[member.number as u64])];
        remote.run_all(&mut close).on("closing", "descriptors of an epoll set")?;
    }
    Ok(())
}
