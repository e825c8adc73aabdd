//! The last step of a restore: every thread of every process returns into its frame.

use super::{PATIENCE, Prepared, Restored, Running, TICKS_RUNNING, credentials, page_path};
use crate::barrier::{tasks, tid_in};
use crate::face::has_ended;
use crate::kinds::process::ProcessState;
use crate::kinds::threads::{EndedState, ThreadsState};
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
        let late = self.late.take();
        Ok(Running { processes, keeper, init, first_instruction, remarks, late })
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
            for (index, frame) in threads.living(slots).iter().zip(frames).rev() {
                remote.page.start(*index, &[call(CALL_SIGRETURN, &[frame])], false);
            }
        }
        self.stopped.iter().for_each(Stopped::follow);
        let mut first = None;
        for ((remote, slots), (_, threads)) in all() {
            for index in threads.living(slots) {
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
    let mut credentials = credentials::calls(state, remote);
    if state.ways & holo_abi::ways::TRAPS != 0 {
        // Each thread's own, and not inherited: calls from outside libholo trap.
        let [_, start, end] = state.holo;
        credentials.push(call(sysno::prctl, &[PR_SET_SYSCALL_USER_DISPATCH, 1, start, end - start, 0]));
    }
    for index in slots {
        remote.run_in(*index, &mut credentials.clone(), false).on("restoring", "credentials")?;
    }
    // Parents come before children: the end of a first thread, which has made them, is the death of their parent to them.
    if let Some(made) = credentials::at_parents_death(state.pdeathsig) {
        let first = threads.living(slots)[0];
        remote.run_in(first, &mut [made], false).on("restoring", "the signal at the parent's death")?;
    }
    match &threads.ended {
        Some(ended) => end_first(remote, state.pid, ended).on("ending", "a first thread"),
        None => Ok(()),
    }
}

/// The first thread, which made all that the process has, ends as it did.
fn end_first(remote: &Remote, pid: i32, ended: &EndedState) -> io::Result<()> {
    if let Some(made) = credentials::at_parents_death(ended.pdeathsig) {
        remote.run(&mut [made], false)?;
        remote.page.enter_mourner(pid, ended.pdeathsig);
    }
    let code = u64::from(ended.status.cast_unsigned() >> 8 & 0xff);
    remote.page.start(remote.leader, &[call(sysno::exit, &[code])], false);
    let until = Instant::now() + PATIENCE;
    while !has_ended(remote.pid) {
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    remote.page.state(remote.leader).store(slot::FREE, Ordering::SeqCst);
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
