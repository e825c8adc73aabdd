//! The process synchronisation barrier: parks every thread of a process, or none.

use crate::page::{Page, wait};
use holo_abi::control::{SLOTS_MAX, cut, slot};
use holo_abi::{PARK_COOKIE, PARK_SIGNAL};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Why the barrier was not reached; the application runs on.
#[derive(Debug, thiserror::Error)]
pub enum BarrierError {
    /// Some threads did not park in time.
    #[error("{missing} of {threads} threads did not park within {waited_ms} ms (thread {tid} is in {wchan})")]
    Deadline {
        /// Threads that were not there.
        missing: usize,
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
    #[error("process {pid} is not ready: libholo is still starting, or found no way in (see `holo doctor`)")]
    NotReady {
        /// Its pid.
        pid: i32,
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

/// All threads of a process, parked. Dropping it lets them go without keeping what was read.
pub struct Parked<'a> {
    page: &'a Page,
    word: u64,
    /// Slots in use, the thread-group leader's first if it lives.
    pub slots: Vec<usize>,
    /// When the order was given.
    pub since: Instant,
    released: bool,
}

fn tasks(pid: i32) -> io::Result<Vec<i32>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            out.push(tid);
        }
    }
    Ok(out)
}

/// State letter of a thread; `None` when it is gone.
fn thread_state(pid: i32, tid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn signal(pid: i32, tid: i32) -> io::Result<()> {
    #[repr(C)]
    struct Info {
        signo: i32,
        errno: i32,
        code: i32,
        pad: i32,
        pid: u32,
        uid: u32,
        value: u64,
        rest: [u64; 12],
    }
    let info = Info {
        signo: PARK_SIGNAL,
        errno: 0,
        code: libc::SI_QUEUE,
        pad: 0,
        pid: std::process::id(),
        // SAFETY: no memory is passed.
        uid: unsafe { libc::getuid() },
        value: PARK_COOKIE,
        rest: [0; 12],
    };
    // SAFETY: a complete siginfo.
    let ret = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, PARK_SIGNAL, &raw const info) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Parks every thread of `pid` within `deadline`.
///
/// # Errors
/// [`BarrierError`]; then all threads run on.
pub fn park(page: &Page, pid: i32, deadline: Duration) -> Result<Parked<'_>, BarrierError> {
    let header = &page.control().header;
    let since = Instant::now();
    // Without its handler the signal would end the process.
    if header.ways.load(Ordering::SeqCst) == 0 {
        return Err(BarrierError::NotReady { pid });
    }
    let generation = cut::generation(header.cut.load(Ordering::SeqCst)) + 1;
    let word = cut::word(generation, cut::PARK);
    page.keep_alive();
    header.cut.store(word, Ordering::SeqCst);
    let mut parked = Parked { page, word, slots: Vec::new(), since, released: false };
    let gone = |source| BarrierError::Gone { pid, source };
    let mut signalled = HashSet::new();
    loop {
        let arrived = header.arrived.load(Ordering::SeqCst);
        let mut live = tasks(pid).map_err(gone)?;
        if live.len() > SLOTS_MAX / 2 {
            return Err(BarrierError::TooMany { pid, threads: live.len() });
        }
        for tid in &live {
            if signalled.insert(*tid)
                && let Err(cause) = signal(pid, *tid)
                && cause.raw_os_error() != Some(libc::ESRCH)
            {
                return Err(gone(cause));
            }
        }
        parked.collect(generation);
        if parked.slots.len() < live.len() && since.elapsed() > Duration::from_millis(2) {
            // A leader that called pthread_exit stays as a zombie; it cannot park and need not.
            live.retain(|tid| !matches!(thread_state(pid, *tid), None | Some('Z' | 'X')));
            if live.is_empty() {
                return Err(gone(io::Error::from_raw_os_error(libc::ESRCH)));
            }
        }
        // A thread that was listed may have made another since; only a list without news counts.
        if parked.slots.len() >= live.len() {
            let now = tasks(pid).map_err(gone)?;
            if now.iter().all(|tid| signalled.contains(tid)) && parked.slots.len() >= live.len() {
                break;
            }
            continue;
        }
        if since.elapsed() >= deadline {
            let here: HashSet<i32> = parked.slots.iter().map(|index| parked.tid(*index)).collect();
            let tid = live.iter().copied().find(|tid| !here.contains(&inner_tid(pid, *tid))).unwrap_or(pid);
            let wchan = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
            return Err(BarrierError::Deadline {
                missing: live.len() - parked.slots.len(),
                threads: live.len(),
                waited_ms: deadline.as_millis() as u64,
                tid,
                wchan: match wchan.split_whitespace().next() {
                    Some("running") | None | Some("") => "user code with the park signal blocked".into(),
                    Some(nr) => format!("system call {nr}"),
                },
            });
        }
        // The word moves with every arrival.
        let _ = wait(&header.arrived, Duration::from_millis(1), |now| now != arrived);
    }
    // SAFETY: a plain word, constant since the process joined.
    let leader_tid = unsafe { (*page.header()).pid } as i32;
    if let Some(at) = parked.slots.iter().position(|index| parked.tid(*index) == leader_tid) {
        parked.slots.swap(0, at);
    }
    Ok(parked)
}

/// The id that a thread has in its own, innermost namespace.
#[must_use]
pub fn inner_tid(pid: i32, tid: i32) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            line.split_whitespace().last()?.parse().ok()
        })
        .unwrap_or(tid)
}

impl Parked<'_> {
    fn collect(&mut self, generation: u64) {
        self.slots = self
            .page
            .used()
            .filter(|index| {
                self.page.state(*index).load(Ordering::SeqCst) == slot::PARKED
                    // SAFETY: filled in before the state was set.
                    && unsafe { (*self.page.slot(*index)).generation } == generation as u32
            })
            .collect();
    }

    /// Thread id, as the application sees it, of the thread in a slot.
    #[must_use]
    pub fn tid(&self, index: usize) -> i32 {
        // SAFETY: filled in by the parked thread.
        unsafe { (*self.page.slot(index)).tid as i32 }
    }

    /// Lets all threads go.
    ///
    /// # Errors
    /// [`BarrierError::GivenUp`]: they ran before, so what was read since the park is void.
    pub fn release(mut self) -> Result<Duration, BarrierError> {
        self.released = true;
        let cut = &self.page.control().header.cut;
        let done = cut::word(cut::generation(self.word), cut::RELEASE);
        let won = cut.compare_exchange(self.word, done, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        self.let_go();
        if won { Ok(self.since.elapsed()) } else { Err(BarrierError::GivenUp) }
    }

    fn let_go(&self) {
        for index in self.page.used() {
            let state = self.page.state(index);
            // SAFETY: a plain word, written before the state.
            let ours = unsafe { (*self.page.slot(index)).generation } == cut::generation(self.word) as u32;
            if ours && matches!(state.load(Ordering::SeqCst), slot::PARKED | slot::DONE | slot::CALL) {
                self.page.go(index);
            }
        }
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        if !self.released {
            let word = cut::word(cut::generation(self.word), cut::ABORTED);
            let cut = &self.page.control().header.cut;
            let _ = cut.compare_exchange(self.word, word, Ordering::SeqCst, Ordering::SeqCst);
            self.let_go();
        }
    }
}
