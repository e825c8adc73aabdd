//! How an instance lives and ends: it is adopted, watched, told of, killed.

use super::timing::Clock;
use super::{App, END_PAUSE, Failure};
use crate::late::Memory;
use crate::members::Leaf;
use crate::record::Instance;
use crate::{dump, ended};
use holo_api::local::ErrorKind;
use holo_rm::page::Page;
use holo_rm::tree::start_time;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Waited for whoever takes an epoch of an application that has ended.
const FORGET_MAX: Duration = Duration::from_secs(10);
/// How long a program may take to start that is to stand for an application.
const HEIR_MAX: Duration = Duration::from_secs(2);

impl App {
    /// A process is this application from now on; `processes` are all that it has, with their pages.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        instance: Instance,
        page: Arc<Page>,
        keeper: Option<Child>,
        processes: Vec<(i32, i32, Leaf)>,
        memory: Memory,
    ) {
        // Before anybody takes an epoch of it.
        self.await_memory(memory);
        let mut inner = self.inner.lock();
        // Whoever still watches the instance before takes this one neither for its own nor for ended: its processes are noted under
        // the same lock.
        inner.incarnation += 1;
        let incarnation = inner.incarnation;
        self.members.begin(instance.real_pid);
        for (pid, inner_pid, leaf) in processes {
            self.members.joined(pid, inner_pid, leaf);
        }
        inner.record.instance = Some(instance);
        inner.page = Some(page);
        inner.reasons.clear();
        inner.out_of_reach = None;
        inner.unwatched.clear();
        inner.standby_of = None;
        inner.parked = None;
        inner.exit = None;
        inner.record.ended.clear();
        inner.record.exited = false;
        drop(inner);
        // Its first epoch reads all memory.
        self.forget_costs();
        self.save();
        let app = Arc::clone(self);
        thread::spawn(move || app.watch(incarnation, keeper));
    }

    /// The first process of this application has executed another program: it has another page.
    pub fn adopt_again(self: &Arc<Self>, instance: Instance, page: Arc<Page>) {
        let leaf = Leaf { page: Arc::clone(&page), path: instance.page.clone() };
        self.members.joined(instance.real_pid, instance.cluster_pid as i32, leaf);
        let mut inner = self.inner.lock();
        inner.record.instance = Some(instance);
        inner.page = Some(page);
        drop(inner);
        self.save();
    }

    /// Its first process has ended, and who is to stand for it is still starting: one that was forked and is to execute a program.
    fn heir_to_come(&self) -> Option<Instance> {
        let until = Instant::now() + HEIR_MAX;
        while self.members.expects() && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
            if let Some(now) = self.living() {
                return Some(now);
            }
        }
        None
    }

    /// Takes epochs when they are due until all processes have ended.
    pub(super) fn watch(&self, incarnation: u64, keeper: Option<Child>) {
        let mut clock = Clock::default();
        let mut watched: Option<(Instance, OwnedFd)> = None;
        let mut first: Option<(i32, Option<i32>)> = None;
        loop {
            let wait = clock.wait(self);
            let Some(now) = self.living().or_else(|| self.heir_to_come()) else { break };
            if watched.as_ref().is_none_or(|(of, _)| *of != now) {
                // SAFETY: no memory is passed.
                let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, now.real_pid, 0) } as i32;
                if raw < 0 {
                    continue;
                }
                // SAFETY: just made.
                watched = Some((now, unsafe { OwnedFd::from_raw_fd(raw) }));
            }
            if let Some((of, pidfd)) =
                watched.as_ref().filter(|(_, pidfd)| self.wait_end(pidfd, &clock, wait))
            {
                // The application's status is that of the process that was launched; others may live on.
                first.get_or_insert_with(|| (of.real_pid, ended::status(pidfd, of.real_pid)));
                continue;
            }
            if self.inner.lock().incarnation != incarnation {
                // It ends with the instance that it was watched for.
                let _ = keeper.map(|mut keeper| keeper.wait());
                return;
            }
            if clock.is_due(self) {
                // What went wrong is in the reasons.
                let is_taken = !self.is_fenced() && dump::take(self).is_ok();
                clock.taken(self, is_taken);
            }
        }
        let inner = self.inner.lock();
        if inner.incarnation == incarnation && inner.killed != incarnation {
            // At once: what changes from now on is others'.
            self.others.ended();
        }
        drop(inner);
        let last = watched.map(|(of, pidfd)| (of.real_pid, ended::status(&pidfd, of.real_pid)));
        let (pid, told) = first.or(last).unwrap_or((0, None));
        let kept = keeper
            .and_then(|mut keeper| keeper.wait().ok())
            .map(std::os::unix::process::ExitStatusExt::into_raw);
        let mut inner = self.inner.lock();
        let noted = inner.page.as_ref().filter(|_| inner.incarnation == incarnation);
        let noted = noted.and_then(|page| page.exit_code()).map(|code| i32::from(code) << 8);
        let status = told.or(noted).or(kept);
        if inner.incarnation == incarnation {
            inner.exit = Some(status.unwrap_or(0));
            if inner.killed != incarnation {
                let how = ended::text(pid, &self.name, status);
                eprintln!("holod: {}: {how}", self.name);
                inner.record.ended = how;
                inner.record.exited = status.is_some_and(|status| libc::WIFEXITED(status));
            }
            inner.record.instance = None;
            self.members.end();
            inner.page = None;
            inner.reasons.clear();
        }
        let ours = inner.killed == incarnation;
        drop(inner);
        self.save();
        if !ours {
            self.tell_end(incarnation);
        }
        self.forget(incarnation);
    }

    /// What was kept for its next epoch is of no use any more: files need not be watched.
    fn forget(&self, incarnation: u64) {
        let work = self.work.try_lock_for(FORGET_MAX);
        if let Some(mut work) = work.filter(|_| self.inner.lock().incarnation == incarnation) {
            work.registry.clear();
        }
    }

    /// The others are told late: where the whole node is dying, its applications end an instant before the agent does.
    fn tell_end(&self, incarnation: u64) {
        thread::sleep(END_PAUSE);
        if self.inner.lock().incarnation == incarnation
            && let Some(hooks) = self.hooks.get()
        {
            hooks.ended(&self.name);
        }
    }

    /// Kills every process of the instance and waits until it is gone.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop(&self) -> Result<(), Failure> {
        let _work = self.work();
        self.kill()
    }

    /// What is parked dies parked.
    pub(crate) fn kill(&self) -> Result<(), Failure> {
        let Some(instance) = self.living() else { return Ok(()) };
        let mut inner = self.inner.lock();
        inner.killed = inner.incarnation;
        drop(inner);
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            // Stopped ones, which cannot make others meanwhile, and those that these made before.
            let pids = self.members.pids();
            let alive = start_time(instance.real_pid) == Some(instance.started);
            if pids.is_empty() && !alive {
                break;
            }
            if alive {
                // SAFETY: the start time was just compared.
                unsafe { libc::kill(instance.real_pid, libc::SIGKILL) };
            }
            for (pid, _) in &pids {
                // SAFETY: found alive a moment ago, as a process of the application.
                unsafe { libc::kill(*pid, libc::SIGKILL) };
            }
            if Instant::now() > until {
                let pid = pids.first().map_or(instance.real_pid, |(pid, _)| *pid);
                let message = format!("{}: process {pid} does not end", self.name);
                return Err(Failure::new(ErrorKind::Failed, message));
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.others.ended();
        self.lift_fence();
        Ok(())
    }
}
