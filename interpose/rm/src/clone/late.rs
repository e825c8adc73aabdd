//! Pages of a clone that come while it runs already: a restore does not wait until all of a large memory was read.
//!
//! ```text
//! take    a userfaultfd for each large process; a thread fills its pages, those first that somebody waits for
//! keep    the userfaultfds are left in a socket pair that the clone's init has open: they outlive the agent
//! last    all pages of all processes are there: the userfaultfds are closed, the library is told (`late` in the control page)
//! ```
//!
//! While a page is missing, whoever touches it waits, in a call of the kernel's, too; for that the kernel demands a privilege
//! (`CAP_SYS_PTRACE`). Without it all pages are written before the clone runs.
//!
//! An agent that dies leaves the rest to the next one ([`Late::resume`]): until then, who touches what is missing waits.

use crate::kinds::increment::{kept, listed};
use crate::kinds::kernel::owned;
use crate::kinds::pidfd::pidfd;
use crate::kinds::zones::{PAGE, Zone, ZoneKind};
use crate::manager::{Context, RmResult, SPACES};
use crate::page::Page;
use crate::remote::Remote;
use crate::track::userfaultfd::{UFFDIO_REGISTER, ioctl, make};
use holo_abi::control::tracked;
use holo_image::{EpochReader, Names, PageKey};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const MODE_MISSING: u64 = 1;
/// Messages: four words, of which the first has the sort in its lowest byte, the others depend on it.
const MESSAGE_WORDS: usize = 4;
/// The third word is the address that somebody waits for.
const EVENT_PAGEFAULT: u8 = 0x12;
/// A child was forked; the second word is a userfaultfd of it.
const EVENT_FORK: u8 = 0x13;
/// Memory was moved; words: from, to, bytes.
const EVENT_REMAP: u8 = 0x14;
/// Memory is given back, and to be as if never touched; words: start, end.
const EVENT_REMOVE: u8 = 0x15;
/// Of these three we are told. The library waits with such calls until all is there (`interpose/src/late.rs`); what it does not see,
/// or was about to make already when the epoch was cut, is seen here.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3;
/// Messages that are read at once.
const MESSAGES: usize = 16;
/// Pages that are read for one that somebody waits for: as many as are named at once.
const BLOCK_PAGES: usize = 16;
/// Blocks that are read at once at most while nobody waits.
const BLOCKS_AHEAD: usize = 16;
/// How often a thread with nothing left to fill looks whether all others are done.
const TICK_MS: i32 = 5;
/// Processes of one clone: their descriptors are one message (`SCM_MAX_FD` is 253).
const PROCESSES_MAX: usize = 250;
/// A message takes some 800.
const VAULT_BYTES: i32 = 4 << 20;
/// Less of a process is written at once.
const LEAST_BYTES: u64 = 16 << 20;
/// Less of a zone, which would be a thread's stack or the like.
const ZONE_BYTES: u64 = 1 << 20;
/// `0`: nothing comes late; `1`: all that can, also of small processes; `wait`: also, and in the first seconds only what is touched.
const VARIABLE: &str = "HOLO_MEMORY_LATE";
/// For how long the end of a clone that was killed is waited for.
const END_MS: i32 = 10_000;
/// For how long `wait` waits.
const WAIT: Duration = Duration::from_secs(3);

/// From an address to another.
type Range = (u64, u64);
/// Pages by address, in rising order.
type Pages = Vec<(u64, PageKey)>;

/// Which memory may come late.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Policy {
    process_bytes: u64,
    zone_bytes: u64,
    wait: Duration,
}

impl Policy {
    fn of(order: Option<&str>) -> Option<Self> {
        let usual = Self { process_bytes: LEAST_BYTES, zone_bytes: ZONE_BYTES, wait: Duration::ZERO };
        let all = Self { process_bytes: 0, zone_bytes: 0, ..usual };
        match order {
            Some("0") => None,
            Some("1") => Some(all),
            Some("wait") => Some(Self { wait: WAIT, ..all }),
            _ => Some(usual),
        }
    }

