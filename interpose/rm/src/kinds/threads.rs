//! Threads: where each resumes, its thread-local base, what the kernel knows by its id.

use crate::face::status_of_first;
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::remote::{Remote, call};
use holo_abi::control::{CALL_CLONE, slot};
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const NAME: &str = "threads";
/// Version of the section. Its last byte said once whether there is an `ended`, which no epoch had: those are understood.
pub(crate) const VERSION: u16 = 2;
const THREADS_MAX: usize = holo_abi::control::SLOTS_MAX / 2;
const PR_SET_NAME: u64 = 15;
const IOPRIO_WHO_PROCESS: i32 = 1;
const PR_SET_TIMERSLACK: u64 = 29;
const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
/// VM, FS, FILES, SIGHAND, THREAD, SYSVSEM.
const THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// State of a thread.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ThreadState {
    /// Id as the application sees it.
    pub tid: i32,
    /// Address of its signal frame.
    pub frame: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// Word that the kernel clears at its end.
    pub tid_address: u64,
    /// Robust list and length.
    pub robust: (u64, u64),
    /// rseq area, length, signature.
    pub rseq: (u64, u32, u32),
    /// Name.
    pub comm: Vec<u8>,
    /// Scheduling: policy, nice, priority, flags.
    pub sched: (u32, i32, u32, u64),
    /// CPUs that it may use.
    pub affinity: Vec<u8>,
    /// Timer slack, nanoseconds.
    pub slack_ns: u64,
    /// Class and priority of its input and output.
    pub io_priority: u32,
}

/// A first thread that has ended (`pthread_exit` in `main`), of which there is nothing to resume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndedState {
    /// What the kernel shows of it still.
    pub thread: ThreadState,
    /// Its exit status, as `wait` gives one; it shows in `/proc`.
    pub status: i32,
    /// Signal at the parent's death that it wanted.
    pub pdeathsig: u32,
}

/// State of all threads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ThreadsState {
    /// Those that live, the first one first.
    pub threads: Vec<ThreadState>,
    /// The first one, if it has ended; it is made and ended again.
    pub ended: Option<EndedState>,
}

impl ThreadsState {
    /// All that are made, in the order of their slots.
    fn all(&self) -> impl Iterator<Item = &ThreadState> {
        self.ended.iter().map(|ended| &ended.thread).chain(&self.threads)
    }

    /// Slots, of those of all threads, of the ones that live.
    #[must_use]
    pub fn living<'a>(&self, slots: &'a [usize]) -> &'a [usize] {
        &slots[usize::from(self.ended.is_some())..]
    }
}

#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// The manager.
#[derive(Default)]
pub struct Threads;

fn capture(cx: &DumpCx, index: usize) -> RmResult<ThreadState> {
    let remote = cx.remote;
    // SAFETY: filled in by the parked thread.
    let (tid, frame, fs_base, gs_base, tid_address, robust, rseq, slack_ns) = unsafe {
        let slot = &*remote.page.slot(index);
        (
            slot.tid as i32,
            slot.frame,
            slot.fs_base,
            slot.gs_base,
            slot.tid_address,
            (slot.robust_head, slot.robust_len),
            (slot.rseq, slot.rseq_len, slot.rseq_sig),
            slot.slack_ns,
        )
    };
    let seen = seen(remote, tid)?;
    Ok(ThreadState { tid, frame, fs_base, gs_base, tid_address, robust, rseq, slack_ns, ..seen })
}

/// What the kernel shows of a thread to others, also of one that has ended.
fn seen(remote: &Remote, tid: i32) -> RmResult<ThreadState> {
    let task = remote.task(tid).on("finding", format!("thread {tid}"))?;
    let outer = task.tid;
    let mut attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..SchedAttr::default() };
    let mut affinity = vec![0u8; 1024];
    // SAFETY: writes into structures of the given sizes.
    let mask_bytes = unsafe {
        libc::syscall(libc::SYS_sched_getattr, outer, &raw mut attr, size_of::<SchedAttr>(), 0);
        libc::syscall(libc::SYS_sched_getaffinity, outer, affinity.len(), affinity.as_mut_ptr())
    };
    // SAFETY: no memory is passed.
    let io_priority = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, outer) };
    affinity.truncate(mask_bytes.max(0) as usize);
    Ok(ThreadState {
        tid,
        comm: task.name.clone(),
        sched: (attr.policy, attr.nice, attr.priority, attr.flags),
        affinity,
        io_priority: io_priority.max(0) as u32,
        ..ThreadState::default()
    })
}

