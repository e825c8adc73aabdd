//! Records which files the application is about to change, and where, before each call that does.
//!
//! The agent shares the table (`holo_abi::changes`) with all processes of an application; without it none of these calls comes
//! here. Attributes are not recorded: the agent looks at them anyway. Names are (`names`), for what is outside the roots.
//!
//! A call is recorded when it enters the dispatcher. It may be made much later: a park, and with it the cut, or a handler
//! of the application may come first. Then it is recorded again, see [`again`].
//!
//! Before it is recorded, a call that would destroy bytes which the agent has yet to read waits until it has them (`awaited`).

use crate::descriptors::{self, Target};
use crate::dispatch::Verdict;
use crate::{awaited, filters, named, names, user, waits};
use core::sync::atomic::{AtomicPtr, Ordering};
use holo_abi::changes::{CHANGES_BYTES, Changes, MAGIC, SHUT, flags};
use holo_abi::sysno;
use holo_sys::frame::Context;
use holo_sys::gate::{self, CLASS, Regs, SLOW, Zone};
use holo_sys::tls::Tls;
use holo_sys::{patch, sys};
use holo_track::changes::{self, Slot};
use holo_track::positions;

static TABLE: AtomicPtr<Changes> = AtomicPtr::new(core::ptr::null_mut());

/// Calls that change content, or what descriptors lead to.
const CALLS: &[i64] = &[
    sysno::write,
    sysno::writev,
    sysno::pwrite64,
    sysno::pwritev,
    sysno::pwritev2,
    sysno::sendfile,
    sysno::splice,
    sysno::copy_file_range,
    sysno::ftruncate,
    sysno::truncate,
    sysno::fallocate,
    sysno::open,
    sysno::openat,
    sysno::openat2,
    sysno::open_by_handle_at,
    sysno::creat,
    sysno::ioctl,
    sysno::mmap,
    sysno::io_submit,
    sysno::close,
    sysno::close_range,
    sysno::dup2,
    sysno::dup3,
    sysno::fcntl,
    sysno::utimensat,
    sysno::futimesat,
    sysno::utimes,
    sysno::utime,
    sysno::renameat2,
    sysno::file_setattr,
];

const AT_FDCWD: u64 = (-100i64).cast_unsigned();
const F_SETFL: u64 = 4;
const F_SETLEASE: u64 = 1024;
const F_WRLCK: u32 = 1;
const SEEK_CUR: u64 = 1;
/// Also a bit of `MAP_SHARED_VALIDATE`.
const MAP_SHARED: u64 = 1;
const MAP_ANONYMOUS: u64 = 0x20;
const RENAME_WHITEOUT: u64 = 4;
const EINVAL: i64 = -22;
const RWF_APPEND: u64 = 0x10;
/// Linux 6.9: where it says, although the descriptor appends.
const RWF_NOAPPEND: u64 = 0x20;
/// `FALLOC_FL_COLLAPSE_RANGE`, `FALLOC_FL_INSERT_RANGE`: what follows moves.
const FALLOC_MOVES: u64 = 0x08 | 0x20;
/// `FIONREAD`, `FIONBIO`, `FIONCLEX`, `FIOCLEX`, `TCGETS`, `TIOCGWINSZ`, `FS_IOC_GETFLAGS`, `FS_IOC_FSGETXATTR`, `FS_IOC_FIEMAP`:
/// ask, or are about the descriptor.
const IOCTLS_HARMLESS: [u64; 9] =
    [0x541b, 0x5421, 0x5450, 0x5451, 0x5401, 0x5413, 0x8008_6601, 0x801c_581f, 0xc020_660b];
/// `FS_IOC_SETFLAGS`, `FS_IOC_FSSETXATTR`: flags of a file, or of a directory (`chattr`), through whatever descriptor.
const IOCTLS_FLAGS: [u64; 2] = [0x4008_6602, 0x401c_5820];
/// Vectors that are added up; a longer list is everything behind its start.
const VECTORS_MAX: u64 = 16;
/// Asynchronous writes.
const IOCB_PWRITE: u16 = 1;
const IOCB_PWRITEV: u16 = 8;

