//! Signals: actions as the kernel has them, and what is pending, with its data.
//!
//! Pending signals are read by taking each and queueing it again at once, in order, while everything is
//! blocked: nothing is delivered or lost. (There is no call that only looks.)

use crate::asks::{Asked, Asking};
use crate::face::PIDFD_THREAD;
use crate::kinds::threads::{self, ThreadsState};
use crate::manager::{Context, DumpCx, ResourceManager, RmResult, SwitchCx};
use crate::remote::{Remote, call};
use crate::tasks::{self, Task};
use holo_abi::{PARK_SIGNAL, sysno};
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use std::io;

const NAME: &str = "signals";
const VERSION: u16 = 1;
const ACTION_BYTES: usize = 32;
const INFO_BYTES: usize = 128;
/// Bound on queued signals that are kept; more are an error, as they would be lost.
const PENDING_MAX: usize = 65536;

/// A queued signal: `siginfo`, and the thread it is for (none: the process).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// Index of the thread, or none for the process.
    pub thread: Option<u32>,
    /// The kernel's `siginfo`, 128 bytes.
    pub info: Vec<u8>,
}

impl Pending {
    /// A word of the `siginfo`.
    pub(super) fn word(&self, at: usize) -> i32 {
        let word = self.info.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, i32::from_le_bytes)
    }
}

/// State.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignalsState {
    /// The kernel's `sigaction` of signals 1 to 64, 32 bytes each.
    #[serde(deserialize_with = "actions_of_64")]
    pub actions: Vec<u8>,
    /// What is pending, oldest first.
    pub pending: Vec<Pending>,
}

fn actions_of_64<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let bytes = Vec::<u8>::deserialize(from)?;
    if bytes.len() == 64 * ACTION_BYTES { Ok(bytes) } else { Err(D::Error::custom("not 64 actions")) }
}

/// The manager.
#[derive(Default)]
pub struct Signals {
    asked: Option<Asked>,
}

/// Flag of `pidfd_send_signal` (Linux 6.9): the whole process is meant.
const TO_PROCESS: u64 = 2;
/// The signal that parks, in a set.
const OURS: u64 = 1 << (PARK_SIGNAL - 1);

/// Takes and queues again every signal that waits for the thread of `slot`, and in the first one also those for the process.
fn look(cx: &DumpCx, index: usize, slot: usize, task: &Task, out: &mut Vec<Pending>) -> RmResult<()> {
    let (own, shared) = (task.pending & !OURS, task.shared_pending & !OURS);
    let set = if index == 0 { own | shared } else { own };
    if set == 0 {
        return Ok(());
    }
    let page = &cx.remote.page;
    let _hands = page.hands();
    let tid = u64::from(cx.remote.call_in(slot, sysno::gettid, &[]).on("asking", "a thread")? as u32);
    let pid = cx.remote.call_in(slot, sysno::getpid, &[]).on("asking", "a thread")?;
    for signal in (1..=64u64).filter(|signal| set & (1 << (signal - 1)) != 0) {
        let bit = 1u64 << (signal - 1);
        // Private signals come out first.
        let mut private = own & bit != 0;
        let mut taken = Vec::new();
        while taken.len() + out.len() < PENDING_MAX {
            if private && shared & bit != 0 && !taken.is_empty() {
                private = tasks::one(cx.remote.pid, task.tid).on("reading", "a thread")?.pending & bit != 0;
            }
            if !private && index != 0 {
                break;
            }
            let set_at = page.put(0, &bit.to_le_bytes());
            let zero_at = page.put(8, &[0; 16]);
            let info_at = page.put(64, &[0; INFO_BYTES]);
            match cx.remote.call_in(slot, sysno::rt_sigtimedwait, &[set_at, info_at, zero_at, 8]) {
                Ok(_) => taken.push((private, page.take(64, INFO_BYTES))),
                Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) => break,
                Err(cause) => return Err(cause).on("looking at", format!("pending signal {signal}")),
            }
        }
        for (private, info) in taken {
            let info_at = page.put(64, &info);
            let back = match private {
                true => cx.remote.call_in(slot, sysno::rt_tgsigqueueinfo, &[pid, tid, signal, info_at]),
                false => queue(cx.remote, slot, [pid, tid, signal, info_at]),
            };
            back.on("putting back", format!("pending signal {signal}"))?;
            out.push(Pending { thread: private.then_some(index as u32), info });
        }
    }
    Ok(())
}

