//! An application that must not run: parked by this agent, or stopped where that cannot be done in time.
//!
//! A thread holds the parked threads and tells them and the guard that the agent lives. It is also what takes the last
//! epoch before a planned switch: between that epoch's cut and the end nothing of the application runs.

use crate::app::{App, Failure};
use crate::dump;
use crate::guard::Guard;
use crate::record::Instance;
use holo_api::local::ErrorKind;
use holo_rm::barrier::{self, Parked};
use holo_rm::page::Page;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(50);

/// Tells parked threads and the guard that they are held, until dropped.
pub(crate) struct Held {
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Held {
    pub(crate) fn start(pages: Vec<Arc<Page>>, guard: &Arc<Guard>, of: &Instance) -> Self {
        let (stop, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (guard, of, told) = (Arc::clone(guard), of.clone(), Arc::clone(&stop));
        let is_lost = Arc::clone(&lost);
        let beat = move || {
            pages.iter().for_each(|page| page.keep_alive());
            if !pages.iter().any(|page| page.is_given_up()) {
                guard.hold(&of);
            } else if !is_lost.swap(true, Ordering::SeqCst) {
                // We came too late, and they ran on: what is parked no more is stopped.
                guard.halt(&of);
                eprintln!("holod: process {} ran on while it was to be parked: stopped", of.real_pid);
            }
        };
        beat();
        let thread = thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                beat();
                thread::park_timeout(BEAT);
            }
        });
        Self { stop, lost, thread: Some(thread) }
    }

    /// Did the threads run on meanwhile?
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// What keeps an application parked.
pub(crate) struct Kept<'a> {
    pub(crate) parked: Parked,
    pub(crate) held: Held,
    pub(crate) cut: MutexGuard<'a, ()>,
}

/// How far the thread of a fence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// On the way.
    Parking,
    /// Nothing runs.
    Parked,
    /// Not parked, and will not be.
    Failed,
}

/// How far it is, to be waited for.
#[derive(Debug)]
pub(crate) struct Progress {
    stage: Mutex<Stage>,
    moved: Condvar,
}

impl Progress {
    fn new() -> Arc<Self> {
        Arc::new(Self { stage: Mutex::new(Stage::Parking), moved: Condvar::new() })
    }

    fn set(&self, stage: Stage) {
        *self.stage.lock() = stage;
        self.moved.notify_all();
    }

    /// Nothing runs any more.
    pub(crate) fn parked(&self) {
        self.set(Stage::Parked);
    }

    fn wait(&self, patience: Duration) -> Stage {
        let until = Instant::now() + patience;
        let mut stage = self.stage.lock();
        while *stage == Stage::Parking && !self.moved.wait_until(&mut stage, until).timed_out() {}
        *stage
    }
}

/// An application that is fenced, or being fenced.
pub(crate) struct Fence {
    of: Instance,
    /// None: it is stopped, not parked.
    thread: Option<(Sender<()>, thread::JoinHandle<()>)>,
    progress: Arc<Progress>,
}

impl Fence {
    fn lift(self, guard: &Guard) {
        if let Some((stop, thread)) = self.thread {
            drop(stop);
            let _ = thread.join();
        }
        guard.go_on(&self.of);
    }
}

/// Holds what is parked until told otherwise.
fn keep(app: &App, kept: Kept, stopped: &Receiver<()>) {
    let _ = stopped.recv();
    let Kept { parked, held, cut } = kept;
    drop(held);
    if let Err(cause) = parked.release()
        && app.instance().is_some()
    {
        eprintln!("holod: {}: {cause}", app.name);
    }
    drop(cut);
}