fn table() -> Option<&'static Changes> {
    // SAFETY: a mapping that stays; its words are atomics, or constant.
    let table = unsafe { TABLE.load(Ordering::Relaxed).as_ref()? };
    // A restore that cannot map the table leaves zeros in its place.
    (table.magic == MAGIC).then_some(table)
}

/// The table, to record in. Under a filter no call may be made to ask for what is to be recorded: nobody goes by the table then.
pub(crate) fn open() -> Option<&'static Changes> {
    let table = table()?;
    if filters::on() {
        table.blind.store(1, Ordering::Relaxed);
        return None;
    }
    Some(table)
}

/// Maps the table in `fd` and marks the calls; returns where it is. In the constructor.
pub(crate) fn start(fd: i32, sites: bool) -> u64 {
    // SAFETY: a fresh shared mapping of the agent's file.
    let at = unsafe { sys!(sysno::mmap, 0, CHANGES_BYTES, 3, 1, fd, 0) };
    if at < 0 {
        return 0;
    }
    TABLE.store(at as *mut Changes, Ordering::Relaxed);
    let Some(table) = table() else { return 0 };
    table.joined.fetch_add(1, Ordering::Relaxed);
    if !sites {
        table.blind.store(1, Ordering::Relaxed);
    }
    for nr in CALLS.iter().chain(names::CALLS) {
        // SAFETY: one byte, in the constructor.
        unsafe { (&raw mut CLASS).cast::<u8>().add(*nr as usize).write_volatile(SLOW) };
    }
    at as u64
}

/// A program is about to be started by `exec`, which must join; or was not, after all.
pub(crate) fn on_exec(failed: bool) {
    let Some(table) = table() else { return };
    if failed {
        table.started.fetch_sub(1, Ordering::Relaxed);
    } else {
        table.started.fetch_add(1, Ordering::Relaxed);
    }
}

/// Records a call that is about to be made.
pub(crate) fn on_call(regs: &Regs) {
    let nr = regs.rax.cast_signed();
    let Some(table) = open() else { return };
    if !names::is_move(nr) {
        names::note(table, nr, &regs.args, regs.rsp);
    }
    if !named::concerns(nr) {
        note(table, nr, &regs.args, regs.rsp);
    }
}

/// `dup2`, `dup3`: the new number leads elsewhere from one moment to the next.
pub(crate) fn on_dup(regs: &Regs) -> Verdict {
    if open().is_none() {
        return Verdict::Forward;
    }
    let [old, new, how, ..] = regs.args;
    // SAFETY: no memory is passed.
    let make = || unsafe { sys!(regs.rax.cast_signed(), old, new, how) };
    Verdict::Handled(descriptors::closing(new, new, make))
}

/// `close`, `close_range`. A park that interrupts a `close` finds the descriptor gone.
pub(crate) fn on_close(regs: &Regs) -> Verdict {
    if open().is_none() {
        return Verdict::Forward;
    }
    let (nr, args) = (regs.rax.cast_signed(), regs.args);
    let make = || waits::until_parked(nr, &args).unwrap_or(0);
    let last = if nr == sysno::close { args[0] } else { args[1] };
    Verdict::Handled(descriptors::closing(args[0], last, make))
}

/// `fcntl(F_SETFL)`: the file may have become one that appends, also for others who have it.
pub(crate) fn on_fcntl(regs: &Regs) -> Verdict {
    let [fd, operation, wanted, ..] = regs.args;
    let operation = u64::from(operation as u32);
    let Some(table) = open().filter(|_| matches!(operation, F_SETFL | F_SETLEASE)) else {
        return Verdict::Forward;
    };
    if operation == F_SETLEASE {
        lease(table, fd, wanted);
        return Verdict::Forward;
    }
    if descriptors::target(table, fd) == Target::Other {
        return Verdict::Forward;
    }
    // SAFETY: no memory is passed.
    let ret = unsafe { sys!(sysno::fcntl, fd, F_SETFL, wanted) };
    table.generation.fetch_add(1, Ordering::Relaxed);
    Verdict::Handled(ret)
}