impl ResourceManager for Threads {
    fn name(&self) -> &'static str {
        NAME
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let mut threads = Vec::with_capacity(cx.slots.len());
        for index in cx.slots {
            threads.push(capture(cx, *index)?);
        }
        let (remote, first) = (cx.remote, cx.processes[cx.index].pid);
        let ended = match remote.face == remote.pid {
            true => None,
            false => {
                remote.page.keep_mourners(|pid| cx.processes.iter().any(|process| process.pid == pid));
                let (status, pdeathsig) = (status_of_first(remote.pid), remote.page.mourner(first));
                Some(EndedState { thread: seen(remote, first)?, status, pdeathsig })
            }
        };
        cx.put(NAME, VERSION, &ThreadsState { threads, ended })
    }

    fn pre_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: ThreadsState = cx.section(NAME, VERSION)?;
        if state.threads.is_empty() || state.threads.len() > THREADS_MAX {
            let what = format!("{} threads", state.threads.len());
            return Err(RmError::BadSection { kind: NAME, what });
        }
        Ok(())
    }

    /// Makes the threads; they serve calls, in slots that follow the leader's in `cx.slots`.
    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: ThreadsState = cx.section(NAME, VERSION)?;
        let page = &cx.remote.page;
        for thread in state.all().skip(1) {
            let index =
                page.reserve().ok_or_else(|| RmError::Unsupported("no free slot for a thread".into()))?;
            // SAFETY: reserved by us.
            unsafe { (*page.slot(index)).leave = 1 };
            let tids_at = page.put(256, &thread.tid.to_le_bytes());
            let mut arguments = [0u64; 11];
            arguments[0] = THREAD_FLAGS;
            arguments[8] = tids_at;
            arguments[9] = 1;
            let bytes: Vec<u8> = arguments.iter().flat_map(|word| word.to_le_bytes()).collect();
            let at = page.put(0, &bytes);
            cx.remote
                .call(CALL_CLONE, &[at, bytes.len() as u64, page.slot_address(index)])
                .on("making", format!("thread {}", thread.tid))?;
            page.wait_state(index, PATIENCE, |now| now == slot::DONE)
                .on("starting", format!("thread {}", thread.tid))?;
            cx.slots.push(index);
        }
        Ok(())
    }

    /// Gives each thread what the kernel keeps for it.
    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: ThreadsState = cx.section(NAME, VERSION)?;
        let page = &cx.remote.page;
        for (thread, index) in state.all().zip(cx.slots.iter().copied()) {
            let mut comm = thread.comm.clone();
            comm.resize(16, 0);
            let comm_at = page.put(0, &comm);
            let mut calls = vec![
                call(sysno::set_tid_address, &[thread.tid_address]),
                call(sysno::prctl, &[PR_SET_NAME, comm_at]),
                call(sysno::arch_prctl, &[ARCH_SET_FS, thread.fs_base]),
                call(sysno::arch_prctl, &[ARCH_SET_GS, thread.gs_base]),
                call(sysno::prctl, &[PR_SET_TIMERSLACK, thread.slack_ns.max(1)]),
            ];
            if thread.robust.0 != 0 {
                calls.push(call(sysno::set_robust_list, &[thread.robust.0, thread.robust.1]));
            }
            if thread.rseq.0 != 0 {
                let (area, bytes, signature) = thread.rseq;
                calls.push(call(sysno::rseq, &[area, u64::from(bytes), 0, u64::from(signature)]));
            }
            let affinity = &thread.affinity;
            if !affinity.is_empty() {
                let at = page.put(64, affinity);
                calls.push(call(sysno::sched_setaffinity, &[0, affinity.len() as u64, at]));
            }
            let (policy, nice, priority, flags) = thread.sched;
            let attr = SchedAttr { size: 48, policy, flags, nice, priority, ..SchedAttr::default() };
            if policy != 0 || nice != 0 {
                // SAFETY: plain words, the first 48 bytes.
                let bytes = unsafe { std::slice::from_raw_parts((&raw const attr).cast::<u8>(), 48) };
                calls.push(call(sysno::sched_setattr, &[0, page.put(2048, bytes), 0]));
            }
            if thread.io_priority != 0 {
                let who = IOPRIO_WHO_PROCESS as u64;
                calls.push(call(sysno::ioprio_set, &[who, 0, u64::from(thread.io_priority)]));
            }
            cx.remote.run_in(index, &mut calls, false).on("setting up", format!("thread {}", thread.tid))?;
            for made in &calls {
                if made.ret >= 0 {
                    continue;
                }
                let cause = std::io::Error::from_raw_os_error(-made.ret as i32);
                match made.nr {
                    sysno::sched_setaffinity | sysno::sched_setattr | sysno::ioprio_set => {
                        cx.remarks
                            .push(format!("thread {}: scheduling as on the other node: {cause}", thread.tid));
                    }
                    _ => {
                        let object = format!("thread {} (call {})", thread.tid, made.nr);
                        return Err(RmError::Kernel { operation: "setting up", object, source: cause });
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::manager::decode;
    use holo_image::wire;

    // Goal: epochs of before are understood. Method: their layout, in which a byte said that the first thread has ended.
    #[test]
    fn a_first_thread_that_lives_is_told_as_before() {
        let thread = ThreadState { tid: 7, comm: b"name".to_vec(), ..ThreadState::default() };
        let before = wire::encode(&(vec![thread], false), crate::manager::SECTION).unwrap();
        let state: ThreadsState = decode(&before).unwrap();
        assert!(state.ended.is_none() && state.threads[0].tid == 7);
        assert_eq!(state.living(&[3, 4]), [3, 4]);
        assert_eq!(wire::encode(&state, crate::manager::SECTION).unwrap(), before);
    }
}
