//! Calls that cut a file by its name, or its handle: `truncate`, and `open` with `O_TRUNC`.
//!
//! Others may give the name to another file between a look at it and the call, which cuts that one then. So these calls are made from
//! here, where parks are put off, for a descriptor: it is looked which file it leads to, that one is recorded, and then it is cut.

use crate::dispatch::Verdict;
use crate::{awaited, changes as recorded, descriptors, user};
use core::sync::atomic::Ordering;
use holo_abi::changes::{BROKEN, Bank, Changes, SHUT};
use holo_abi::sysno;
use holo_sys::gate::Regs;
use holo_sys::{raw, sys};
use holo_track::changes::{self, Slot};

const AT_FDCWD: u64 = (-100i64).cast_unsigned();
const O_ACCMODE: u64 = 3;
const O_WRONLY: u64 = 1;
const O_RDWR: u64 = 2;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_PATH: u64 = 0o10_000_000;
const O_CLOEXEC: u64 = 0o2_000_000;
const ENOENT: i64 = -2;
const EINTR: i64 = -4;
const EACCES: i64 = -13;
const EINVAL: i64 = -22;
const ENFILE: i64 = -23;
const EMFILE: i64 = -24;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
/// Bytes of `struct open_how`, as far as it is known.
const HOW_BYTES: u64 = 24;
const RESOLVE_CACHED: u64 = 0x20;

/// What a call is to cut.
struct Named {
    dir: u64,
    /// Or, with `is_handle`, a handle; `dir` is something on its mount then.
    name: u64,
    is_handle: bool,
    size: u64,
    /// Flags, mode and how the name is followed, of a call that opens it.
    opens: Option<[u64; 3]>,
    /// The kernel refuses it, or it may ask for what is not known here.
    strange: bool,
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// A file that is recorded, by device and inode number.
    File(u64, u64),
    /// Something else. To open it may take for ever.
    Other,
    Nothing,
}

/// May a call of this number cut a file by its name?
pub(crate) fn concerns(nr: i64) -> bool {
    matches!(
        nr,
        sysno::truncate
            | sysno::creat
            | sysno::open
            | sysno::openat
            | sysno::openat2
            | sysno::open_by_handle_at
    )
}

/// Makes a call that cuts a file by its name.
pub(crate) fn on_call(regs: &Regs) -> Verdict {
    let nr = regs.rax.cast_signed();
    let Some(table) = recorded::open() else { return Verdict::Forward };
    let Some(named) = Named::of(nr, &regs.args, regs.rsp) else { return Verdict::Forward };
    let made = named.make(table, nr);
    if made.is_none() {
        named.note(table);
    }
    made.map_or(Verdict::Forward, |ret| match ret {
        Made::Done(ret) => Verdict::Handled(ret),
        Made::Unknown => {
            spoil(table);
            // SAFETY: the application's call with its own arguments.
            Verdict::Handled(unsafe { raw::call(nr, regs.args) })
        }
    })
}

/// Records such a call, which is about to be made in its own place.
pub(crate) fn note(table: &Changes, nr: i64, args: &[u64; 6], rsp: u64) {
    if let Some(named) = Named::of(nr, args, rsp) {
        named.note(table);
    }
}

/// What has come of a call.
enum Made {
    Done(i64),
    /// Nothing: there is no descriptor to spare, or no `/proc`.
    Unknown,
}

impl Named {
    fn of(nr: i64, args: &[u64; 6], rsp: u64) -> Option<Self> {
        let [first, second, third, fourth, ..] = *args;
        let opened = |dir, name, how: [u64; 3]| {
            (how[0] & (O_TRUNC | O_PATH) == O_TRUNC).then_some(Self {
                dir,
                name,
                is_handle: nr == sysno::open_by_handle_at,
                size: 0,
                opens: Some(how),
                strange: false,
            })
        };
        match nr {
            sysno::truncate => {
                let (name, size) = (first, second);
                Some(Self { dir: AT_FDCWD, name, is_handle: false, size, opens: None, strange: false })
            }
            sysno::creat => opened(AT_FDCWD, first, [O_WRONLY | O_CREAT | O_TRUNC, second, 0]),
            sysno::open => opened(AT_FDCWD, first, [second, third, 0]),
            sysno::openat => opened(first, second, [third, fourth, 0]),
            sysno::openat2 => {
                let how = user::read(third, rsp).unwrap_or([0; 3]);
                let strange = fourth != HOW_BYTES || how[2] & RESOLVE_CACHED != 0;
                opened(first, second, how).map(|named| Self { strange, ..named })
            }
            sysno::open_by_handle_at => opened(first, second, [third, 0, 0]),
            _ => None,
        }
    }