    /// Ranges that may come late, of a process with these pages. Zones that touch are one range: the kernel would not join them later, if
    /// it had watched one of them only.
    fn choose(self, zones: &[Zone], names: &Names) -> Vec<Range> {
        let mut groups: Vec<Range> = Vec::new();
        for zone in zones.iter().filter(|zone| may_wait(zone)) {
            match groups.last_mut() {
                Some((_, end)) if *end == zone.start => *end = zone.end,
                _ => groups.push((zone.start, zone.end)),
            }
        }
        let bytes = |of: &[Range]| kept(names, of).count() * PAGE;
        groups.retain(|range| bytes(&[*range]) >= self.zone_bytes.max(PAGE));
        if bytes(&groups) < self.process_bytes {
            groups.clear();
        }
        groups
    }
}

/// Ordinary private memory; not what grows by itself, and not what the application wants to be there always.
fn may_wait(zone: &Zone) -> bool {
    let has = |flag: &[u8; 2]| zone.flags.contains(flag);
    zone.kind == ZoneKind::Anonymous && !has(b"gd") && !has(b"lo") && !has(b"sl")
}

/// What the threads share.
struct Shared {
    image: Arc<EpochReader>,
    /// Kills the clone.
    init: OwnedFd,
    /// Where userfaultfds are kept: what is put into one end waits at the other; the clone's init has both, too.
    vault: (UnixStream, UnixStream),
    /// Processes of which pages are missing.
    open: AtomicUsize,
    /// More may come.
    growing: AtomicBool,
    /// All is there, or never will be.
    over: AtomicBool,
    damage: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, what: String) {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        // SAFETY: a descriptor of ours, no memory is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.init.as_raw_fd(), libc::SIGKILL, 0, 0) };
        self.over.store(true, SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(SeqCst) || self.open.load(SeqCst) == 0 && !self.growing.load(SeqCst)
    }
}

/// One process.
struct Part {
    index: u32,
    uffd: OwnedFd,
    pages: Pages,
    /// Blocks of pages that were filled in.
    done: Vec<bool>,
    wait: Duration,
}

/// The memory of a clone that is still to come.
pub struct Late {
    policy: Option<Policy>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pages: Vec<Arc<Page>>,
    /// Duplicates of userfaultfds, by place of the process, until they are kept elsewhere.
    uffds: Vec<(u32, OwnedFd)>,
}

impl Late {
    /// For a clone of `image` with that init, which has both ends of `vault` open, too.
    pub(crate) fn new(image: &Arc<EpochReader>, init: OwnedFd, vault: (UnixStream, UnixStream)) -> Self {
        let policy = Policy::of(std::env::var(VARIABLE).ok().as_deref());
        let (room, size) = (VAULT_BYTES, size_of_val(&VAULT_BYTES) as libc::socklen_t);
        // Room for one message for each process that is forked meanwhile; who may not ask for it needs none.
        // SAFETY: an option of one int.
        unsafe {
            let (socket, option) = (vault.0.as_raw_fd(), libc::SO_SNDBUFFORCE);
            libc::setsockopt(socket, libc::SOL_SOCKET, option, (&raw const room).cast(), size)
        };
        let shared = Shared {
            image: Arc::clone(image),
            init,
            vault,
            open: AtomicUsize::new(0),
            growing: AtomicBool::new(true),
            over: AtomicBool::new(false),
            damage: Mutex::new(None),
        };
        Self { policy, shared: Arc::new(shared), threads: Vec::new(), uffds: Vec::new(), pages: Vec::new() }
    }

    /// Ranges of a process with these pages that may come late.
    pub(crate) fn choose(&self, zones: &[Zone], names: &Names) -> Vec<Range> {
        let policy = self.policy.filter(|_| self.uffds.len() < PROCESSES_MAX);
        policy.map(|policy| policy.choose(zones, names)).unwrap_or_default()
    }