/// `rename` and its like. It leaves no whiteout behind, which is a device, and none of an epoch: as on a file system that knows no such.
pub(crate) fn on_rename(regs: &Regs) -> Verdict {
    let (nr, Some(table)) = (regs.rax.cast_signed(), open()) else { return Verdict::Forward };
    if nr == sysno::renameat2 && regs.args[4] & RENAME_WHITEOUT != 0 {
        return Verdict::Handled(EINVAL);
    }
    names::on_move(table, nr, &regs.args).map_or(Verdict::Forward, Verdict::Handled)
}

/// The thread was away, parked or in a handler, and goes on at `context`: if it is about to make a call that was recorded,
/// that is recorded again.
pub(crate) fn again(context: &Context, words: &Tls) {
    let Some(table) = open() else { return };
    let regs = match gate::zone(context.rip) {
        // Behind a handler that was put off it is an instruction further than the block's last.
        Zone::Block { .. } | Zone::Outside if words.in_holo != 0 && !words.regs.is_null() => {
            // SAFETY: in the dispatcher, `regs` is the gate's frame.
            let regs = unsafe { &*words.regs };
            if regs.rcx != regs.raw {
                return;
            }
            names::note(table, regs.rax.cast_signed(), &regs.args, regs.rsp);
            return note(table, regs.rax.cast_signed(), &regs.args, regs.rsp);
        }
        Zone::Jump | Zone::Own { after: false } => context,
        Zone::Outside if patch::find(context.rip).is_some_and(|found| found.offset <= 0) => context,
        Zone::Block { .. }
        | Zone::Enter
        | Zone::Save
        | Zone::Exit
        | Zone::Own { after: true }
        | Zone::Outside => {
            return;
        }
    };
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r8_15[2], regs.r8_15[0], regs.r8_15[1]];
    names::note(table, regs.rax.cast_signed(), &args, regs.rsp);
    note(table, regs.rax.cast_signed(), &args, regs.rsp);
}

/// Where a write begins.
enum From {
    /// The descriptor's own position.
    Position,
    At(u64),
    /// There, also if the descriptor appends.
    Exactly(u64),
    End,
}

impl From {
    /// As calls that take an offset or none, and flags (`RWF_*`), have it.
    fn flagged(fd: u64, at: u64, flags: u64) -> Self {
        match at {
            _ if flags & RWF_APPEND != 0 => Self::End,
            u64::MAX if flags & RWF_NOAPPEND != 0 => Self::Exactly(position(fd).unwrap_or(0)),
            u64::MAX => Self::Position,
            at if flags & RWF_NOAPPEND != 0 => Self::Exactly(at),
            at => Self::At(at),
        }
    }
}

/// Of a descriptor; none: it has none.
fn position(fd: u64) -> Option<u64> {
    // SAFETY: no memory is passed.
    let at = unsafe { sys!(sysno::lseek, fd, 0, SEEK_CUR) };
    u64::try_from(at).ok()
}

fn note(table: &Changes, nr: i64, args: &[u64; 6], rsp: u64) {
    let [fd, second, third, fourth, fifth, sixth] = *args;
    match nr {
        sysno::write => write(table, fd, From::Position, third),
        sysno::pwrite64 => write(table, fd, From::At(fourth), third),
        sysno::writev => vectors(table, fd, From::Position, (second, third), rsp),
        sysno::pwritev => vectors(table, fd, From::At(fourth), (second, third), rsp),
        sysno::pwritev2 => {
            vectors(table, fd, From::flagged(fd, fourth, sixth), (second, third), rsp);
        }
        sysno::sendfile => write(table, fd, From::Position, fourth),
        sysno::splice | sysno::copy_file_range => write(table, third, at_pointer(fourth, rsp), fifth),
        sysno::ftruncate => to_end(table, fd, second),
        sysno::fallocate if second & FALLOC_MOVES != 0 => to_end(table, fd, third),
        sysno::fallocate => write(table, fd, From::Exactly(third), fourth),
        sysno::ioctl if IOCTLS_FLAGS.contains(&(second & 0xffff_ffff)) => {
            flagged(table, awaited::of_descriptor(table, fd));
        }
        sysno::ioctl if !IOCTLS_HARMLESS.contains(&(second & 0xffff_ffff)) => mark(table, fd, flags::WHOLE),
        sysno::file_setattr => flagged(table, awaited::of_name(table, fd, second, fifth)),
        sysno::mmap if fourth & (MAP_SHARED | MAP_ANONYMOUS) == MAP_SHARED => {
            mark(table, fifth, flags::MAPPED)
        }
        sysno::fcntl if second as u32 == F_SETLEASE as u32 => lease(table, fd, third),
        sysno::io_submit => submitted(table, second, third, rsp),
        sysno::utimensat | sysno::futimesat | sysno::utimes | sysno::utime if is_shut(table) => {
            times(table, nr, args);
        }
        _ => named::note(table, nr, args, rsp),
    }
}