impl App {
    /// Is it fenced, or about to be?
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fence.lock().is_some()
    }

    /// None of the instance's threads runs when this returns, until [`Self::lift_fence`]. What cannot be parked within
    /// `patience` is stopped.
    pub fn put_fence(self: &Arc<Self>, patience: Duration) {
        let mut fence = self.fence.lock();
        let Some(of) = self.living() else { return };
        if self.instance().is_none() {
            return self.guard.halt(&of);
        }
        if let Some(found) = fence.take_if(|found| found.of != of) {
            found.lift(&self.guard);
        }
        if fence.is_none() {
            *fence = Some(self.park(&of, patience));
        }
        let stage = fence.as_ref().map_or(Stage::Failed, |fence| fence.progress.wait(patience));
        if stage != Stage::Parked {
            self.guard.halt(&of);
            eprintln!(
                "holod: {}: stopped, since it could not be parked and another node may run it soon",
                self.name
            );
        }
    }

    fn park(self: &Arc<Self>, of: &Instance, patience: Duration) -> Fence {
        let (stop, stopped) = channel();
        let progress = Progress::new();
        let (app, told, instance) = (Arc::clone(self), Arc::clone(&progress), of.clone());
        let thread = thread::spawn(move || {
            let until = Instant::now() + patience;
            let cut = app.cut.try_lock_for(patience);
            let left = until.saturating_duration_since(Instant::now());
            let parked = cut.map(|cut| barrier::park(&app.members, left).map(|parked| (parked, cut)));
            match parked {
                Some(Ok((parked, cut))) => {
                    let held = Held::start(parked.pages(), &app.guard, &instance);
                    told.parked();
                    keep(&app, Kept { parked, held, cut }, &stopped);
                }
                Some(Err(cause)) => {
                    eprintln!("holod: {}: cannot be parked: {cause}", app.name);
                    told.set(Stage::Failed);
                }
                None => told.set(Stage::Failed),
            }
        });
        Fence { of: of.clone(), thread: Some((stop, thread)), progress }
    }

    /// Lets a fenced instance run again.
    pub fn lift_fence(&self) {
        let fence = self.fence.lock().take();
        match (fence, self.living()) {
            (Some(fence), _) => fence.lift(&self.guard),
            // One that an earlier agent left stopped.
            (None, Some(of)) => self.guard.go_on(&of),
            (None, None) => {}
        }
    }

    /// Takes a last epoch and leaves the application parked. On an error it is parked too, or runs on: lift the fence.
    ///
    /// # Errors
    /// Why there is no such epoch.
    pub fn last_epoch(self: &Arc<Self>) -> Result<u64, Failure> {
        let failed = |what: &str| Failure::new(ErrorKind::Failed, format!("{}: {what}", self.name));
        let (tell, told) = channel();
        let mut fence = self.fence.lock();
        if fence.is_some() {
            return Err(Failure::new(ErrorKind::Refused, format!("{} is parked already", self.name)));
        }
        let (of, _) = self.instance().ok_or_else(|| failed("does not run on this node"))?;
        let (stop, stopped) = channel();
        let progress = Progress::new();
        let (app, moved, instance) = (Arc::clone(self), Arc::clone(&progress), of.clone());
        let thread = thread::spawn(move || {
            let mut kept = None;
            let taken = dump::last(&app, &instance, &mut kept, &moved);
            if kept.is_none() {
                moved.set(Stage::Failed);
            }
            let _ = tell.send(taken);
            if let Some(kept) = kept {
                keep(&app, kept, &stopped);
            }
        });
        *fence = Some(Fence { of, thread: Some((stop, thread)), progress });
        drop(fence);
        let taken = told.recv().map_err(|_| failed("the last epoch was given up"))?;
        taken.map(|meta| meta.epoch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holo_abi::control::cut;
    use holo_rm::tree::start_time;
    use std::process::Command;

    // Goal: threads that gave up waiting, since this agent was held up, do not run on as if they were parked.
    // Method: a process that looks parked, and a page that says that its threads gave up.
    #[test]
    fn what_runs_on_is_stopped() {
        let dir = std::env::temp_dir().join(format!("holo-held-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let guard = Arc::new(Guard::open(&dir).unwrap());
        let page = Arc::new(Page::create().unwrap());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let of = Instance { real_pid: pid, started: start_time(pid).unwrap(), ..Instance::default() };
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        page.control().header.cut.store(cut::word(1, cut::PARK), Ordering::SeqCst);
        let held = Held::start(vec![Arc::clone(&page)], &guard, &of);
        thread::sleep(4 * BEAT);
        assert!(!held.is_lost() && state() != 'T');
        page.control().header.cut.store(cut::word(1, cut::ABORTED), Ordering::SeqCst);
        let until = Instant::now() + Duration::from_secs(5);
        while state() != 'T' {
            assert!(Instant::now() < until, "it runs on");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(held.is_lost());
        // It stays so, whatever is told to the guard, until the fence is lifted.
        thread::sleep(4 * BEAT);
        assert_eq!(state(), 'T');
        drop(held);
        guard.go_on(&of);
        assert_ne!(state(), 'T');
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
