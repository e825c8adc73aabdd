//! The control page: one shared mapping between a process and the agent of its node.
//!
//! ```text
//!   agent                         thread of the app
//!   cut.store(gen, PARK)
//!   rt_tgsigqueueinfo(tid) ─────► handler: claims a Slot, fills it, state = PARKED
//!   calls[..] filled, state=CALL ► server runs the calls, state = DONE
//!   cut CAS PARK -> RELEASE       (fails if a thread gave up first: the epoch is aborted)
//!   state = GO, futex wake ─────► handler returns, the interrupted call is issued again
//! ```
//!
//! A parked thread that hears nothing from the agent (no change of [`Header::keepalive`] for
//! [`Header::ticks_max`] ticks) moves `cut` from PARK to ABORTED itself and runs on: a dead agent never
//! holds an application. The compare-and-swap decides who won; there is no state between.

use crate::sysno;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// First word of the page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HOLOCTL1");
/// Most threads that one process may have and still be dumped; past it the app is unprotected.
pub const SLOTS_MAX: usize = 2048;
/// Calls in a slot's own list.
pub const SLOT_CALLS: usize = 16;
/// Calls in the shared list, for whichever thread the agent points at it.
pub const BATCH_CALLS: usize = 256;
/// Bytes that calls may use as buffers.
pub const SCRATCH_BYTES: usize = 256 * 1024;
/// Files whose identity may be another than this node's; past it they show the node's.
pub const INODES_MAX: usize = 16384;
/// Forked processes of one page that are remembered; orphans beyond them are found only while they have a parent in
/// the application.
pub const MEMBERS_MAX: usize = 4096;
/// System V semaphore sets and message queues that the processes of one page are remembered to use; past it those are
/// found that a process of the application has operated on.
pub const OBJECTS_MAX: usize = 2048;
/// Requests at once to lift write-protection.
pub const LIFTS_MAX: usize = 16;
/// Registrations for notices (`mq_notify`) that the processes of one page are remembered to have.
pub const NOTICES_MAX: usize = 256;
/// Processes of one page whose first threads ended with a signal for their parent's death that are remembered; that of others is lost
/// in a restore.
pub const MOURNERS_MAX: usize = 256;
/// Calls whose results name inodes.
pub const INODE_CALLS: [i64; 6] =
    [sysno::stat, sysno::fstat, sysno::lstat, sysno::newfstatat, sysno::statx, sysno::getdents64];

/// States of [`Header::cut`], in its low 8 bits; the generation is above them.
pub mod cut {
    /// No cut is wanted.
    pub const RUN: u64 = 0;
    /// Threads are to park.
    pub const PARK: u64 = 1;
    /// The agent is done and lets the threads go.
    pub const RELEASE: u64 = 2;
    /// A parked thread gave up waiting; what was read since is void.
    pub const ABORTED: u64 = 3;
    /// Word for a generation and a state.
    #[must_use]
    pub const fn word(generation: u64, state: u64) -> u64 {
        generation << 8 | state
    }
    /// State of a word.
    #[must_use]
    pub const fn state(word: u64) -> u64 {
        word & 0xff
    }
    /// Generation of a word.
    #[must_use]
    pub const fn generation(word: u64) -> u64 {
        word >> 8
    }
}

/// States of [`Slot::state`].
pub mod slot {
    /// Nobody uses it.
    pub const FREE: u32 = 0;
    /// A thread claimed it and is filling it in.
    pub const CLAIMED: u32 = 1;
    /// The thread waits for orders.
    pub const PARKED: u32 = 2;
    /// The agent asks for [`super::Slot::calls`] to be run.
    pub const CALL: u32 = 3;
    /// They were run; the thread waits for orders.
    pub const DONE: u32 = 4;
    /// The thread may go; it frees the slot.
    pub const GO: u32 = 5;
}

/// Entries of [`Control::objects`].
pub mod object {
    /// A semaphore set.
    pub const SEMAPHORES: u64 = 1;
    /// A message queue.
    pub const QUEUE: u64 = 2;
    /// Word for an object of a kind with an id.
    #[must_use]
    pub const fn word(kind: u64, id: u32) -> u64 {
        kind << 32 | id as u64
    }
    /// Id of an entry that is of this kind.
    #[must_use]
    pub const fn id(word: u64, kind: u64) -> Option<i32> {
        if word >> 32 == kind { Some(word as u32 as i32) } else { None }
    }
}