/// There is no write lease on a file that somebody has open, as the agent may have it; and to open it breaks the lease.
fn lease(table: &Changes, fd: u64, sort: u64) {
    if sort as u32 != F_WRLCK {
        return;
    }
    awaited::lease(table);
    if is_shut(table) {
        awaited::pass(table, awaited::of_descriptor(table, fd), 0, u64::MAX);
    }
}

pub(crate) fn is_shut(table: &Changes) -> bool {
    table.bank.load(Ordering::Acquire) & SHUT != 0
}

/// A file gets other times: the agent, which is yet to read it, must not take that for an unrecorded write.
#[cold]
fn times(table: &Changes, nr: i64, args: &[u64; 6]) {
    let [first, second, _, flags, ..] = *args;
    let key = match nr {
        sysno::utimensat if second == 0 => awaited::of_descriptor(table, first),
        sysno::utimensat => awaited::of_name(table, first, second, flags),
        sysno::futimesat if second == 0 => awaited::of_descriptor(table, first),
        sysno::futimesat => awaited::of_name(table, first, second, 0),
        _ => awaited::of_name(table, AT_FDCWD, first, 0),
    };
    awaited::touch(table, key);
}

/// Waits until bytes of what a descriptor leads to may be destroyed.
#[cold]
fn wait(table: &Changes, fd: u64, target: Target, at: u64, end: u64) {
    let key = match target {
        Target::Other => return,
        Target::File { slot, .. } => Some(table.files[slot % table.files.len()].load(Ordering::Relaxed)),
        Target::Full => awaited::of_descriptor(table, fd),
    };
    awaited::pass(table, key, at, end);
}

/// The same for a write.
#[cold]
fn wait_to_write(table: &Changes, fd: u64, target: Target, from: &From, len: u64) {
    let append = matches!(target, Target::File { append: true, .. });
    let (at, len) = match from {
        // What is added destroys nothing: whoever cut the file before has waited.
        From::End => (u64::MAX, len),
        From::Position | From::At(_) if append => (u64::MAX, len),
        From::At(at) | From::Exactly(at) => (*at, len),
        From::Position => match target {
            Target::File { slot, .. } => by_position(table, slot, fd, len).unwrap_or((0, len)),
            Target::Full | Target::Other => (0, u64::MAX),
        },
    };
    wait(table, fd, target, at, at.saturating_add(len));
}

/// Where a write by the descriptor's position may come to be, with all that others write by it meanwhile.
fn by_position(table: &Changes, slot: usize, fd: u64, len: u64) -> Option<(u64, u64)> {
    positions::announce(&table.positions[slot], len, || position(fd))
}

fn at_pointer(at: u64, rsp: u64) -> From {
    match at {
        0 => From::Position,
        // A bad pointer is the kernel's to refuse.
        at => user::read::<u64>(at, rsp).map_or(From::Position, From::At),
    }
}

