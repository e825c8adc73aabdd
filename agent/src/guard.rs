//! The guard: what holds a lease when the agent is gone.
//!
//! The agent and a small process of the same program (`holod guard DIR`, in a session of its own) share a page of
//! memory, the file `<state_dir>/guard.page`. For each application with a lease it says which process it is, until when
//! it may run, and whether the agent holds it parked. Where neither is true any more, the guard stops the process
//! (`SIGSTOP`), whatever became of the agent; where it is true again, it lets it go on. It decides nothing else: whether
//! the instance is of the past and must be killed is found out by the agent that is started next.
//!
//! | may run now | held by a living agent | stopped by us | then |
//! |---|---|---|---|
//! | yes | | yes | `SIGCONT` |
//! | no | yes | | nothing: its threads are parked |
//! | no | no | no | `SIGSTOP` |
//!
//! The guard ends when no agent lives and nothing is left to be watched.

use crate::family;
use crate::record::Instance;
use holo_rm::tree::start_time;
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// First word of the page: its name and version.
const MAGIC: u64 = u64::from_le_bytes(*b"HOLOGD01");
/// Applications with a lease on one node; of more the agent says that they are not guarded.
const SLOTS: usize = 511;
/// A park is believed so long after its last sign of life: less than parked threads wait for the agent.
const HELD_MS: u64 = 300;
/// What a living agent is given to park by itself: less than a fence may take.
const GRACE_MS: u64 = 60;
/// How late the guard looks at the clock.
const TICK: Duration = Duration::from_millis(10);
/// No lease here ends.
const FOR_EVER: u64 = u64::MAX;

/// One application, or free.
#[repr(C)]
struct Slot {
    /// Its process; 0: free.
    pid: AtomicU64,
    /// Start of the process.
    started: AtomicU64,
    /// It may run until this time of `CLOCK_BOOTTIME`, milliseconds.
    until_ms: AtomicU64,
    /// The agent held it parked at this time; 0: does not hold it.
    held_ms: AtomicU64,
    /// The agent wants it stopped.
    halt: AtomicU64,
    /// We stopped it.
    stopped: AtomicU64,
    _reserved: [u64; 2],
}

#[repr(C)]
struct Table {
    magic: AtomicU64,
    /// The agent's process and its start.
    agent_pid: AtomicU64,
    agent_started: AtomicU64,
    _reserved: [u64; 5],
    slots: [Slot; SLOTS],
}

const _: () = assert!(size_of::<Slot>() == 64 && size_of::<Table>() == 64 * (SLOTS + 1));

/// Milliseconds of the clock that leases are counted in.
#[must_use]
pub fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The page, mapped.
pub struct Guard {
    table: *mut Table,
    dir: PathBuf,
    /// Slots are taken by one thread at a time.
    taking: Mutex<()>,
    _file: File,
}

// SAFETY: the table consists of atomics and stays mapped until the guard is dropped.
unsafe impl Send for Guard {}
// SAFETY: as above.
unsafe impl Sync for Guard {}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this size.
        unsafe { libc::munmap(self.table.cast(), size_of::<Table>()) };
    }
}

