//! The last step of a restore: every thread of every process returns into its frame.

use super::{PATIENCE, Prepared, Restored, Running, TICKS_RUNNING, credentials, page_path};
use crate::barrier::{tasks, tid_in};
use crate::kinds::process::ProcessState;
use crate::kinds::threads::ThreadsState;
use crate::manager::{Context, RmError, RmResult};
use crate::remote::{Remote, call};
use crate::stopped::Stopped;
use crate::tree::{is_alive, outer_tid};
use holo_abi::control::{CALL_SIGRETURN, slot};
use holo_abi::sysno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;

impl Prepared {
    /// Pid of the clone's first process on this node.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.remotes[0].pid
    }

    /// The clone waits for us; to be called at least every few seconds.
    pub fn keep_alive(&self) {
        self.pages.iter().for_each(|page| page.keep_alive());
    }

    /// The application runs.
    ///
    /// # Errors
    /// It was killed.
    pub fn run(mut self) -> RmResult<Running> {
        let first_instruction = self.go().map_err(|cause| self.clone.obituary(cause))?;
        let keeper =
            self.clone.keeper.take().ok_or_else(|| RmError::Unsupported("the keeper is gone".into()))?;
        let processes = self.remotes.iter().zip(&self.image.tree.processes);
        let processes = processes.map(|(remote, branch)| Restored {
            page: Arc::clone(&remote.page),
            page_path: page_path(&self.page_path, branch.page as usize),
            pid: remote.pid,
            inner: branch.pid,
        });
        let processes = processes.collect();
        let (init, remarks) = (self.clone.init, std::mem::take(&mut self.remarks));
        Ok(Running { processes, keeper, init, first_instruction, remarks })
    }

    /// Lets every thread return into its frame.
    fn go(&self) -> RmResult<Instant> {
        let all =
            || self.remotes.iter().zip(&self.slots).zip(self.image.states.iter().zip(&self.image.threads));
        for ((remote, slots), (state, threads)) in all() {
            ready(remote, slots, state, threads)?;
        }
        for stopped in &self.stopped {
            let tids = tasks(stopped.pid).on("listing threads of", stopped.pid)?;
            if !stopped.hold_with(tids) {
                return Err(RmError::Unsupported(format!("process {} is not held", stopped.pid)));
            }
        }
        for ((remote, slots), (_, threads)) in all() {
            let frames = threads.threads.iter().map(|thread| thread.frame);
            let own = &slots[usize::from(threads.leader_gone)..];
            for (index, frame) in own.iter().zip(frames).rev() {
                remote.page.start(*index, &[call(CALL_SIGRETURN, &[frame])], false);
            }
        }
        self.stopped.iter().for_each(Stopped::follow);
        let mut first = None;
        for ((remote, slots), (_, threads)) in all() {
            for index in &slots[usize::from(threads.leader_gone)..] {
                wait_left(remote, *index).on("starting", "the threads")?;
                first.get_or_insert_with(Instant::now);
                // SAFETY: the thread has left; the slot is free.
                unsafe { (*remote.page.slot(*index)).leave = 0 };
            }
        }
        for page in &self.pages {
            // SAFETY: a plain word that parked threads read.
            unsafe { (*page.header()).ticks_max = TICKS_RUNNING };
        }
        first.ok_or_else(|| RmError::Unsupported("no thread".into()))
    }
}

/// The last that the threads of a process do for us.
fn ready(remote: &Remote, slots: &[usize], state: &ProcessState, threads: &ThreadsState) -> RmResult<()> {
    let page = &remote.page;
    let mut credentials = credentials::calls(state, remote);
    if state.ways & holo_abi::ways::TRAPS != 0 {
        // Each thread's own, and not inherited: calls from outside libholo trap.
        let [_, start, end] = state.holo;
        credentials.push(call(sysno::prctl, &[PR_SET_SYSCALL_USER_DISPATCH, 1, start, end - start, 0]));
    }
    for index in &slots[usize::from(threads.leader_gone)..] {
        let mut calls = if *index == remote.leader {
            credentials::calls_of_first(state, &credentials)
        } else {
            credentials.clone()
        };
        remote.run_in(*index, &mut calls, false).on("restoring", "credentials")?;
    }
    if threads.leader_gone {
        page.start(remote.leader, &[call(sysno::exit, &[0])], false);
        page.state(remote.leader).store(slot::FREE, Ordering::SeqCst);
    }
    Ok(())
}

/// Waits until the thread of a slot has left: it can wake nobody, since its last store comes before. Others run already, and may
/// have ended it.
fn wait_left(remote: &Remote, index: usize) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut turns: u32 = 0;
    while remote.page.state(index).load(Ordering::SeqCst) == slot::CALL {
        turns += 1;
        if turns.is_multiple_of(2000) && is_gone(remote, index) {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if turns < 1000 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(50)) }
    }
    Ok(())
}

/// Whether the thread of a slot has ended.
fn is_gone(remote: &Remote, index: usize) -> bool {
    // A thread has a directory of its own, though it is not listed.
    !outer_tid(remote.pid, tid_in(&remote.page, index)).is_ok_and(is_alive)
}