fn write(table: &Changes, fd: u64, from: From, len: u64) {
    let target = descriptors::target(table, fd);
    if target == Target::Other {
        return;
    }
    let (bank, shut) = changes::bank_and_gate(table);
    if shut {
        wait_to_write(table, fd, target, &from, len);
    }
    let Target::File { slot, append } = target else { return changes::overflow(bank) };
    match from {
        // Also with an offset: the kernel ignores it then.
        From::Position if append => at_end(bank, slot, fd),
        From::End => at_end(bank, slot, fd),
        // New or emptied since the cut: wherever it is, it is recorded. Asking would cost more than all else.
        From::Position if changes::is_in_tail(bank, slot, 0) => {}
        From::Position => {
            if let Some((at, len)) = by_position(table, slot, fd, len) {
                changes::range(bank, slot, at, len);
            }
        }
        From::Exactly(at) => changes::range(bank, slot, at, len),
        From::At(at) => {
            changes::range(bank, slot, at, len);
            if append {
                at_end(bank, slot, fd);
            }
        }
    }
}

fn at_end(bank: &holo_abi::changes::Bank, slot: usize, fd: u64) {
    if changes::is_appended(bank, slot) {
        return;
    }
    let mut stat = [0u64; 18];
    // SAFETY: a buffer of the size of `struct stat`.
    let failed = unsafe { sys!(sysno::fstat, fd, stat.as_mut_ptr()) };
    changes::append(bank, slot, if failed < 0 { 0 } else { stat[6] });
}

fn vectors(table: &Changes, fd: u64, from: From, (at, count): (u64, u64), rsp: u64) {
    if descriptors::target(table, fd) == Target::Other {
        return;
    }
    let mut len = 0u64;
    if count > VECTORS_MAX {
        len = u64::MAX;
    }
    for number in 0..count.min(VECTORS_MAX) {
        let vector = user::read::<[u64; 2]>(at.wrapping_add(number * 16), rsp);
        len = len.saturating_add(vector.map_or(u64::MAX, |vector| vector[1]));
    }
    write(table, fd, from, len);
}

/// All behind `at` changes.
fn to_end(table: &Changes, fd: u64, at: u64) {
    let target = descriptors::target(table, fd);
    if is_shut(table) {
        wait(table, fd, target, at, u64::MAX);
    }
    match target {
        Target::Other => {}
        Target::Full => changes::overflow(changes::bank(table)),
        Target::File { slot, .. } => changes::tail(changes::bank(table), slot, at),
    }
}

fn mark(table: &Changes, fd: u64, bits: u64) {
    let target = descriptors::target(table, fd);
    if is_shut(table) {
        wait(table, fd, target, 0, u64::MAX);
    }
    match target {
        Target::Other => {}
        Target::Full => changes::overflow(changes::bank(table)),
        Target::File { slot, .. } => changes::mark(changes::bank(table), slot, bits),
    }
}

/// Flags change, by whatever descriptor, also of a directory, of which the kernel tells nobody: it is looked at, and the file read, as
/// it would be for its other time of change. Who is yet to read it takes its flags then, too.
#[cold]
fn flagged(table: &Changes, key: Option<u64>) {
    let Some(key) = key else { return };
    if is_shut(table) {
        awaited::pass(table, Some(key), 0, u64::MAX);
    }
    let bank = changes::bank(table);
    match changes::slot_of(table, key) {
        Slot::At(slot) => changes::mark(bank, slot, flags::WHOLE),
        Slot::Elsewhere | Slot::Full => changes::overflow(bank),
    }
}

/// Asynchronous requests: their descriptors, operations and ranges.
fn submitted(table: &Changes, count: u64, list: u64, rsp: u64) {
    const LIST_MAX: u64 = 1 << 16;
    for number in 0..count.min(LIST_MAX) {
        let request = user::read::<u64>(list.wrapping_add(number * 8), rsp);
        let Ok([_, key_and_flags, operation, _, len, at, ..]) =
            request.and_then(|at| user::read::<[u64; 8]>(at, rsp))
        else {
            return;
        };
        let fd = operation >> 32;
        let from = || From::flagged(fd, at, key_and_flags >> 32);
        match operation as u16 {
            IOCB_PWRITE => write(table, fd, from(), len),
            IOCB_PWRITEV => write(table, fd, from(), u64::MAX),
            _ => {}
        }
    }
}