/// Bits of [`Header::tracked`].
pub mod tracked {
    /// The agent may have write-protected zones of processes of the page, to see which pages change.
    pub const NOW: u32 = 1;
    /// It had, or watched them while a restore filled them: the kernel may hold memory for several zones that would be one.
    pub const EVER: u32 = 2;
}

/// States of [`Lift::state`].
pub mod lift {
    /// Nobody uses it.
    pub const FREE: u32 = 0;
    /// A thread claimed it and is filling it in.
    pub const CLAIMED: u32 = 1;
    /// The agent is asked.
    pub const ASKED: u32 = 2;
    /// It has done so; who asked frees it.
    pub const DONE: u32 = 3;
}

/// A system call to be made by a parked thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    /// Number; see [`super::sysno`] and the pseudo calls below.
    pub nr: i64,
    /// Arguments.
    pub args: [u64; 6],
    /// Result, negative `errno` on failure.
    pub ret: i64,
}

/// Pseudo call: set the stack pointer to `args[0]` and make `rt_sigreturn`; does not come back.
pub const CALL_SIGRETURN: i64 = 0x1000;
/// Pseudo call: go on serving at the code address `args[0]` with the slot address `args[1]` and the header
/// address `args[2]`; the call itself reads as done.
pub const CALL_JUMP: i64 = 0x1001;
/// Pseudo call: `clone3(args[0], args[1])`; the child serves the slot at `args[2]`.
pub const CALL_CLONE: i64 = 0x1002;
/// Pseudo call: copy `args[2]` bytes from `args[1]` to `args[0]`.
pub const CALL_COPY: i64 = 0x1003;
/// Pseudo call: wait until the `u32` at `args[0]` differs from `args[1]`.
pub const CALL_WAIT: i64 = 0x1004;

/// One parked thread.
#[repr(C, align(64))]
pub struct Slot {
    /// See [`slot`]; also the futex.
    pub state: AtomicU32,
    /// Thread id as the app sees it.
    pub tid: u32,
    /// Address of the thread's saved `ucontext`, from which `rt_sigreturn` resumes it.
    pub frame: u64,
    /// FS base (thread pointer).
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// `set_tid_address` word.
    pub tid_address: u64,
    /// Robust list head and length.
    pub robust_head: u64,
    /// Length given with the robust list.
    pub robust_len: u64,
    /// Registered rseq area, 0 if none.
    pub rseq: u64,
    /// Length given with it.
    pub rseq_len: u32,
    /// Signature given with it.
    pub rseq_sig: u32,
    /// Address of the list to run (in the process).
    pub calls_at: u64,
    /// Its length.
    pub calls_count: u32,
    /// 1: stop at the first call that fails.
    pub calls_stop: u32,
    /// How many were run.
    pub calls_done: u32,
    /// Generation of the cut that this thread parked for (low 32 bits).
    pub generation: u32,
    /// What the thread does when it is let go or gives up: 0 returns to the application, 1 ends the process
    /// (snapshots and clones that are not complete must never run application code).
    pub leave: u32,
    /// Process id as the app sees it: processes that were forked share their page.
    pub pid: u32,
    /// Timer slack, nanoseconds.
    pub slack_ns: u64,
    /// Own list.
    pub calls: [Call; SLOT_CALLS],
}

/// A request to the agent: no page in a range is to be write-protected by it any more.
#[repr(C)]
pub struct Lift {
    /// See [`lift`]; also the futex of who asked.
    pub state: AtomicU32,
    /// Zero.
    pub reserved: u32,
    /// First address.
    pub start: AtomicU64,
    /// One past the last.
    pub end: AtomicU64,
}