/// Queues a signal for the process. What another process, or the kernel, sent may only be queued by who queues it for itself: the
/// first thread by the number of the process, any other one by a descriptor of itself.
fn queue(remote: &Remote, slot: usize, [pid, tid, signal, info_at]: [u64; 4]) -> io::Result<u64> {
    if pid == tid {
        return remote.call_in(slot, sysno::rt_sigqueueinfo, &[pid, signal, info_at]);
    }
    let fd = remote.call_in(slot, sysno::pidfd_open, &[tid, PIDFD_THREAD as u64])?;
    let queued = remote.call_in(slot, sysno::pidfd_send_signal, &[fd, signal, info_at, TO_PROCESS]);
    remote.call_in(slot, sysno::close, &[fd])?;
    queued
}

/// All that is pending, of which `tasks` tell for whom.
fn all(cx: &DumpCx, tasks: &[Task]) -> RmResult<Vec<Pending>> {
    let mut pending = Vec::new();
    for (index, slot) in cx.slots.iter().enumerate() {
        // SAFETY: filled in by the parked thread.
        let inner = unsafe { (*cx.remote.page.slot(*slot)).tid } as i32;
        let found = tasks.iter().find(|task| task.inner == inner);
        let none = || io::Error::other(format!("no thread {inner} in {}", cx.remote.pid));
        look(cx, index, *slot, found.ok_or_else(none).on("finding", "a thread")?, &mut pending)?;
    }
    Ok(pending)
}

/// Looks once more: some came since.
pub(super) fn look_again(cx: &mut DumpCx, tasks: &[Task]) -> RmResult<()> {
    let state: SignalsState = cx.section(NAME)?;
    let pending = all(cx, tasks)?;
    cx.put(NAME, VERSION, &SignalsState { pending, ..state })
}

/// What was found pending.
pub(super) fn told(cx: &DumpCx) -> RmResult<Vec<Pending>> {
    cx.section(NAME).map(|state: SignalsState| state.pending)
}

impl ResourceManager for Signals {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&mut self, _: &Remote, asking: &mut Asking) {
        self.asked = asking.add(64 * ACTION_BYTES, |at| {
            let action = |signal: u64| {
                call(sysno::rt_sigaction, &[signal, 0, at + (signal - 1) * ACTION_BYTES as u64, 8])
            };
            (1..=64).map(action).collect()
        });
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let asked = self.asked.take().unwrap_or_default();
        let answers = cx.remote.answers().and_then(|answers| answers.of(&asked));
        let actions = answers.on("reading", "signal actions")?.1.to_vec();
        let pending = all(cx, cx.remote.tasks().on("reading", "threads")?)?;
        cx.put(NAME, VERSION, &SignalsState { actions, pending })
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: SignalsState = cx.section(NAME, VERSION)?;
        let at = cx.remote.page.put(0, &state.actions);
        let mut calls: Vec<_> = (1..=64u64)
            .filter(|signal| *signal != libc::SIGKILL as u64 && *signal != libc::SIGSTOP as u64)
            .map(|signal| call(sysno::rt_sigaction, &[signal, at + (signal - 1) * ACTION_BYTES as u64, 0, 8]))
            .collect();
        cx.remote.run_all(&mut calls).on("restoring", "signal actions")
    }

    /// All threads are made and block everything.
    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: SignalsState = cx.section(NAME, VERSION)?;
        let threads: ThreadsState = cx.section("threads", threads::VERSION)?;
        let page = &cx.remote.page;
        for one in &state.pending {
            if one.info.len() != INFO_BYTES {
                continue;
            }
            let signal = u64::from(u32::from_le_bytes([one.info[0], one.info[1], one.info[2], one.info[3]]));
            let info_at = page.put(0, &one.info);
            let pid = cx.remote.call(sysno::getpid, &[]).on("asking", "the clone")?;
            let queued = match one.thread {
                None => cx.remote.call(sysno::rt_sigqueueinfo, &[pid, signal, info_at]),
                Some(index) => {
                    let Some(thread) = threads.threads.get(index as usize) else { continue };
                    let Some(slot) = threads.living(cx.slots).get(index as usize) else {
                        continue;
                    };
                    cx.remote.call_in(
                        *slot,
                        sysno::rt_tgsigqueueinfo,
                        &[pid, thread.tid as u64, signal, info_at],
                    )
                }
            };
            queued.on("queueing", format!("signal {signal}"))?;
        }
        Ok(())
    }
}