    /// Makes the call for a descriptor. None: it is to be made in its place, where parks and signals may come.
    fn make(&self, table: &Changes, nr: i64) -> Option<Made> {
        // Whoever opens it may have to wait until somebody gives up a lease.
        if self.strange || table.leased.load(Ordering::Relaxed) != 0 {
            return None;
        }
        match self.opens {
            Some(how) => self.open(table, nr, how),
            None => self.truncate(table),
        }
    }

    fn open(&self, table: &Changes, nr: i64, [flags, mode, follow]: [u64; 3]) -> Option<Made> {
        let looked = self.look(table);
        if looked == Found::Other {
            return None;
        }
        let how = [flags & !O_TRUNC, mode, follow];
        // SAFETY: the application's call, and a copy of what it passes.
        let ret = unsafe {
            match nr {
                sysno::openat2 => sys!(nr, self.dir, self.name, how.as_ptr(), HOW_BYTES),
                sysno::open_by_handle_at => sys!(nr, self.dir, self.name, how[0]),
                _ => sys!(sysno::openat, self.dir, self.name, how[0], mode),
            }
        };
        let Ok(fd) = u64::try_from(ret) else { return (ret != EINTR).then_some(Made::Done(ret)) };
        let (found, size) = of_descriptor(table, fd);
        if looked == Found::Nothing && size == 0 {
            return Some(Made::Done(ret));
        }
        self.wait(table, found);
        self.record(table, changes::bank(table), found);
        let path = link_of(fd);
        // SAFETY: a path on our stack.
        let cut = unsafe {
            match flags & O_ACCMODE {
                O_WRONLY | O_RDWR => sys!(sysno::ftruncate, fd, 0),
                _ => sys!(sysno::truncate, path.as_ptr(), 0),
            }
        };
        match cut {
            0 => Some(Made::Done(ret)),
            // It is no file.
            EINVAL if found == Found::Other => Some(Made::Done(ret)),
            _ => {
                close(fd);
                let writes = matches!(flags & O_ACCMODE, O_WRONLY | O_RDWR);
                Some(if !writes && is_elsewhere(cut) { Made::Unknown } else { Made::Done(cut) })
            }
        }
    }

    /// The descriptor is of a kind that says nothing to anybody who has locks or leases.
    fn truncate(&self, table: &Changes) -> Option<Made> {
        loop {
            // SAFETY: the kernel checks the name.
            let ret = unsafe { sys!(sysno::openat, self.dir, self.name, O_PATH | O_CLOEXEC) };
            let fd = match u64::try_from(ret) {
                Ok(fd) => fd,
                Err(_) if matches!(ret, EMFILE | ENFILE) => {
                    return (self.look(table) != Found::Other).then_some(Made::Unknown);
                }
                Err(_) => return Some(Made::Done(ret)),
            };
            let (found, _) = of_descriptor(table, fd);
            if found == Found::Other {
                close(fd);
                return None;
            }
            if self.is_awaited(table, found) {
                // Who is forked meanwhile must not have it.
                close(fd);
                self.wait(table, found);
                continue;
            }
            self.record(table, changes::bank(table), found);
            let path = link_of(fd);
            // SAFETY: a path on our stack.
            let ret = unsafe { sys!(sysno::truncate, path.as_ptr(), self.size) };
            close(fd);
            return match ret {
                EINTR => None,
                _ if is_elsewhere(ret) => Some(Made::Unknown),
                _ => Some(Made::Done(ret)),
            };
        }
    }