    /// Takes over the pages, all in `ranges`, of process number `index`. False: they are to be written now.
    pub(crate) fn take(
        &mut self,
        remote: &Remote,
        index: usize,
        ranges: &[Range],
        names: Names,
    ) -> RmResult<bool> {
        let Some(policy) = self.policy else { return Ok(false) };
        // One that also sees faults of the kernel.
        let Ok(uffd) = make(remote, libc::O_NONBLOCK, FEATURES) else {
            // Not for us: neither for the next one.
            self.policy = None;
            return Ok(false);
        };
        for (start, end) in ranges {
            let words = &mut [*start, end - start, MODE_MISSING, 0];
            ioctl(&uffd, UFFDIO_REGISTER, words).on("watching", format!("memory at {start:#x}"))?;
        }
        let index = index as u32;
        self.uffds.push((index, uffd.try_clone().on("duplicating", "a userfaultfd")?));
        let page = Arc::clone(&remote.page);
        let header = &page.control().header;
        header.late_index.store(index, SeqCst);
        header.late_epoch.store(self.shared.image.meta().epoch, SeqCst);
        header.late.store(1, SeqCst);
        // What it maps beside such memory before all is there is a zone of its own, for ever.
        header.tracked.fetch_or(tracked::EVER, SeqCst);
        self.begin(page, move || Part::new(index, uffd, listed(&names), policy.wait));
        Ok(true)
    }

    fn begin(&mut self, page: Arc<Page>, part: impl FnOnce() -> Part + Send + 'static) {
        self.pages.push(page);
        self.threads.push(Part::begin(part, &self.shared));
    }

    /// No more will be taken. What holds the memory is left where it outlives this agent: in number `vault` of the clone's init.
    pub(crate) fn keep(&mut self, vault: i32) -> RmResult<()> {
        for page in &self.pages {
            page.control().header.late_vault.store(vault.unsigned_abs(), SeqCst);
        }
        let all = std::mem::take(&mut self.uffds);
        if !all.is_empty() {
            put(&self.shared.vault.0, &all).on("keeping", "userfaultfds")?;
        }
        self.shared.growing.store(false, SeqCst);
        Ok(())
    }

    /// Goes on where an agent that died was, for the processes with these control pages.
    ///
    /// # Errors
    /// What the clone waits for cannot be found.
    pub fn resume(image: &Arc<EpochReader>, init: i32, pages: &[Arc<Page>]) -> RmResult<Self> {
        let init = pidfd(init, 0).on("opening", "the clone's init")?;
        let number = pages.first().map_or(0, |page| page.control().header.late_vault.load(SeqCst));
        let end = |number: u32| end_of(&init, number).on("taking", "what the clone's init keeps");
        let vault = (end(number)?, end(number + 1)?);
        let uffds = kept_in(&vault.1).on("looking at", "what the clone's init keeps")?;
        let mut late = Self::new(image, init, vault);
        for (index, uffd) in uffds {
            let of = |page: &&Arc<Page>| page.control().header.late_index.load(SeqCst) == index;
            if let Some(page) = pages.iter().find(of) {
                // What is there already, or was given back since, is not touched.
                let names = image.names_of(u64::from(index) * SPACES);
                let part = move || Part::new(index, uffd, listed(&names), Duration::ZERO);
                late.begin(Arc::clone(page), part);
            }
        }
        late.shared.growing.store(false, SeqCst);
        Ok(late)
    }