impl Guard {
    /// Opens the page of a state directory; what is not a page of this version is made anew.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("guard.page");
        let at = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
        let options =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = options().map_err(at)?;
        if ![0, size_of::<Table>() as u64].contains(&file.metadata().map_err(at)?.len()) {
            // A new file: an older version's guard may still watch the old one.
            std::fs::remove_file(&path).map_err(at)?;
            file = options().map_err(at)?;
        }
        file.set_len(size_of::<Table>() as u64).map_err(at)?;
        // SAFETY: a shared mapping of a file of this size.
        let table = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Table>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if table == libc::MAP_FAILED {
            return Err(at(io::Error::last_os_error()));
        }
        let guard = Self { table: table.cast(), dir: dir.to_owned(), taking: Mutex::new(()), _file: file };
        if guard.table().magic.swap(MAGIC, SeqCst) != MAGIC {
            guard.table().slots.iter().for_each(|slot| slot.pid.store(0, SeqCst));
        }
        Ok(guard)
    }

    fn table(&self) -> &Table {
        // SAFETY: mapped as long as `self`; only atomics are read.
        unsafe { &*self.table }
    }

    fn find(&self, of: &Instance) -> Option<&Slot> {
        self.table().slots.iter().find(|slot| slot.is_of(of))
    }

    fn find_or_make(&self, of: &Instance) -> Option<&Slot> {
        if let Some(slot) = self.find(of) {
            return Some(slot);
        }
        let _one = self.taking.lock();
        if let Some(slot) = self.find(of) {
            return Some(slot);
        }
        let free = |slot: &&Slot| slot.is_over();
        let slot = self.table().slots.iter().find(free)?;
        slot.pid.store(0, SeqCst);
        slot.started.store(of.started, SeqCst);
        slot.until_ms.store(FOR_EVER, SeqCst);
        for word in [&slot.held_ms, &slot.halt, &slot.stopped] {
            word.store(0, SeqCst);
        }
        slot.pid.store(of.real_pid as u64, SeqCst);
        Some(slot)
    }

    /// The instance may run until then; none: without limit. False if there is no room to guard it.
    pub fn lease(&self, of: &Instance, until_ms: Option<u64>) -> bool {
        let slot = match until_ms {
            // Nobody needs to watch what has no limit.
            None => match self.find(of) {
                Some(slot) => slot,
                None => return true,
            },
            Some(_) => match self.find_or_make(of) {
                Some(slot) => slot,
                None => return false,
            },
        };
        slot.until_ms.store(until_ms.unwrap_or(FOR_EVER), SeqCst);
        slot.settle(GRACE_MS);
        true
    }

    /// The agent holds the instance parked now; to be repeated.
    pub fn hold(&self, of: &Instance) {
        if let Some(slot) = self.find_or_make(of) {
            slot.held_ms.store(now_ms(), SeqCst);
        }
    }

    /// Another process stands for the application: what was said of `ended` holds for it.
    pub fn succeed(&self, ended: &Instance, heir: &Instance) {
        let Some(until) = self.find(ended).map(|slot| slot.until_ms.load(SeqCst)) else { return };
        if until != FOR_EVER {
            self.lease(heir, Some(until));
        }
    }

    /// Stops the instance until [`Self::go_on`], since it cannot be parked.
    pub fn halt(&self, of: &Instance) {
        match self.find_or_make(of) {
            Some(slot) => {
                slot.halt.store(1, SeqCst);
                slot.settle(0);
            }
            None => family::stop(of.real_pid),
        }
    }

    /// The agent neither holds nor stops the instance any more.
    pub fn go_on(&self, of: &Instance) {
        match self.find(of) {
            Some(slot) => {
                slot.halt.store(0, SeqCst);
                slot.held_ms.store(0, SeqCst);
                slot.settle(GRACE_MS);
            }
            // There was no room for it when it was stopped.
            None if self.table().slots.iter().all(|slot| slot.pid.load(SeqCst) != 0) => {
                family::go_on(of.real_pid);
            }
            None => {}
        }
    }

    /// Keeps a guard process running as long as this agent does.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn keep_watch(self: &Arc<Self>) -> io::Result<()> {
        let own = std::process::id();
        let table = self.table();
        table.agent_started.store(start_time(own as i32).unwrap_or(0), SeqCst);
        table.agent_pid.store(u64::from(own), SeqCst);
        let mut child = self.spawn()?;
        let guard = Arc::clone(self);
        thread::spawn(move || {
            loop {
                // One that an earlier agent started goes on; then ours ends at once and is tried again, seldom.
                let _ = child.wait();
                thread::sleep(Duration::from_millis(500));
                match guard.spawn() {
                    Ok(new) => child = new,
                    Err(cause) => eprintln!("holod: the guard cannot be started: {cause}"),
                }
            }
        });
        Ok(())
    }

    fn spawn(&self) -> io::Result<std::process::Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("guard").arg(&self.dir).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: one call that is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                Ok(())
            });
        }
        command.spawn()
    }

    fn agent_lives(&self) -> bool {
        let table = self.table();
        start_time(table.agent_pid.load(SeqCst) as i32) == Some(table.agent_started.load(SeqCst))
    }
}

impl Slot {
    fn is_of(&self, of: &Instance) -> bool {
        self.pid.load(SeqCst) == of.real_pid as u64 && self.started.load(SeqCst) == of.started
    }

    /// Free, or its process has ended.
    fn is_over(&self) -> bool {
        let pid = self.pid.load(SeqCst);
        pid == 0 || start_time(pid as i32) != Some(self.started.load(SeqCst))
    }

    /// Stops the process or lets it go on, as the words say.
    fn settle(&self, grace_ms: u64) {
        // Agent and guard may do so at once: whoever let it go on looks again.
        for _ in 0..4 {
            if !self.settle_once(grace_ms) {
                break;
            }
        }
    }