/// Start of the page.
#[repr(C, align(64))]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`super::VERSION`].
    pub version: u32,
    /// Bytes of the whole mapping.
    pub bytes: u32,
    /// See [`cut`].
    pub cut: AtomicU64,
    /// Changed by the agent while it works on a cut; parked threads watch it.
    pub keepalive: AtomicU32,
    /// Ticks without a change of `keepalive` after which a parked thread gives up.
    pub ticks_max: u32,
    /// Length of a tick, a `timespec` for `futex`.
    pub tick: [u64; 2],
    /// Where the process mapped this page.
    pub address: u64,
    /// Process id as the app sees it.
    pub pid: u32,
    /// Active ways in, see [`super::ways`].
    pub ways: AtomicU32,
    /// Address of `holo_serve`'s entry for restored threads (`r12` = slot, `r13` = header).
    pub serve_at: u64,
    /// Start and end of position-independent server code that may be copied elsewhere.
    pub serve_start: u64,
    /// End of it.
    pub serve_end: u64,
    /// Bases of libholo's mapping.
    pub holo_start: u64,
    /// End of it.
    pub holo_end: u64,
    /// Parent process id that the app shall see; 0: the kernel's.
    pub ppid: AtomicU32,
    /// Entries of [`Control::members`] that were ever used.
    pub members_used: AtomicU32,
    /// Raised before each call that makes a process or another program of one.
    pub changes: AtomicU32,
    /// 1: the app used `madvise(MADV_WIPEONFORK)`, so that a fork is no full snapshot of it.
    pub wipe_on_fork: AtomicU32,
    /// Sites patched, for reports.
    pub sites_patched: AtomicU32,
    /// Sites that could not be patched.
    pub sites_left: AtomicU32,
    /// Count of calls by number if `HOLO_TRACE=1` was asked for.
    pub trace: AtomicU32,
    /// Number of `mmap`ed bytes that libholo itself uses, for reports.
    pub own_bytes: AtomicU32,
    /// Raised by each thread that parks, so that the agent can wait for it.
    pub arrived: AtomicU32,
    /// 1: io_uring was asked for and refused, for reports.
    pub uring_refused: AtomicU32,
    /// Slots below this index were ever used: the agent looks no further.
    pub slots_used: AtomicU32,
    /// Entries of [`Control::inodes`]; not changed while the process runs.
    pub inodes_count: AtomicU32,
    /// Address of the library's class of each call number, one byte each: a restore that fills
    /// [`Control::inodes`] marks the calls that show inodes there. Nothing else is in their page, nor is it written otherwise.
    pub class_at: u64,
    /// See [`exiting`]; set by the process itself in `exit_group`, so that its end is told from a kill also where nobody
    /// watched.
    pub exiting: AtomicU32,
    /// See [`filters`].
    pub filters: AtomicU32,
    /// See [`tracked`].
    pub tracked: AtomicU32,
    /// Threads that are in a call that must not find protected zones; the agent protects nothing while there are any.
    pub hands_off: AtomicU32,
    /// Raised with each request in [`Control::lifts`]; the agent waits for it.
    pub lifts_asked: AtomicU32,
    /// Raised before each call that changes flags of zones (`madvise`, `mlock`), or gives shared memory back (`MADV_REMOVE`).
    pub advised: AtomicU32,
    /// Raised with each call that sets an option of a socket.
    pub options_set: AtomicU32,
    /// 1: a restore made the user namespace that the process is in, where the kernel knows no users but its own.
    pub lone: AtomicU32,
    /// Where the process mapped the table of file changes ([`super::changes`]); 0: it records nothing.
    pub changes_at: u64,
    /// Address of the table of contexts of asynchronous I/O ([`super::aio`]), the same in forked processes.
    pub aio_at: u64,
    /// Threads that are in a call that may move memory (`mremap`).
    pub moving: AtomicU32,
    /// Raised with each such call that may have moved page tables as they are, with all that they say of pages.
    pub moved: AtomicU32,
    /// 1: pages of the process's memory are still to come from the image that it was restored from. Woken when they are there.
    pub late: AtomicU32,
    /// Its place among the processes of that image.
    pub late_index: AtomicU32,
    /// Number of that epoch.
    pub late_epoch: AtomicU64,
    /// Number of the descriptor of the clone's init in which its userfaultfd is kept.
    pub late_vault: AtomicU32,
}

