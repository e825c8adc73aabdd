//! Puts descriptors where they belong in the clone, and does there what belongs to a process.

use super::descriptors::{NAME, State};
use super::epoll::{self, Member};
use super::files::FileState;
use crate::install::{Install, install};
use crate::manager::{Context, RmError, RmResult, SwitchCx};
use crate::remote::{Remote, call};
use holo_abi::sysno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// An image is a hostile input: every index leads somewhere, every number can be one.
pub(crate) fn check(state: &State) -> RmResult<()> {
    let bad = |what: String| Err(RmError::BadSection { kind: NAME, what });
    let count = state.common.len();
    for one in &state.numbers {
        if one.description as usize >= count || one.number < 0 {
            return bad(format!("number {} of description {}", one.number, one.description));
        }
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
    count!(files memfds terminals pipes fifos events timers signals inotify epolls unix tcp udp netlink);
    match described.iter().position(|times| *times != 1) {
        Some(index) => bad(format!("description {index} is there {} times", described[index])),
        None => Ok(()),
    }
}

/// Installs all descriptors, then sets what only the clone can set.
pub(crate) fn place(
    state: &State,
    made: &BTreeMap<u32, OwnedFd>,
    replaced: &BTreeMap<i32, OwnedFd>,
    cx: &SwitchCx,
) -> RmResult<()> {
    enter_stale(state, made, cx)?;
    let mut list = Vec::with_capacity(state.numbers.len());
    for one in &state.numbers {
        let fd = replaced.get(&one.number).or_else(|| made.get(&one.description));
        let fd = fd.ok_or_else(|| missing(one.description))?;
        list.push(Install { fd: fd.as_fd(), at: one.number, cloexec: one.cloexec });
    }
    install(cx, &list)?;
    let now: BTreeMap<i32, u32> = state.numbers.iter().map(|one| (one.number, one.description)).collect();
    let order = epoll::inner_first(&state.epolls)?;
    for i in &order {
        let (index, set) = &state.epolls[*i];
        let live: Vec<&Member> = set
            .members
            .iter()
            .filter(|member| {
                member.description.is_some() && now.get(&member.number) == member.description.as_ref()
            })
            .collect();
        epoll::enter(cx.remote, state.common[*index as usize].number, &live)?;
    }
    for i in &order {
        let (index, set) = &state.epolls[*i];
        epoll::consume_edges(cx.remote, state.common[*index as usize].number, set)?;
    }
    for common in &state.common {
        if let Some(owner) = &common.owner {
            owner.set(cx.remote, common.number)?;
        }
    }
    for (index, socket) in &state.unix {
        // Again, by the clone: connecting sockets are told who listens.
        if let Some(backlog) = socket.backlog {
            let number = state.common[*index as usize].number;
            let args = [number as u64, u64::from(backlog)];
            cx.remote.call(sysno::listen, &args).on("listening on descriptor", number)?;
        }
    }
    for (index, file) in &state.files {
        take_locks(file, cx.remote, state.common[*index as usize].number)?;
    }
    Ok(())
}

fn missing(description: u32) -> RmError {
    RmError::BadSection { kind: NAME, what: format!("description {description} was not made") }
}

fn take_locks(file: &FileState, remote: &Remote, number: i32) -> RmResult<()> {
    file.locks.iter().try_for_each(|lock| lock.take_in_process(remote, number))
}

/// Members whose number leads elsewhere: their sets and descriptions are placed for a moment.
fn enter_stale(state: &State, made: &BTreeMap<u32, OwnedFd>, cx: &SwitchCx) -> RmResult<()> {
    let stale = state.stale_members();
    let last =
        state.numbers.iter().map(|one| one.number).chain(stale.iter().map(|(_, member, _)| member.number));
    // Above all numbers that anything else has; the channel and the page are higher still.
    let Some(above) = last.max().map(|last| last + 1).filter(|_| !stale.is_empty()) else { return Ok(()) };
    for (set, member, description) in stale {
        let set = made.get(&set).ok_or_else(|| missing(set))?;
        let fd = made.get(&description).ok_or_else(|| missing(description))?;
        let above = if above == cx.channel_fd { above + 1 } else { above };
        install(
            cx,
            &[
                Install { fd: set.as_fd(), at: above, cloexec: true },
                Install { fd: fd.as_fd(), at: member.number, cloexec: true },
            ],
        )?;
        epoll::enter(cx.remote, above, &[member])?;
        let mut close = [call(sysno::close, &[above as u64]), call(sysno::close, &[member.number as u64])];
        cx.remote.run_all(&mut close).on("closing", "descriptors of an epoll set")?;
    }
    Ok(())
}