    /// Whether a page could not be had, so that the clone was killed.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether any process had memory that comes late.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Waits until all pages are there and nothing of this is left in the processes.
    ///
    /// # Errors
    /// A page could not be had: the clone was killed.
    pub fn finish(mut self) -> Result<(), String> {
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                self.shared.fail("a thread that reads memory panicked".into());
            }
        }
        if let Some(damage) = self.damage() {
            // Who waits for a page would go on without it, if this were the last that holds its userfaultfd: the clone's init closes
            // what it has before the kernel kills the others.
            wait_for_end(&self.shared.init);
            return Err(damage);
        }
        // Ours are closed. These are the last: what they watched is ordinary memory again.
        drop(std::mem::take(&mut self.uffds));
        while look(&self.shared.vault.1, MsgFlags::MSG_DONTWAIT).is_ok_and(|kept| !kept.is_empty()) {}
        for page in &self.pages {
            let late = &page.control().header.late;
            late.store(0, SeqCst);
            // SAFETY: a word of a mapped page; the call only wakes.
            unsafe { libc::syscall(libc::SYS_futex, late.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        }
        Ok(())
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
    }
}

/// Until a process has ended, and with the init of a namespace all others there.
fn wait_for_end(pidfd: &OwnedFd) {
    let mut entry = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut entry, 1, END_MS) };
}

/// Puts descriptors into a socket, in one message with the places of their processes.
fn put(into: &UnixStream, all: &[(u32, OwnedFd)]) -> io::Result<()> {
    let places: Vec<u8> = all.iter().flat_map(|(index, _)| index.to_le_bytes()).collect();
    let fds: Vec<RawFd> = all.iter().map(|(_, uffd)| uffd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(into.as_raw_fd(), &[IoSlice::new(&places)], &rights, MsgFlags::MSG_DONTWAIT, None)?;
    Ok(())
}

/// A socket that the clone's init has open.
fn end_of(init: &OwnedFd, number: u32) -> io::Result<UnixStream> {
    // SAFETY: no memory is passed.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, init.as_raw_fd(), number, 0) };
    owned(raw as i32).map(UnixStream::from)
}

/// Duplicates of all that is kept in a socket, where it stays.
fn kept_in(socket: &UnixStream) -> io::Result<Vec<(u32, OwnedFd)>> {
    let (from, size) = (0i32, size_of::<i32>() as libc::socklen_t);
    // Each look begins where the one before it ended.
    // SAFETY: an option of one int.
    let set = unsafe {
        let option = libc::SO_PEEK_OFF;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const from).cast(), size)
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut all = Vec::new();
    loop {
        match look(socket, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
            Ok(more) if more.is_empty() => return Ok(all),
            Ok(more) => all.extend(more),
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(all),
            Err(cause) => return Err(cause),
        }
    }
}