/// What [`Header::exiting`] says for an exit code: 0 is for a process that has not called `exit_group`.
#[must_use]
pub const fn exiting(code: u8) -> u32 {
    0x100 | code as u32
}

/// Values of [`Header::filters`]: whether a process of the page has laid a filter on its system calls (`seccomp`), or let itself be traced.
pub mod filters {
    /// One did, or tried to.
    pub const EVER: u32 = 1;
    /// Added by each thread that is about to.
    pub const MAKING: u32 = 2;
}

/// The exit code in [`Header::exiting`].
#[must_use]
pub const fn exit_code(exiting: u32) -> Option<u8> {
    if exiting & 0x100 == 0 { None } else { Some(exiting as u8) }
}

/// A file that the application knows under another identity than this node's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct InodeName {
    /// Device and inode number on this node.
    pub real: [u64; 2],
    /// Device and inode number that the application sees.
    pub app: [u64; 2],
}

/// A registration for a notice of a message queue.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Notice {
    /// See [`Notice::word`]; 0: free. Written last.
    pub who: AtomicU64,
    /// Value of the `sigevent`.
    pub value: AtomicU64,
    /// Its signal or socket, and above it how.
    pub what: AtomicU64,
    /// What its value points to where that is a message for the socket: the caller may use the memory again at once.
    pub cookie: [AtomicU64; 4],
}

impl Notice {
    /// Word for a process, by its pid as it sees itself, and its descriptor.
    #[must_use]
    pub const fn word(pid: u32, fd: u32) -> u64 {
        (pid as u64) << 32 | fd as u64
    }
}

/// The page.
#[repr(C)]
pub struct Control {
    /// Words that both sides use.
    pub header: Header,
    /// Calls seen by the dispatcher, by number, when tracing is on.
    pub seen: [AtomicU64; 512],
    /// Parked threads.
    pub slots: [Slot; SLOTS_MAX],
    /// Long call list.
    pub batch: [Call; BATCH_CALLS],
    /// Buffers for calls.
    pub scratch: [u8; SCRATCH_BYTES],
    /// Files by [`InodeName::real`], ascending: [`Header::inodes_count`] of them.
    pub inodes: [InodeName; INODES_MAX],
    /// Pids, as they see themselves, of processes that were forked with this page; 0: free. One that ended stays until
    /// the agent frees it.
    pub members: [AtomicU32; MEMBERS_MAX],
    /// System V objects that were asked for, see [`object`]; 0: free.
    pub objects: [AtomicU64; OBJECTS_MAX],
    /// Requests to lift write-protection.
    pub lifts: [Lift; LIFTS_MAX],
    /// Registrations for notices of message queues, which the kernel shows in part.
    pub notices: [Notice; NOTICES_MAX],
    /// Processes whose first threads ended with a signal for their parent's death, see [`mourner`]; 0: free.
    pub mourners: [AtomicU64; MOURNERS_MAX],
}

/// Word for a process, by its pid as it sees itself, and a signal.
#[must_use]
pub const fn mourner(pid: u32, signal: u32) -> u64 {
    (pid as u64) << 32 | signal as u64
}

/// Bytes of the mapping, whole pages.
pub const CONTROL_BYTES: usize = (size_of::<Control>() + 4095) & !4095;

const _: () = assert!(size_of::<Call>() == 64);
const _: () = assert!(size_of::<Slot>() == 128 + 64 * SLOT_CALLS);
const _: () = assert!(size_of::<Header>() == 256);
const _: () = assert!(size_of::<InodeName>() == 32);
const _: () = assert!(size_of::<Lift>() == 24);
const _: () = assert!(core::mem::offset_of!(Header, cut) == 16);
const _: () = assert!(core::mem::offset_of!(Header, keepalive) == 24);
const _: () = assert!(core::mem::offset_of!(Header, tick) == 32);
const _: () = assert!(core::mem::offset_of!(Slot, calls_at) == 72);
const _: () = assert!(core::mem::offset_of!(Slot, calls_count) == 80);
const _: () = assert!(core::mem::offset_of!(Slot, calls_stop) == 84);
const _: () = assert!(core::mem::offset_of!(Slot, calls_done) == 88);
const _: () = assert!(core::mem::offset_of!(Slot, leave) == 96);
