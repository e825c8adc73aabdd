//! `holo-restorer`: the tiny static program that becomes a clone.
//!
//! Started by the agent. It makes the namespaces in which the clone can have its own pid and clock, an
//! *init* that reaps for it, and the clone itself, which only serves system calls from then on; everything
//! else the agent does through them.
//!
//! ```text
//! keeper  unshare(user? pid mount time), maps, clock offsets; waits, ends as the clone ends
//!   init  pid 1: slave mounts, fresh /proc; reaps
//!     clone  pid = the application's: maps the control page where the application has it; serves slot 0
//! ```
//!
//! Arguments, all decimal: page descriptor, page address, page bytes, server header offset (0), pid, slot
//! offset, new user namespace (0/1), monotonic offset seconds, nanoseconds, boottime offset seconds,
//! nanoseconds, uid, gid, pid of the process as which the keeper ends, pseudo-terminals of its own (0/1).
#![no_std]
#![no_main]

mod mem;

use core::arch::global_asm;
use holo_abi::sysno;
use holo_sys::{raw, serve, sys};

const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_NEWTIME: u64 = 0x80;
const SIGCHLD: u64 = 17;
const MAP_SHARED_FIXED_NOREPLACE: u64 = 0x01 | 0x10_0000;
const ARGUMENTS: usize = 15;

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call restorer_main",
    "ud2",
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    fail(b"panic", 0)
}

fn exit(code: u64) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { sys!(sysno::exit_group, code) };
    }
}

/// Says what failed and ends; the agent reads it from standard error.
fn fail(what: &[u8], errno: i64) -> ! {
    let mut digits = [b' '; 6];
    let mut value = -errno;
    for place in digits.iter_mut().rev().take(5) {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
    raw::write(2, what);
    raw::write(2, b": errno");
    raw::write(2, &digits);
    raw::write(2, b"\n");
    exit(120)
}

fn check(what: &[u8], ret: i64) -> i64 {
    if ret < 0 {
        fail(what, ret);
    }
    ret
}

fn number(at: *const u8) -> i64 {
    let (mut value, mut at, mut sign) = (0i64, at, 1);
    // SAFETY: a NUL-terminated argument.
    unsafe {
        if *at == b'-' {
            sign = -1;
            at = at.add(1);
        }
        while (*at).is_ascii_digit() {
            value = value * 10 + i64::from(*at - b'0');
            at = at.add(1);
        }
    }
    sign * value
}

/// A text built from pieces and decimal numbers.
struct Text {
    bytes: [u8; 160],
    used: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 160], used: 0 }
    }

    fn put(mut self, piece: &[u8]) -> Self {
        for byte in piece {
            self.bytes[self.used] = *byte;
            self.used += 1;
        }
        self
    }

    fn number(mut self, value: i64) -> Self {
        if value < 0 {
            self = self.put(b"-");
        }
        let mut digits = [0u8; 20];
        let (mut value, mut count) = (value.unsigned_abs(), 0);
        loop {
            digits[count] = b'0' + (value % 10) as u8;
            value /= 10;
            count += 1;
            if value == 0 {
                break;
            }
        }
        while count > 0 {
            count -= 1;
            self = self.put(&[digits[count]]);
        }
        self
    }
}

fn write_file(path: &[u8], text: &Text) -> i64 {
    // SAFETY: NUL-terminated path, own descriptor.
    unsafe {
        let fd = sys!(sysno::open, path.as_ptr(), 0o2_000_001);
        if fd < 0 {
            return fd;
        }
        let ret = raw::write(fd as i32, &text.bytes[..text.used]);
        sys!(sysno::close, fd);
        ret
    }
}

struct Order {
    page_fd: i64,
    page_address: u64,
    page_bytes: u64,
    slot_offset: u64,
    pid: i32,
    new_user: bool,
    clocks: [i64; 4],
    uid: i64,
    gid: i64,
    main: i64,
    terminals: bool,
}

impl Order {
    /// What init keeps open: a socket pair in which the agent leaves descriptors that must outlive it.
    fn vault(&self) -> core::ops::Range<i64> {
        self.page_fd + 2..self.page_fd + 4
    }
}

#[unsafe(no_mangle)]
extern "C" fn restorer_main(stack: *const u64) -> ! {
    // SAFETY: the kernel's initial stack: argc, argv.
    let argument = |i: usize| number(unsafe { *stack.add(1 + 1 + i) } as *const u8);
    // SAFETY: as above.
    if unsafe { *stack } != 1 + ARGUMENTS as u64 {
        fail(b"holo-restorer is started by holod, not by hand", 0);
    }
    let order = Order {
        page_fd: argument(0),
        page_address: argument(1).cast_unsigned(),
        page_bytes: argument(2).cast_unsigned(),
        pid: argument(4) as i32,
        slot_offset: argument(5).cast_unsigned(),
        new_user: argument(6) == 1,
        clocks: [argument(7), argument(8), argument(9), argument(10)],
        uid: argument(11),
        gid: argument(12),
        main: argument(13),
        terminals: argument(14) == 1,
    };
    keeper(&order)
}

