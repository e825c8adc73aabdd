//! epoll sets: members are entered again by the clone itself, under the numbers that they had.
//!
//! A member is a pair of a description and the number under which it was added. The number may since be
//! closed, or lead to something else, while a duplicate keeps the description alive: such members are
//! entered before the final descriptors are placed, with the description at the old number for a moment.

use super::kernel::{bytes_of, compare, kcmp, owned};
use super::open::{Dumping, Each, Making, Open};
use crate::manager::{Context, RmError, RmResult};
use crate::remote::{Remote, call};
use holo_abi::control::Call;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

/// A member of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Number under which it was added.
    pub(crate) number: i32,
    events: u32,
    data: u64,
    /// Which one of the members with this number, in the kernel's order.
    order: u32,
    /// Its description; filled in when all are known.
    pub(crate) description: Option<u32>,
}

/// An epoll set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpollState {
    pub(crate) members: Vec<Member>,
    /// Nothing was ready: edges that members had were consumed.
    quiet: bool,
}

impl EpollState {
    fn has_old_edges(&self) -> bool {
        self.quiet && self.members.iter().any(|member| member.events & libc::EPOLLET as u32 != 0)
    }

    pub(crate) fn describe(open: &Open, _: &mut Dumping) -> RmResult<Self> {
        let mut members: Vec<Member> = Vec::new();
        let mut seen: BTreeMap<i32, u32> = BTreeMap::new();
        for line in open.info.lines("tfd:") {
            let bad = || open.unsupported(format!("member `{line}`"));
            let mut words = line.split_whitespace();
            let number: i32 = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
            let hex = |word: Option<&str>| u64::from_str_radix(word?, 16).ok();
            let events = hex(words.nth(1)).ok_or_else(bad)? as u32;
            let data = hex(words.nth(1)).ok_or_else(bad)?;
            let order = seen.entry(number).or_default();
            members.push(Member { number, events, data, order: *order, description: None });
            *order += 1;
        }
        let mut ready = libc::pollfd { fd: open.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry. Asking a set whether it is ready does not consume what is.
        let quiet = unsafe { libc::poll(&raw mut ready, 1, 0) } == 0;
        Ok(Self { members, quiet })
    }

    /// Finds the description of each member, of `set` in `opens`: mostly what has its number in the process of the set, as `numbers`
    /// tells; else whatever any process, or a queue, has.
    pub(crate) fn resolve(
        &mut self,
        set: usize,
        numbers: &BTreeMap<i32, u32>,
        opens: &[Open],
        remarks: &mut Vec<String>,
    ) -> RmResult<()> {
        let me = std::process::id() as i32;
        let set = &opens[set];
        for member in &mut self.members {
            let slot = [set.as_raw_fd() as u32, member.number as u32, member.order];
            // Ours are the application's own descriptions.
            let is = |index: u32| {
                let (fd, slot) = (opens[index as usize].as_raw_fd() as u64, (&raw const slot) as u64);
                kcmp((me, me), compare::EPOLL_TFD, fd, slot)
                    .map(std::cmp::Ordering::is_eq)
                    .on("comparing the members of epoll set", set.number)
            };
            if let Some(index) = numbers.get(&member.number)
                && is(*index)?
            {
                member.description = Some(*index);
                continue;
            }
            for index in 0..opens.len() as u32 {
                if is(index)? {
                    member.description = Some(index);
                    break;
                }
            }
            if member.description.is_none() {
                let (set, number) = (set.number, member.number);
                remarks.push(format!(
                    "epoll set {set}: its member {number} is open outside only and was left out"
                ));
            }
        }
        Ok(())
    }
}

/// Makes all sets, empty.
pub(crate) fn recreate(all: &Each<EpollState>, making: &mut Making) -> RmResult<()> {
    for (index, _) in all {
        // SAFETY: no memory is passed.
        let fd = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).on("making", "epoll set")?;
        making.put(*index, fd)?;
    }
    Ok(())
}

/// Enters `members` into the set that the clone has at `set`.
pub(crate) fn enter(remote: &Remote, set: i32, members: &[&Member]) -> RmResult<()> {
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Event {
        events: u32,
        data: u64,
    }
    for part in members.chunks(holo_abi::control::BATCH_CALLS) {
        let mut calls: Vec<Call> = Vec::with_capacity(part.len());
        for (i, member) in part.iter().enumerate() {
            let event = Event { events: member.events, data: member.data };
            let at = remote.page.put(i * 16, bytes_of(&event));
            let add = libc::EPOLL_CTL_ADD as u64;
            calls.push(call(sysno::epoll_ctl, &[set as u64, add, member.number as u64, at]));
        }
        remote.run_all(&mut calls).on("filling epoll set", set)?;
    }
    Ok(())
}

/// After all members are entered: where nothing was ready at the cut, edges are old news.
pub(crate) fn consume_edges(remote: &Remote, set: i32, state: &EpollState) -> RmResult<()> {
    if state.has_old_edges() {
        let most = state.members.len().min(holo_abi::control::SCRATCH_BYTES / 16) as u64;
        remote
            .call(sysno::epoll_wait, &[set as u64, remote.page.scratch_address(0), most, 0])
            .on("settling epoll set", set)?;
    }
    Ok(())
}

/// [`consume_edges`] of a set that no process has.
pub(crate) fn consume_edges_of(set: &impl AsRawFd, state: &EpollState) {
    if state.has_old_edges() {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; state.members.len()];
        // SAFETY: room for so many.
        unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, 0) };
    }
}

/// Sets in the order in which they are to be filled: inner ones first, so that the kernel's checks for loops
/// see what they saw.
pub(crate) fn inner_first(sets: &Each<EpollState>) -> RmResult<Vec<usize>> {
    let place: BTreeMap<u32, usize> = sets.iter().enumerate().map(|(i, (index, _))| (*index, i)).collect();
    let (mut order, mut done) = (Vec::new(), vec![false; sets.len()]);
    // Nesting is at most 5 deep in the kernel; a longer chain is a forged image.
    for _ in 0..=8 {
        for (i, (_, state)) in sets.iter().enumerate() {
            let inner = state.members.iter().filter_map(|member| place.get(&member.description?));
            if !done[i] && inner.into_iter().all(|inner| done[*inner]) {
                done[i] = true;
                order.push(i);
            }
        }
    }
    if order.len() < sets.len() {
        let what = "epoll sets contain one another".to_owned();
        return Err(RmError::BadSection { kind: super::descriptors::NAME, what });
    }
    Ok(order)
}