    /// True if it was let go on.
    fn settle_once(&self, grace_ms: u64) -> bool {
        let pid = self.pid.load(SeqCst);
        if pid == 0 {
            return false;
        }
        let now = now_ms();
        let held = self.held_ms.load(SeqCst);
        let halt = self.halt.load(SeqCst) != 0;
        let ran_out = now >= self.until_ms.load(SeqCst).saturating_add(grace_ms);
        let parked = held != 0 && now < held + HELD_MS;
        let must_stop = halt || (!parked && (held != 0 || ran_out));
        let stopped = self.stopped.load(SeqCst) != 0;
        if must_stop && !self.is_over() {
            if stopped {
                // Again and again: a shell's `fg`, or anybody's signal, lets it go on.
                family::stop_again(pid as i32);
            } else {
                family::stop(pid as i32);
            }
            self.stopped.store(1, SeqCst);
        }
        let goes_on = !must_stop && stopped && !self.is_over();
        if goes_on {
            self.stopped.store(0, SeqCst);
            family::go_on(pid as i32);
        }
        goes_on
    }

    /// Is there a limit to be watched?
    fn is_limited(&self) -> bool {
        let words = [&self.held_ms, &self.halt, &self.stopped];
        self.until_ms.load(SeqCst) != FOR_EVER || words.iter().any(|word| word.load(SeqCst) != 0)
    }
}

/// The guard process: watches until nothing is left to be watched.
///
/// # Errors
/// The page cannot be used.
pub fn watch(dir: &Path) -> io::Result<()> {
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("guard.lock"))?;
    // SAFETY: our own descriptor.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
        // Another guard watches. Ended at once, we would be started again and again.
        thread::sleep(Duration::from_secs(2));
        return Ok(());
    }
    let guard = Guard::open(dir)?;
    let mut alive = guard.agent_lives();
    for count in 0u64.. {
        let mut busy = false;
        for slot in guard.table().slots.iter().filter(|slot| slot.pid.load(SeqCst) != 0) {
            busy = true;
            if slot.is_limited() {
                slot.settle(if alive { GRACE_MS } else { 0 });
            }
            if count % 100 == 0 && slot.is_over() {
                slot.pid.store(0, SeqCst);
            }
        }
        // An agent that died is seen by what it does not renew; this is for the grace and the end.
        if count % 10 == 0 {
            alive = guard.agent_lives();
            if !alive && !busy {
                break;
            }
        }
        thread::sleep(if busy { TICK } else { 10 * TICK });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn state(pid: i32) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }

    fn becomes(pid: i32, wanted: char) {
        let found = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            (state(pid) == 'T') == (wanted == 'T')
        });
        assert!(found, "process {pid} is {} and not {wanted}", state(pid));
    }

    // Goal: each of many applications has a slot of its own, however many ask at once.
    #[test]
    fn slots_are_not_shared() {
        let dir = std::env::temp_dir().join(format!("holo-slots-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let guard = Guard::open(&dir).unwrap();
        let mut children: Vec<_> =
            (0..16).map(|_| Command::new("sleep").arg("60").spawn().unwrap()).collect();
        let of =
            |pid: i32| Instance { real_pid: pid, started: start_time(pid).unwrap(), ..Instance::default() };
        let all: Vec<Instance> = children.iter().map(|child| of(child.id() as i32)).collect();
        for _ in 0..100 {
            guard.table().slots.iter().for_each(|slot| slot.pid.store(0, SeqCst));
            let together = std::sync::Barrier::new(all.len());
            thread::scope(|scope| {
                for of in &all {
                    scope.spawn(|| {
                        together.wait();
                        assert!(guard.lease(of, Some(now_ms() + 60_000)));
                    });
                }
            });
            assert!(all.iter().all(|of| guard.find(of).is_some()), "one took another's slot");
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    // Goal: a lease that nobody renews stops the process, a new one lets it go on; so does a park that nobody keeps.
    #[test]
    fn a_lease_is_held_without_the_agent() {
        let dir = std::env::temp_dir().join(format!("holo-guard-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let guard = Guard::open(&dir).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let of = Instance { real_pid: pid, started: start_time(pid).unwrap(), ..Instance::default() };
        let watched = dir.clone();
        // First, or it would find nothing to be watched and end.
        assert!(guard.lease(&of, Some(now_ms() + 200)));
        let watcher = thread::spawn(move || watch(&watched));
        assert_ne!(state(pid), 'T');
        becomes(pid, 'T');
        // Somebody means well.
        // SAFETY: our own child.
        unsafe { libc::kill(pid, libc::SIGCONT) };
        becomes(pid, 'T');
        assert!(guard.lease(&of, Some(now_ms() + 60_000)));
        becomes(pid, 'S');
        guard.hold(&of);
        assert_ne!(state(pid), 'T');
        becomes(pid, 'T');
        guard.go_on(&of);
        becomes(pid, 'S');
        guard.halt(&of);
        becomes(pid, 'T');
        guard.go_on(&of);
        becomes(pid, 'S');
        child.kill().unwrap();
        child.wait().unwrap();
        // No agent lives and nothing is left: it ends by itself.
        watcher.join().unwrap().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