/// The descriptors of the next message.
fn look(at: &UnixStream, how: MsgFlags) -> io::Result<Vec<(u32, OwnedFd)>> {
    let mut places = [0u8; PROCESSES_MAX * 4];
    let mut room = nix::cmsg_space!([RawFd; PROCESSES_MAX]);
    let mut parts = [IoSliceMut::new(&mut places)];
    let how = how | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(at.as_raw_fd(), &mut parts, Some(&mut room), how)?;
    let bytes = message.bytes;
    let mut fds = Vec::new();
    for one in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = one {
            // SAFETY: just received.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let index = |raw: &[u8]| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
    Ok(places[..bytes].chunks_exact(4).map(index).zip(fds).collect())
}

/// What somebody did to the memory.
enum Event {
    Fault(u64),
    Fork(OwnedFd),
    Move { from: u64, to: u64, bytes: u64 },
    GiveBack(Range),
}

impl Event {
    fn of(words: &[u64]) -> Option<Self> {
        match words[0] as u8 {
            EVENT_PAGEFAULT => Some(Self::Fault(words[2] & !(PAGE - 1))),
            // SAFETY: a descriptor that the kernel has just made for us.
            EVENT_FORK => Some(Self::Fork(unsafe { OwnedFd::from_raw_fd(words[1] as RawFd) })),
            EVENT_REMAP => Some(Self::Move { from: words[1], to: words[2], bytes: words[3] }),
            EVENT_REMOVE => Some(Self::GiveBack((words[1], words[2]))),
            _ => None,
        }
    }
}

impl Part {
    fn new(index: u32, uffd: OwnedFd, pages: Pages, wait: Duration) -> Self {
        let done = vec![false; pages.len().div_ceil(BLOCK_PAGES)];
        Self { index, uffd, pages, done, wait }
    }

    /// A thread for the one that `part` makes.
    fn begin(part: impl FnOnce() -> Self + Send + 'static, shared: &Arc<Shared>) -> JoinHandle<()> {
        shared.open.fetch_add(1, SeqCst);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let mut part = part();
            let mut open = true;
            let mut children = Vec::new();
            let filled = part.fill(&shared, &mut open, &mut children);
            if let Err(cause) = filled
                // It has ended, or has become another program.
                && cause.raw_os_error() != Some(libc::ESRCH)
            {
                shared.fail(format!(
                    "process {} of the image: memory cannot be filled in: {cause}",
                    part.index
                ));
            }
            if open {
                shared.open.fetch_sub(1, SeqCst);
            }
            children.into_iter().for_each(|child: JoinHandle<()>| drop(child.join()));
        })
    }

    /// Fills all pages, those first that are waited for, then waits for the other processes.
    fn fill(
        &mut self,
        shared: &Arc<Shared>,
        open: &mut bool,
        children: &mut Vec<JoinHandle<()>>,
    ) -> io::Result<()> {
        let (mut next, mut at_once) = (0, 1);
        let mut waiting: Vec<u64> = Vec::new();
        let mut buffer: Vec<holo_image::Page> = vec![[0; PAGE as usize]; BLOCK_PAGES * BLOCKS_AHEAD];
        let begun = Instant::now();
        while !shared.is_over() {
            // The restore itself goes first.
            let ahead = *open && !shared.growing.load(SeqCst) && begun.elapsed() >= self.wait;
            for event in self.events(if ahead { 0 } else { TICK_MS })? {
                match event {
                    Event::Fault(at) => {
                        waiting.push(at);
                        // More may follow soon: they wait for what is read then.
                        at_once = 1;
                    }
                    // It has all that its parent had; closed, nothing is watched any more.
                    Event::Fork(uffd) if !*open => drop(uffd),
                    Event::Fork(uffd) => {
                        // Not kept, it is lost only if the agent is, too.
                        let _ = put(&shared.vault.0, &[(self.index, uffd.try_clone()?)]);
                        let child = Self::new(self.index, uffd, self.pages.clone(), Duration::ZERO);
                        children.push(Self::begin(move || child, shared));
                    }
                    Event::Move { from, to, bytes } => {
                        self.moved(from, to, bytes);
                        next = 0;
                    }
                    Event::GiveBack((start, end)) => {
                        let within = |at: &u64| (start..end).contains(at);
                        let gone = self.pages.iter_mut().filter(|(at, _)| within(at));
                        gone.for_each(|(_, key)| *key = PageKey::ZERO);
                    }
                }
            }
            while let Some(at) = waiting.pop() {
                if !unless_events(self.answer(shared, at, &mut buffer))? {
                    waiting.push(at);
                    break;
                }
            }
            next += self.done[next..].iter().take_while(|done| **done).count();
            if next == self.done.len() {
                if std::mem::take(open) {
                    shared.open.fetch_sub(1, SeqCst);
                }
            } else if ahead {
                let end = (next + at_once).min(self.done.len());
                at_once = (at_once * 2).min(BLOCKS_AHEAD);
                let end = (next..end).find(|block| self.done[*block]).unwrap_or(end);
                unless_events(self.fill_blocks(shared, next, end, &mut buffer))?;
            }
        }
        Ok(())
    }

    /// Somebody waits for the page at `at`.
    fn answer(&mut self, shared: &Shared, at: u64, buffer: &mut [holo_image::Page]) -> io::Result<()> {
        let found = self.pages.binary_search_by_key(&at, |(at, _)| *at);
        match found.map(|index| (self.pages[index].1, index / BLOCK_PAGES)) {
            Ok((key, block)) if !key.is_zero() => self.fill_blocks(shared, block, block + 1, buffer),
            _ => self.zero(at),
        }
    }

    /// Memory was moved, with what is missing of it.
    fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        let there = |at: u64| at.wrapping_sub(to) < bytes;
        // What was at that place before is gone.
        self.pages.retain(|(at, _)| !there(*at));
        for (at, _) in self.pages.iter_mut().filter(|(at, _)| at.wrapping_sub(from) < bytes) {
            *at = *at - from + to;
        }
        self.pages.sort_unstable_by_key(|(at, _)| *at);
        // What is there already stays.
        self.done = vec![false; self.pages.len().div_ceil(BLOCK_PAGES)];
    }

    fn events(&self, timeout_ms: i32) -> io::Result<Vec<Event>> {
        let mut entry = libc::pollfd { fd: self.uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry.
        if unsafe { libc::poll(&raw mut entry, 1, timeout_ms) } <= 0 {
            return Ok(Vec::new());
        }
        let mut words = [0u64; MESSAGE_WORDS * MESSAGES];
        // SAFETY: as many bytes as there is room for.
        let got =
            unsafe { libc::read(self.uffd.as_raw_fd(), words.as_mut_ptr().cast(), size_of_val(&words)) };
        if got < 0 {
            return match io::Error::last_os_error() {
                cause if matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(Vec::new()),
                cause => Err(cause),
            };
        }
        let messages = words.chunks_exact(MESSAGE_WORDS).take(got as usize / (MESSAGE_WORDS * 8));
        Ok(messages.filter_map(Event::of).collect())
    }

    fn fill_blocks(
        &mut self,
        shared: &Shared,
        from: usize,
        to: usize,
        buffer: &mut [holo_image::Page],
    ) -> io::Result<()> {
        let pages = &self.pages[from * BLOCK_PAGES..(to * BLOCK_PAGES).min(self.pages.len())];
        let buffer = &mut buffer[..pages.len()];
        let mut wanted: Vec<_> = pages.iter().map(|(_, key)| *key).zip(buffer.iter_mut()).collect();
        shared.image.read_pages_into(&mut wanted).map_err(io::Error::other)?;
        let mut first = 0;
        while first < pages.len() {
            let follows = |index: usize| pages[index].0 == pages[index - 1].0 + PAGE;
            let end = (first + 1..pages.len()).find(|index| !follows(*index)).unwrap_or(pages.len());
            self.copy(pages[first].0, buffer[first..end].as_flattened())?;
            first = end;
        }
        self.done[from..to].fill(true);
        Ok(())
    }

    /// Fills in pages from `at` on that are missing there; not what is gone.
    fn copy(&self, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
        // What is one zone goes at once.
        let mut step = bytes.len();
        while !bytes.is_empty() {
            step = step.min(bytes.len());
            let mut words = [at, bytes.as_ptr() as u64, step as u64, 0, 0];
            let ret = ioctl(&self.uffd, UFFDIO_COPY, &mut words);
            let copied = words[4].cast_signed();
            let passed = match ret {
                Ok(()) => step,
                Err(_) if copied > 0 => copied as usize,
                Err(cause) => match cause.raw_os_error() {
                    Some(libc::ENOENT) if step > PAGE as usize => {
                        step = PAGE as usize;
                        0
                    }
                    // There already, or no memory of that kind any more.
                    Some(libc::EEXIST | libc::ENOENT) => {
                        let _ = ioctl(&self.uffd, UFFDIO_WAKE, &mut [at, PAGE]);
                        PAGE as usize
                    }
                    _ => return Err(cause),
                },
            };
            at += passed as u64;
            bytes = &bytes[passed..];
        }
        Ok(())
    }

    fn zero(&self, at: u64) -> io::Result<()> {
        match ioctl(&self.uffd, UFFDIO_ZEROPAGE, &mut [at, PAGE, 0, 0]) {
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => {
                ioctl(&self.uffd, UFFDIO_WAKE, &mut [at, PAGE])
            }
            other => other,
        }
    }
}

