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

mod part;
mod vault;

use crate::kinds::increment::{kept, listed};
use crate::kinds::pidfd::pidfd;
use crate::kinds::zones::{PAGE, Zone, ZoneKind};
use crate::manager::{Context, RmResult, SPACES};
use crate::page::Page;
use crate::remote::Remote;
use crate::track::userfaultfd::{UFFDIO_REGISTER, ioctl, make};
use holo_abi::control::tracked;
use holo_image::{EpochReader, Names, PageKey};
use nix::sys::socket::MsgFlags;
use part::Part;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vault::{end_of, kept_in, look, put};

const MODE_MISSING: u64 = 1;
/// Of these three we are told. The library waits with such calls until all is there (`interpose/src/late.rs`); what it does not see,
/// or was about to make already when the epoch was cut, is seen here.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3;
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

    pub(super) fn key(value: u64) -> PageKey {
        PageKey::of(&[(value % 255) as u8 + 1; PAGE as usize])
    }

    pub(super) fn names(pages: impl Iterator<Item = u64>) -> Names {
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
}