fn keeper(order: &Order) -> ! {
    let user = if order.new_user { CLONE_NEWUSER } else { 0 };
    // SAFETY: one thread.
    check(b"unshare", unsafe { sys!(sysno::unshare, user | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWTIME) });
    if order.new_user {
        write_file(b"/proc/self/setgroups\0", &Text::new().put(b"deny"));
        let map = |id| Text::new().number(id).put(b" ").number(id).put(b" 1");
        check(b"uid_map", write_file(b"/proc/self/uid_map\0", &map(order.uid)));
        check(b"gid_map", write_file(b"/proc/self/gid_map\0", &map(order.gid)));
    }
    let [mono_s, mono_ns, boot_s, boot_ns] = order.clocks;
    if order.clocks != [0; 4] {
        let text = Text::new().put(b"monotonic ").number(mono_s).put(b" ").number(mono_ns);
        let text = text.put(b"\nboottime ").number(boot_s).put(b" ").number(boot_ns).put(b"\n");
        check(b"timens_offsets", write_file(b"/proc/self/timens_offsets\0", &text));
    }
    // SAFETY: a plain fork.
    let child = check(b"fork", unsafe { sys!(sysno::clone, SIGCHLD, 0, 0, 0, 0) });
    if child == 0 {
        init(order);
    }
    close_all_but(-1..0);
    let status = wait_for(child);
    end_as(status)
}

/// Nothing here needs any other descriptor any more.
fn close_all_but(kept: core::ops::Range<i64>) {
    // SAFETY: our own descriptors. The first call fails where nothing is below.
    unsafe {
        sys!(sysno::close_range, 0, kept.start - 1, 0);
        sys!(sysno::close_range, kept.end, u32::MAX, 0)
    };
}

/// Reaps until there is no child left; the status of `child`.
fn wait_for(child: i64) -> i32 {
    let mut ours = 0;
    loop {
        let mut status = 0i32;
        // SAFETY: writes one int. `__WALL`: snapshots are made without a signal.
        let pid = unsafe { sys!(sysno::wait4, -1i64, &raw mut status, 0x4000_0000u64, 0) };
        if pid == child {
            ours = status;
        } else if pid == -10 {
            return ours;
        }
    }
}

/// Ends as the child ended.
fn end_as(status: i32) -> ! {
    let signal = status & 0x7f;
    if signal != 0 {
        // No second core file.
        let none = [0u64; 2];
        let default = [0u64; 4];
        // SAFETY: our own limits, action and mask.
        unsafe {
            sys!(sysno::setrlimit, 4, none.as_ptr());
            sys!(sysno::rt_sigaction, signal, default.as_ptr(), 0, 8);
            sys!(sysno::kill, sys!(sysno::getpid), signal);
        }
        // Pid 1 of a namespace does not die of its own signals: pass it on as shells do.
        exit(128 + signal as u64);
    }
    exit(((status >> 8) & 0xff) as u64)
}

fn init(order: &Order) -> ! {
    const MS_REC_SLAVE: u64 = 0x4000 | 0x8_0000;
    // SAFETY: constant, NUL-terminated strings. Without a fresh /proc the clone still runs: /proc/self is right
    // in the old one, numbers are not.
    unsafe {
        sys!(sysno::mount, 0, c"/".as_ptr(), 0, MS_REC_SLAVE, 0);
        sys!(sysno::mount, c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, 0);
    }
    if order.terminals {
        // SAFETY: constant, NUL-terminated strings. An instance of its own, so that each gets the number that it had.
        let mounted = unsafe {
            let options = c"newinstance,ptmxmode=0666,mode=0620";
            sys!(
                sysno::mount,
                c"devpts".as_ptr(),
                c"/dev/pts".as_ptr(),
                c"devpts".as_ptr(),
                0,
                options.as_ptr()
            )
        };
        check(b"mounting /dev/pts", mounted);
    }
    let tid = order.pid;
    let mut arguments = [0u64; 11];
    arguments[4] = SIGCHLD;
    arguments[8] = (&raw const tid) as u64;
    arguments[9] = 1;
    // SAFETY: complete arguments; no stack is shared.
    let child = check(b"clone3 with set_tid", unsafe { sys!(sysno::clone3, arguments.as_ptr(), 88) });
    if child == 0 {
        clone(order);
    }
    close_all_but(order.vault());
    let status = wait_for(order.main);
    // The keeper must learn of a signal, which pid 1 cannot die of: 128 + signal, told apart by the agent's
    // own watching of the clone.
    end_as(status)
}

fn clone(order: &Order) -> ! {
    // SAFETY: a shared mapping at an address that must be free.
    let at = unsafe {
        sys!(
            sysno::mmap,
            order.page_address,
            order.page_bytes,
            3,
            MAP_SHARED_FIXED_NOREPLACE,
            order.page_fd,
            0
        )
    };
    if at.cast_unsigned() != order.page_address {
        fail(b"the control page's address is taken", if at < 0 { at } else { -17 });
    }
    // SAFETY: the page is mapped; the agent prepared it for us alone.
    unsafe {
        let header = at as *mut holo_abi::control::Header;
        (*header).serve_start = serve::start();
        (*header).serve_end = serve::end();
        let slot = (order.page_address + order.slot_offset) as *mut holo_abi::control::Slot;
        (*slot).state.store(holo_abi::control::slot::DONE, core::sync::atomic::Ordering::SeqCst);
        sys!(sysno::futex, slot, 1, 1);
        serve::holo_serve(slot, header);
    }
    exit(121)
}
