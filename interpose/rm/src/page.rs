//! The agent's side of a control page (`holo_abi::control`).

use holo_abi::control::{
    self, BATCH_CALLS, CONTROL_BYTES, Call, Control, Header, INODES_MAX, InodeName, Notice, SLOT_CALLS,
    SLOTS_MAX, Slot, object, slot,
};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Length of a tick of the parked threads' patience.
const TICK_NS: u64 = 25_000_000;
/// Ticks that a parked thread waits for a sign of life: half a second.
const TICKS_MAX: u32 = 20;
/// Ticks that a snapshot waits, ten seconds: it holds nobody up, and is lost on a busy machine otherwise.
const TICKS_SNAPSHOT: u32 = 400;

/// A mapped control page.
pub struct Page {
    at: *mut Control,
    fd: OwnedFd,
    hands: Mutex<()>,
}

// SAFETY: the page is shared memory; words are atomics or written by one side at a time, by protocol.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this size.
        unsafe { libc::munmap(self.at.cast(), CONTROL_BYTES) };
    }
}

impl Page {
    /// Makes a page in a memory file of its own, for as long as this agent lives.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create() -> io::Result<Self> {
        // SAFETY: a constant name.
        let raw = unsafe { libc::memfd_create(c"holo-control".as_ptr(), libc::MFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made.
        Self::init(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    /// Makes a page in a file, which a later agent can [`Self::open`].
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn create_at(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file =
            file.map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", path.display())))?;
        Self::init(file.into())
    }

    /// Opens the page of a process that joined an earlier agent.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` if it is not a page of this version.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != CONTROL_BYTES as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let page = Self::map(file.into())?;
        // SAFETY: plain words.
        let known = unsafe {
            (*page.header()).magic == control::MAGIC && (*page.header()).version == holo_abi::VERSION
        };
        if known { Ok(page) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn init(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: our own descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), CONTROL_BYTES as i64) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let page = Self::map(fd)?;
        let header = page.header();
        // SAFETY: nobody else has the page yet.
        unsafe {
            (*header).magic = control::MAGIC;
            (*header).version = holo_abi::VERSION;
            (*header).bytes = CONTROL_BYTES as u32;
            (*header).ticks_max = TICKS_MAX;
            (*header).tick = [0, TICK_NS];
        }
        Ok(page)
    }

    /// Maps an existing page.
    ///
    /// # Errors
    /// The kernel's, or a page that is not one.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: a shared mapping of a file of this size (a shorter one faults only if touched beyond).
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                CONTROL_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at: at.cast(), fd, hands: Mutex::new(()) })
    }

    /// The right to the scratch area and to the long list, for who uses them while others work with processes of the same
    /// page: in phases in which several processes are asked at once. Nobody takes it twice.
    pub fn hands(&self) -> MutexGuard<'_, ()> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The header, for single words.
    #[must_use]
    pub fn header(&self) -> *mut Header {
        // SAFETY: inside the mapping.
        unsafe { &raw mut (*self.at).header }
    }

    /// The page's atomics.
    #[must_use]
    pub fn control(&self) -> &Control {
        // SAFETY: mapped as long as `self`.
        unsafe { &*self.at }
    }

    /// Exit code of a process that called `exit_group`.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        control::exit_code(self.control().header.exiting.load(Ordering::Relaxed))
    }

    /// A slot.
    #[must_use]
    pub fn slot(&self, index: usize) -> *mut Slot {
        assert!(index < SLOTS_MAX);
        // SAFETY: bounds checked.
        unsafe { &raw mut (*self.at).slots[index] }
    }

    /// The files that the application knows under another identity.
    #[must_use]
    pub fn inodes(&self) -> &[InodeName] {
        let count = self.control().header.inodes_count.load(Ordering::Acquire) as usize;
        &self.control().inodes[..count.min(INODES_MAX)]
    }

    /// Tells the application under which identities it knows its files; `names` are in order. Only before it
    /// runs.
    pub fn set_inodes(&self, names: &[InodeName]) {
        assert!(names.len() <= INODES_MAX && names.is_sorted());
        // SAFETY: inside the mapping, bounds checked; nobody reads what is not counted.
        unsafe {
            let at = (&raw mut (*self.at).inodes).cast::<InodeName>();
            std::ptr::copy_nonoverlapping(names.as_ptr(), at, names.len());
        }
        self.control().header.inodes_count.store(names.len() as u32, Ordering::Release);
    }

    /// System V objects of a kind (see [`control::object`]) that the processes of this page asked for.
    pub fn objects(&self, kind: u64) -> impl Iterator<Item = i32> + '_ {
        let entries = self.control().objects.iter();
        entries.filter_map(move |entry| object::id(entry.load(Ordering::Acquire), kind))
    }

    /// Notes such an object. Only before the application runs.
    pub fn enter_object(&self, kind: u64, id: i32) {
        let word = object::word(kind, id.cast_unsigned());
        let free = self.control().objects.iter().find(|entry| entry.load(Ordering::Acquire) == 0);
        if let Some(entry) = free {
            entry.store(word, Ordering::Release);
        }
    }

    /// Forgets one that is gone.
    pub fn forget_object(&self, kind: u64, id: i32) {
        let word = object::word(kind, id.cast_unsigned());
        for entry in &self.control().objects {
            let _ = entry.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// What a process (as it sees itself) asked to be notified with: descriptor, value, what else, and cookie.
    pub fn notices(&self, pid: i32) -> impl Iterator<Item = (i32, [u64; 6])> + '_ {
        self.control().notices.iter().filter_map(move |notice| {
            let who = notice.who.load(Ordering::Acquire);
            let own = who != 0 && who >> 32 == u64::from(pid.cast_unsigned());
            let [a, b, c, d] = &notice.cookie;
            let words = [&notice.value, &notice.what, a, b, c, d].map(|word| word.load(Ordering::Relaxed));
            own.then_some((who as u32 as i32, words))
        })
    }

    /// Notes such a registration. Only before the application runs.
    pub fn enter_notice(&self, pid: i32, fd: i32, [value, what]: [u64; 2], cookie: [u64; 4]) {
        let free = self.control().notices.iter().find(|notice| notice.who.load(Ordering::Acquire) == 0);
        if let Some(notice) = free {
            notice.value.store(value, Ordering::Relaxed);
            notice.what.store(what, Ordering::Relaxed);
            for (word, to) in cookie.iter().zip(&notice.cookie) {
                to.store(*word, Ordering::Relaxed);
            }
            notice.who.store(Notice::word(pid.cast_unsigned(), fd.cast_unsigned()), Ordering::Release);
        }
    }

    /// Forgets those of processes that are not there any more.
    pub fn keep_notices(&self, alive: impl Fn(i32) -> bool) {
        for notice in &self.control().notices {
            let who = notice.who.load(Ordering::Acquire);
            if who != 0 && !alive((who >> 32) as i32) {
                let _ = notice.who.compare_exchange(who, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// The signal at its parent's death that the first thread of a process (as it sees itself) had when it ended; 0: none.
    #[must_use]
    pub fn mourner(&self, pid: i32) -> u32 {
        let words = self.control().mourners.iter().map(|word| word.load(Ordering::Acquire));
        words
            .filter(|word| word >> 32 == u64::from(pid.cast_unsigned()))
            .map(|word| word as u32)
            .max()
            .unwrap_or(0)
    }

    /// Notes such a signal. Only before the application runs.
    pub fn enter_mourner(&self, pid: i32, signal: u32) {
        let free = self.control().mourners.iter().find(|word| word.load(Ordering::Acquire) == 0);
        if let Some(word) = free {
            word.store(control::mourner(pid.cast_unsigned(), signal), Ordering::Release);
        }
    }

    /// Forgets those of processes that are not there any more.
    pub fn keep_mourners(&self, alive: impl Fn(i32) -> bool) {
        for mourner in &self.control().mourners {
            let word = mourner.load(Ordering::Acquire);
            if word != 0 && !alive((word >> 32) as i32) {
                let _ = mourner.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// A slot's state word.
    #[must_use]
    pub fn state(&self, index: usize) -> &AtomicU32 {
        &self.control().slots[index].state
    }

    /// Where the process has the page.
    #[must_use]
    pub fn address(&self) -> u64 {
        // SAFETY: a plain word.
        unsafe { (*self.header()).address }
    }

    /// Where the process has the table of file changes; 0: nowhere.
    #[must_use]
    pub fn changes_at(&self) -> u64 {
        // SAFETY: a plain word.
        unsafe { (*self.header()).changes_at }
    }

    /// Notes where the process has the table of file changes. Only before it runs.
    pub fn set_changes_at(&self, at: u64) {
        // SAFETY: a plain word that the process has not read yet.
        unsafe { (*self.header()).changes_at = at };
    }

    /// Address in the process of a slot.
    #[must_use]
    pub fn slot_address(&self, index: usize) -> u64 {
        self.address() + (self.slot(index) as u64 - self.at as u64)
    }

    /// Address in the process of `offset` bytes into the scratch area.
    #[must_use]
    pub fn scratch_address(&self, offset: usize) -> u64 {
        self.address() + std::mem::offset_of!(Control, scratch) as u64 + offset as u64
    }

    /// Puts bytes into the scratch area; returns their address in the process.
    pub fn put(&self, offset: usize, bytes: &[u8]) -> u64 {
        assert!(offset + bytes.len() <= control::SCRATCH_BYTES);
        // SAFETY: bounds checked; only the agent writes here between calls.
        unsafe {
            let to = (&raw mut (*self.at).scratch).cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.scratch_address(offset)
    }

    /// Takes bytes from the scratch area.
    #[must_use]
    pub fn take(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= control::SCRATCH_BYTES);
        let mut out = vec![0; bytes];
        // SAFETY: bounds checked.
        unsafe {
            let from = (&raw const (*self.at).scratch).cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), bytes);
        }
        out
    }

    /// How long those wait that have no sign of life from us: threads that are to park, or what is left after a stop.
    pub(crate) fn set_patience(&self, parking: bool) {
        // SAFETY: a plain word that parked threads read.
        unsafe { (*self.header()).ticks_max = if parking { TICKS_MAX } else { TICKS_SNAPSHOT } };
    }

    /// A sign of life to the parked threads.
    pub fn keep_alive(&self) {
        self.control().header.keepalive.fetch_add(1, Ordering::Relaxed);
    }

    /// Did parked threads give up waiting for the agent, and run on?
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        control::cut::state(self.control().header.cut.load(Ordering::SeqCst)) == control::cut::ABORTED
    }

    /// Reserves a free slot for a thread or process that is about to be made.
    #[must_use]
    pub fn reserve(&self) -> Option<usize> {
        let index = (0..SLOTS_MAX).find(|index| {
            self.state(*index)
                .compare_exchange(slot::FREE, slot::CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })?;
        self.control().header.slots_used.fetch_max(index as u32 + 1, Ordering::AcqRel);
        Some(index)
    }

    /// Indexes of all slots that were ever used.
    #[must_use]
    pub fn used(&self) -> std::ops::Range<usize> {
        0..(self.control().header.slots_used.load(Ordering::Acquire) as usize).min(SLOTS_MAX)
    }

    /// Lets the thread in `index` go.
    pub fn go(&self, index: usize) {
        self.state(index).store(slot::GO, Ordering::SeqCst);
        wake(self.state(index));
    }

    /// Starts a list of any length that is in the memory of the process, at `calls_at`, in the thread of `index`.
    pub fn start_at(&self, index: usize, calls_at: u64, count: usize) {
        let slot = self.slot(index);
        // SAFETY: the thread waits and reads these words only after the state changes.
        unsafe {
            (*slot).calls_at = calls_at;
            (*slot).calls_count = count as u32;
            (*slot).calls_stop = 0;
            (*slot).calls_done = 0;
        }
        self.state(index).store(slot::CALL, Ordering::SeqCst);
        wake(self.state(index));
    }

    /// Starts a list of at most [`BATCH_CALLS`] calls in the thread of `index`.
    ///
    /// The long list is used by one thread at a time; lists of up to [`SLOT_CALLS`] may run in many at once.
    pub fn start(&self, index: usize, calls: &[Call], stop: bool) {
        assert!(calls.len() <= BATCH_CALLS);
        let slot = self.slot(index);
        // SAFETY: the thread waits and reads these words only after the state changes.
        unsafe {
            let (list, at) = if calls.len() <= SLOT_CALLS {
                let list = (&raw mut (*slot).calls).cast::<Call>();
                (list, self.slot_address(index) + std::mem::offset_of!(Slot, calls) as u64)
            } else {
                let list = (&raw mut (*self.at).batch).cast::<Call>();
                (list, self.address() + std::mem::offset_of!(Control, batch) as u64)
            };
            std::ptr::copy_nonoverlapping(calls.as_ptr(), list, calls.len());
            (*slot).calls_at = at;
            (*slot).calls_count = calls.len() as u32;
            (*slot).calls_stop = u32::from(stop);
            (*slot).calls_done = 0;
        }
        self.state(index).store(slot::CALL, Ordering::SeqCst);
        wake(self.state(index));
    }

    /// Waits until the list started in `index` was run; fills in the results. Returns how many were run.
    ///
    /// # Errors
    /// `TimedOut` if the thread does not answer, with the slot as it is.
    pub fn finish(&self, index: usize, calls: &mut [Call], patience: Duration) -> io::Result<usize> {
        self.wait_state(index, patience, |state| state != slot::CALL)?;
        let slot = self.slot(index);
        // SAFETY: the thread is done with the list.
        unsafe {
            let list = if calls.len() <= SLOT_CALLS {
                (&raw const (*slot).calls).cast::<Call>()
            } else {
                (&raw const (*self.at).batch).cast::<Call>()
            };
            let done = ((*slot).calls_done as usize).min(calls.len());
            for (i, call) in calls.iter_mut().enumerate().take(done) {
                call.ret = (*list.add(i)).ret;
            }
            Ok(done)
        }
    }

    /// Waits for a slot's state.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn wait_state(
        &self,
        index: usize,
        patience: Duration,
        good: impl Fn(u32) -> bool,
    ) -> io::Result<u32> {
        wait(self.state(index), patience, good)
    }
}

/// Wakes who waits for a word.
pub fn wake(word: &AtomicU32) {
    // SAFETY: a valid word; the operation only wakes.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Waits until `good(word)`: a short spin, then the futex.
///
/// # Errors
/// `TimedOut`.
pub fn wait(word: &AtomicU32, patience: Duration, good: impl Fn(u32) -> bool) -> io::Result<u32> {
    for _ in 0..200 {
        let value = word.load(Ordering::SeqCst);
        if good(value) {
            return Ok(value);
        }
        std::hint::spin_loop();
    }
    let until = Instant::now() + patience;
    loop {
        let value = word.load(Ordering::SeqCst);
        if good(value) {
            return Ok(value);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let part = left.min(Duration::from_millis(50));
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: part.as_nanos() as i64 };
        // SAFETY: a valid word and time-out.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout);
        }
    }
}