/// False: nothing is filled in before events were heard of.
fn unless_events(ret: io::Result<()>) -> io::Result<bool> {
    match ret {
        Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        ret => ret.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::increment::SPACE;

    fn zone(start: u64, end: u64, kind: ZoneKind, flags: &[[u8; 2]]) -> Zone {
        Zone {
            start: start * PAGE,
            end: end * PAGE,
            prot: 3,
            kind,
            offset: 0,
            device: 0,
            inode: 0,
            path: Vec::new(),
            deleted: false,
            flags: flags.to_vec(),
        }
    }

    fn key(value: u64) -> PageKey {
        PageKey::of(&[(value % 255) as u8 + 1; PAGE as usize])
    }

    fn names(pages: impl Iterator<Item = u64>) -> Names {
        let mut out = Names::default();
        pages.for_each(|page| out.push(SPACE, page * PAGE, &[key(page)]));
        out
    }

    // Goal: large ordinary memory comes late, with what touches it; nothing else. Method: zones of each sort.
    #[test]
    fn ordinary_memory_comes_late() {
        let zones = [
            zone(0, 400, ZoneKind::Anonymous, &[]),
            // Without pages, beside one that has many: the kernel may join them one day.
            zone(400, 500, ZoneKind::Anonymous, &[]),
            zone(600, 1000, ZoneKind::Anonymous, &[*b"lo"]),
            zone(1000, 1400, ZoneKind::FilePrivate, &[]),
            zone(1400, 1410, ZoneKind::Anonymous, &[]),
            zone(1500, 1900, ZoneKind::Anonymous, &[*b"gd"]),
            zone(2000, 2300, ZoneKind::Anonymous, &[*b"hg"]),
            zone(2400, 2700, ZoneKind::Stack, &[]),
        ];
        let all = names((0..400).chain(600..1410).chain(1500..1900).chain(2000..2300).chain(2400..2700));
        let of = |order, process_pages, zone_pages| {
            let policy = Policy::of(order).map(|policy| Policy {
                process_bytes: process_pages * PAGE,
                zone_bytes: zone_pages * PAGE,
                ..policy
            });
            let ranges = policy.map(|policy| policy.choose(&zones, &all)).unwrap_or_default();
            ranges.iter().map(|(start, end)| (start / PAGE, end / PAGE)).collect::<Vec<_>>()
        };
        assert_eq!(of(None, 0, 256), [(0, 500), (2000, 2300)]);
        assert_eq!(of(None, 700, 256), [(0, 500), (2000, 2300)]);
        assert_eq!(of(None, 701, 256), [], "less is written at once");
        assert_eq!(of(Some("1"), 0, 0), [(0, 500), (1400, 1410), (2000, 2300)]);
        assert_eq!(of(Some("0"), 0, 0), []);
    }

    // Goal: pages go where memory was moved to, and what was there is gone. Method: places before and after.
    #[test]
    fn pages_move_with_their_memory() {
        let uffd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut part = Part::new(0, uffd, listed(&names(0..64)), Duration::ZERO);
        part.done.fill(true);
        part.moved(8 * PAGE, 40 * PAGE, 16 * PAGE);
        let kept = (0..8).chain(24..40).map(|page| (page * PAGE, key(page)));
        let moved = (8..24).map(|page| ((page + 32) * PAGE, key(page)));
        let rest = (56..64).map(|page| (page * PAGE, key(page)));
        assert_eq!(part.pages, kept.chain(moved).chain(rest).collect::<Vec<_>>());
        assert_eq!(part.done, vec![false; 3], "{} pages are looked at again", part.pages.len());
    }
}
