//! The process synchronisation barrier: parks every thread of every process of an application, or none.

mod cut;
mod still;
mod thread;

use crate::face;
use crate::filters::{self, Hindrance};
use crate::page::{Page, wait};
use crate::proc_file;
use crate::starters::{Seen, is_loading, is_starting, wait_for_starters};
use crate::stopped::Stopped;
use crate::tree::{Census, Seat, stat};
use cut::Cut;
use holo_abi::PARK_SIGNAL;
use holo_abi::control::{SLOTS_MAX, cut as word};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
pub use still::Still;
pub(crate) use thread::tasks;
use thread::{Precise, signal, thread_state};

/// How long threads are awaited before it is looked anew who is there.
const LOOK_AGAIN: Duration = Duration::from_micros(200);
/// How often it is looked meanwhile, where there are many.
const GLANCE: Duration = Duration::from_micros(30);

/// Why the barrier was not reached; the application runs on.
#[derive(Debug, thiserror::Error)]
pub enum BarrierError {
    /// Some threads did not park in time.
    #[error("thread {tid} of {threads} threads did not park within {waited_ms} ms (it is in {wchan})")]
    Deadline {
        /// All threads.
        threads: usize,
        /// The deadline.
        waited_ms: u64,
        /// One of them.
        tid: i32,
        /// Where the kernel has it.
        wchan: String,
    },
    /// A parked thread gave up on the agent.
    #[error("the parked threads waited too long for the agent and ran on")]
    GivenUp,
    /// The process ended.
    #[error("process {pid}: {source}")]
    Gone {
        /// Its pid.
        pid: i32,
        /// Cause.
        source: io::Error,
    },
    /// libholo has not started yet, or could not take any way in.
    #[error(
        "process {pid} ({name}) does not run under holo: it is static or set-user-id, is still starting, or holo found no \
         way in (see `holo doctor`)"
    )]
    NotReady {
        /// Its pid.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// The kernel gives none of its descriptors.
    #[error(
        "process {pid} ({name}) goes on after its first thread has ended (`pthread_exit` in `main`), which takes Linux 6.9"
    )]
    Headless {
        /// Its pid.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// It would be stopped by our signals, and its tracer told.
    #[error("process {pid} ({name}) is traced by {tracer}")]
    Traced {
        /// Its pid.
        pid: i32,
        /// Its name.
        name: String,
        /// Whose.
        tracer: i32,
    },
    /// Its calls are filtered, and ours could end it.
    #[error("process {pid} ({name}) has a seccomp filter of its own, or is about to have one, or a tracer")]
    Filtered {
        /// Its pid.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// More threads than slots.
    #[error("process {pid} has {threads} threads, more than {SLOTS_MAX}")]
    TooMany {
        /// Its pid.
        pid: i32,
        /// Threads.
        threads: usize,
    },
}

/// All threads of an application, parked. Dropping it lets them go without keeping what was read.
pub struct Parked {
    cuts: Vec<Cut>,
    /// Its processes, in the order of the census.
    pub processes: Vec<Still>,
    stopped: Vec<Stopped>,
    /// Of which the first thread had ended before.
    headless: HashSet<i32>,
    /// When the order was given.
    pub since: Instant,
    released: bool,
}

/// Parks every thread of every process within `deadline`.
///
/// # Errors
/// [`BarrierError`]; then all threads run on.
pub fn park(census: &dyn Census, deadline: Duration) -> Result<Parked, BarrierError> {
    match park_once(census, deadline) {
        // It began after it had been looked who does; it is awaited while the others run.
        Err(BarrierError::NotReady { pid, .. }) if is_loading(pid) => park_once(census, deadline),
        done => done,
    }
}

fn park_once(census: &dyn Census, deadline: Duration) -> Result<Parked, BarrierError> {
    let Seen { stopped, headless } = wait_for_starters(census, deadline / 2)?;
    let _precise = Precise::sleeps();
    let since = Instant::now();
    let mut parked = Parked {
        cuts: Vec::new(),
        processes: Vec::new(),
        stopped: Vec::new(),
        headless,
        since,
        released: false,
    };
    let mut signalled = HashSet::new();
    loop {
        let seats = census.seats();
        let first = seats.first().ok_or_else(|| gone(0, io::Error::from_raw_os_error(libc::ESRCH)))?;
        let late = since.elapsed() > Duration::from_millis(2);
        let (mut missing, mut awaited, mut threads) = (None, 0, 0);
        // Before it is looked who is there: who comes later counts.
        let arrivals = parked.arrivals();
        parked.processes.clear();
        for seat in &seats {
            let Some(page) = seat.page.as_ref().filter(|_| !is_starting(seat)) else {
                missing.get_or_insert(Missing { pid: seat.pid, tid: None, starting: true });
                continue;
            };
            let cut = match parked.cuts.iter().position(|cut| Arc::ptr_eq(&cut.page, page)) {
                Some(index) => index,
                None => {
                    parked.cuts.push(Cut::order(page));
                    parked.cuts.len() - 1
                }
            };
            let (pid, name) = (seat.pid, || name_of(seat.pid));
            match filters::hindrance(page, pid) {
                Some(Hindrance::Filter) => return Err(BarrierError::Filtered { pid, name: name() }),
                Some(Hindrance::Tracer(tracer)) => {
                    return Err(BarrierError::Traced { pid, name: name(), tracer });
                }
                None => {}
            }
            // Looked at after they had parked: it has no others.
            let slots = parked.cuts[cut].arrived(seat.inner);
            if !slots.is_empty()
                && !parked.is_stopped(seat.pid)
                && let Some(seen) = stat(seat.pid).filter(|seen| seen.threads == slots.len())
            {
                threads += slots.len();
                let still = Still { slots, seen: Some(seen), ..Still::of(seat, page) };
                parked.processes.push(still);
                continue;
            }
            let Ok(mut live) = parked.tasks(seat.pid) else { continue };
            for tid in &live {
                if signalled.insert((seat.pid, *tid, Arc::as_ptr(page)))
                    && let Err(cause) = signal(seat.pid, *tid)
                    && cause.raw_os_error() != Some(libc::ESRCH)
                {
                    return Err(gone(seat.pid, cause));
                }
            }
            let slots = parked.cuts[cut].arrived(seat.inner);
            let (missed, is_stopped) = (slots.len() < live.len(), parked.is_stopped(seat.pid));
            if missed && !is_stopped && (stopped.contains(&seat.pid) || late && any_stopped(seat.pid, &live))
            {
                parked.stopped.push(Stopped::park(seat.pid, live.clone()));
            }
            if missed && late {
                // A first thread that has just ended is there still; it cannot park and need not.
                live.retain(|tid| !matches!(thread_state(seat.pid, *tid), None | Some('Z' | 'X')));
                if live.is_empty() {
                    continue;
                }
            }
            threads += live.len();
            if threads > SLOTS_MAX / 2 {
                return Err(BarrierError::TooMany { pid: seat.pid, threads });
            }
            if slots.len() < live.len() {
                awaited += live.len() - slots.len();
                missing = Some(Missing { pid: seat.pid, tid: None, starting: false });
            }
            let stopped = parked.is_stopped(seat.pid);
            parked.processes.push(Still { slots, stopped, ..Still::of(seat, page) });
        }
        if threads > SLOTS_MAX / 2 {
            return Err(BarrierError::TooMany { pid: first.pid, threads });
        }
        if parked.processes.is_empty() && missing.is_none() {
            return Err(gone(first.pid, io::Error::from_raw_os_error(libc::ESRCH)));
        }
        // What was listed may have made another thread or process since; only a list without news counts. One that was
        // stopped after it had parked, by another one of ours, serves no calls; there is nobody left who could do that.
        let before = arrivals == threads;
        if missing.is_none()
            && parked.is_all_of(&census.seats(), &signalled)
            && !parked.attach_stopped(before)
        {
            break;
        }
        for cut in &parked.cuts {
            cut.page.keep_alive();
        }
        if since.elapsed() >= deadline {
            let missing = missing.unwrap_or(Missing { pid: first.pid, tid: None, starting: true });
            return Err(parked.named(missing).error(threads, deadline));
        }
        if missing.is_some() {
            parked.cuts.iter().for_each(Cut::free_left);
            parked.wait_for(awaited, arrivals);
        }
    }
    census.settled();
    parked.ask_stopped();
    for process in &mut parked.processes {
        process.turn()?;
    }
    Ok(parked)
}

fn gone(pid: i32, source: io::Error) -> BarrierError {
    BarrierError::Gone { pid, source }
}

/// Why a process has no thread that parks.
pub(crate) fn not_ready(pid: i32) -> BarrierError {
    BarrierError::NotReady { pid, name: name_of(pid) }
}

/// A thread, or a whole process, that has not parked.
struct Missing {
    pid: i32,
    /// None: it was not asked which; the first stands for all.
    tid: Option<i32>,
    starting: bool,
}

impl Missing {
    fn error(&self, threads: usize, deadline: Duration) -> BarrierError {
        if self.starting {
            return not_ready(self.pid);
        }
        let (pid, tid) = (self.pid, self.tid.unwrap_or(self.pid));
        let wchan = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
        let stopped = thread_state(pid, tid) == Some('T');
        BarrierError::Deadline {
            threads,
            waited_ms: deadline.as_millis() as u64,
            tid,
            wchan: match wchan.split_whitespace().next() {
                _ if stopped => "the stopped state".into(),
                Some("running") | None | Some("") if blocks_park(pid, tid) => {
                    "user code with the park signal blocked".into()
                }
                Some("running") | None | Some("") => {
                    "user code, and was given too little processor time".into()
                }
                Some(nr) => format!("system call {nr}"),
            },
        }
    }
}

pub(crate) fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn any_stopped(pid: i32, tids: &[i32]) -> bool {
    tids.iter().any(|tid| thread_state(pid, *tid) == Some('T'))
}

/// Thread id, as the application sees it, of the thread in a slot.
#[must_use]
pub fn tid_in(page: &Page, index: usize) -> i32 {
    // SAFETY: filled in by the parked thread.
    unsafe { (*page.slot(index)).tid as i32 }
}

/// The id that a thread has in its own, innermost namespace.
#[must_use]
pub fn inner_tid(pid: i32, tid: i32) -> i32 {
    status_of(pid, tid, "NSpid:").and_then(|ids| ids.split_whitespace().last()?.parse().ok()).unwrap_or(tid)
}

/// A line of a thread's `status`, without its name.
fn status_of(pid: i32, tid: i32, name: &str) -> Option<String> {
    let status = proc_file::read(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    String::from_utf8_lossy(&status).lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

/// Does a thread block the signal that parks it?
fn blocks_park(pid: i32, tid: i32) -> bool {
    let blocked = status_of(pid, tid, "SigBlk:").and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    blocked.is_some_and(|mask| mask & 1 << (PARK_SIGNAL - 1) != 0)
}

impl Parked {
    /// Pages of its processes.
    #[must_use]
    pub fn pages(&self) -> Vec<Arc<Page>> {
        self.cuts.iter().map(|cut| Arc::clone(&cut.page)).collect()
    }

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.processes.iter().map(|process| process.slots.len()).sum()
    }

    /// Whether these are all that live, and every thread of theirs had its signal.
    fn is_all_of(&self, seats: &[Seat], signalled: &HashSet<(i32, i32, *const Page)>) -> bool {
        seats.iter().all(|seat| {
            let Some(page) = &seat.page else { return false };
            if self.processes.iter().any(|still| still.pid == seat.pid && still.seen.is_some()) {
                return true;
            }
            let known = |tid: &i32| signalled.contains(&(seat.pid, *tid, Arc::as_ptr(page)));
            match self.tasks(seat.pid) {
                Ok(tasks) => {
                    let still = self.processes.iter().any(|still| still.pid == seat.pid);
                    tasks.iter().all(known) && (still || tasks.iter().all(|tid| is_dead(seat.pid, *tid)))
                }
                Err(_) => true,
            }
        })
    }

    /// Threads of a process, without a first one of which it is known that it has ended: a signal would wait for it for ever.
    fn tasks(&self, pid: i32) -> io::Result<Vec<i32>> {
        let mut all = tasks(pid)?;
        // One that has executed a program has a first thread again.
        let is_headless = self.headless.contains(&pid) && face::has_ended(pid);
        all.retain(|tid| *tid != pid || !is_headless);
        Ok(all)
    }

    fn is_stopped(&self, pid: i32) -> bool {
        self.stopped.iter().any(|stopped| stopped.pid == pid)
    }

    /// Takes processes that were stopped when they had parked; whether there were any. What was seen of them was seen `after`
    /// all had parked, or may be old.
    fn attach_stopped(&mut self, after: bool) -> bool {
        let before = self.stopped.len();
        for process in self.processes.iter_mut().filter(|process| !process.stopped) {
            if !after || process.seen.is_none() {
                process.seen = stat(process.pid);
            }
            if process.seen.is_some_and(|seen| seen.state == 'T')
                && let Ok(tids) = tasks(process.pid)
            {
                process.stopped = true;
                self.stopped.push(Stopped::park(process.pid, tids));
            }
        }
        self.stopped.len() > before
    }

    /// Who is stopped, now that nobody of the application can stop another or let it go on: one that was when we looked
    /// may run again, with the next stop signal on its way.
    fn ask_stopped(&mut self) {
        let alive = || self.cuts.iter().for_each(|cut| cut.page.keep_alive());
        for (stopped, now) in self.stopped.iter().zip(Stopped::ask(&self.stopped, &alive)) {
            if let Some(process) = self.processes.iter_mut().find(|process| process.pid == stopped.pid) {
                process.stopped = now;
            }
        }
    }

    /// Lets all go; on how many pages the cut still stood.
    fn end(&mut self, state: u64) -> usize {
        self.stopped.iter().for_each(Stopped::hold);
        let won = self.cuts.iter().map(|cut| cut.end(state)).filter(|won| *won).count();
        self.cuts.iter().for_each(Cut::let_go);
        // Not before: those that are parked are to give up soon if we die here.
        self.cuts.iter().for_each(|cut| cut.page.set_patience(false));
        self.stopped.iter().for_each(Stopped::follow);
        self.stopped.clear();
        won
    }

    /// Which of its threads has not parked.
    fn named(&self, missing: Missing) -> Missing {
        let Some(process) = self.processes.iter().find(|process| process.pid == missing.pid) else {
            return missing;
        };
        let here: HashSet<i32> = process.slots.iter().map(|index| tid_in(&process.page, *index)).collect();
        let live = self.tasks(missing.pid).unwrap_or_default();
        let tid = live.into_iter().find(|tid| !here.contains(&inner_tid(missing.pid, *tid)));
        Missing { tid: tid.or(missing.tid), ..missing }
    }

    /// How many threads have arrived.
    fn arrivals(&self) -> usize {
        let arrived = |cut: &Cut| cut.page.control().header.arrived.load(Ordering::SeqCst);
        self.cuts.iter().map(|cut| arrived(cut).wrapping_sub(cut.before) as usize).sum()
    }

    /// Until so many threads have arrived since, or a moment has passed.
    ///
    /// To be woken by each of them would take the processors from those that are still on their way: of many, it is looked
    /// from time to time.
    fn wait_for(&self, awaited: usize, since: usize) {
        match self.cuts.as_slice() {
            [only] if awaited < 3 => {
                // The word moves with every arrival.
                let arrived = &only.page.control().header.arrived;
                let now = only.before.wrapping_add(since as u32);
                let _ = wait(arrived, LOOK_AGAIN, |next| next != now);
            }
            _ => {
                let until = Instant::now() + LOOK_AGAIN;
                while self.arrivals() < since + awaited.max(1) && Instant::now() < until {
                    std::thread::sleep(GLANCE);
                }
            }
        }
    }

    /// Lets all threads go.
    ///
    /// # Errors
    /// [`BarrierError::GivenUp`]: they ran before, so what was read since the park is void.
    pub fn release(mut self) -> Result<Duration, BarrierError> {
        self.released = true;
        let won = self.end(word::RELEASE);
        if won == self.cuts.len() { Ok(self.since.elapsed()) } else { Err(BarrierError::GivenUp) }
    }
}

fn is_dead(pid: i32, tid: i32) -> bool {
    matches!(thread_state(pid, tid), None | Some('Z' | 'X'))
}

impl Drop for Parked {
    fn drop(&mut self) {
        if !self.released {
            self.end(word::ABORTED);
        }
    }
}