    fn is_awaited(&self, table: &Changes, found: Found) -> bool {
        let Found::File(dev, ino) = found else { return false };
        let (_, shut) = changes::bank_and_gate(table);
        let key = changes::key(table, dev, ino).filter(|_| shut);
        key.is_some_and(|key| holo_track::awaited::look(&table.gate, key, self.size, u64::MAX).is_some())
    }

    /// Waits until a file may be cut.
    fn wait(&self, table: &Changes, found: Found) {
        if let Found::File(dev, ino) = found
            && recorded::is_shut(table)
        {
            awaited::pass(table, changes::key(table, dev, ino), self.size, u64::MAX);
        }
    }

    /// Waits until the file that has the name may be cut, and records that it is.
    fn note(&self, table: &Changes) {
        let mut found = self.look(table);
        let bank = loop {
            let (bank, shut) = changes::bank_and_gate(table);
            if !shut || !matches!(found, Found::File(..)) {
                break bank;
            }
            self.wait(table, found);
            // While we waited the name may have been given to another file, and that one is cut.
            let now = self.look(table);
            if now == found {
                break bank;
            }
            found = now;
        };
        self.record(table, bank, found);
    }

    fn record(&self, table: &Changes, bank: &Bank, found: Found) {
        let Found::File(dev, ino) = found else { return };
        match changes::slot(table, dev, ino) {
            Slot::Elsewhere => {}
            Slot::At(slot) => changes::tail(bank, slot, self.size),
            Slot::Full => changes::overflow(bank),
        }
    }

    /// What the name leads to now.
    fn look(&self, table: &Changes) -> Found {
        if self.is_handle {
            // SAFETY: the kernel checks the handle.
            let fd = unsafe { sys!(sysno::open_by_handle_at, self.dir, self.name, O_PATH | O_CLOEXEC) };
            let Ok(fd) = u64::try_from(fd) else { return Found::Nothing };
            let (found, _) = of_descriptor(table, fd);
            close(fd);
            return found;
        }
        let mut stat = [0u64; 18];
        // SAFETY: a buffer of the size of `struct stat`; the kernel checks the name.
        let failed = unsafe { sys!(sysno::newfstatat, self.dir, self.name, stat.as_mut_ptr(), 0) };
        if failed < 0 { Found::Nothing } else { found(table, &stat) }
    }
}

/// Nobody knows which file is about to be cut: all that changed is copied, and of a cut of which files are awaited there is no epoch.
#[cold]
fn spoil(table: &Changes) {
    changes::overflow(changes::bank(table));
    let open = |word| (word & SHUT != 0).then_some(word & !SHUT | BROKEN);
    let _ = table.bank.fetch_update(Ordering::SeqCst, Ordering::SeqCst, open);
}

/// May a call for a path in `/proc` have failed because there is none?
fn is_elsewhere(ret: i64) -> bool {
    matches!(ret, ENOENT | EACCES)
}

/// Closes a descriptor that was opened here.
pub(crate) fn close(fd: u64) {
    // SAFETY: a descriptor of ours.
    descriptors::closing(fd, fd, || unsafe { sys!(sysno::close, fd) });
}

/// The path by which the kernel finds what a descriptor leads to.
pub(crate) fn link_of(fd: u64) -> [u8; 40] {
    const DIR: &[u8] = b"/proc/thread-self/fd/";
    let (mut path, mut rest) = ([0; 40], fd as u32);
    path[..DIR.len()].copy_from_slice(DIR);
    let digits = rest.checked_ilog10().unwrap_or(0) as usize + 1;
    for at in (DIR.len()..DIR.len() + digits).rev() {
        path[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    path
}

/// What a descriptor leads to, and its size.
fn of_descriptor(table: &Changes, fd: u64) -> (Found, u64) {
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`.
    let failed = unsafe { sys!(sysno::fstat, fd, stat.as_mut_ptr()) };
    if failed < 0 { (Found::Nothing, 0) } else { (found(table, &stat), stat[6]) }
}

fn found(table: &Changes, stat: &[u64; 18]) -> Found {
    let is_file = stat[3] as u32 & S_IFMT == S_IFREG && changes::has_device(table, stat[0]);
    if is_file { Found::File(stat[0], stat[1]) } else { Found::Other }
}
