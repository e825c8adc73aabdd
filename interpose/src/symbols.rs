//! The way in for functions, with `redhook`: one table, one line per function.
//!
//! It is the portable layer, for when libc's call sites are not patched (`HOLO_WAYS=symbols`, or no table
//! fits): then a hook makes its call through [`holo_syscall`], where the dispatcher sees it. When the
//! sites are patched, or system calls are trapped, a hook only calls the real function, whose system call
//! is seen further down. What stays inside libc (`system`, `popen`, `abort`, stdio) is not seen in this
//! mode; the park signal restarts those of its calls that the kernel can restart.
//!
//! A hooked cancellation point is one still: like libc itself, the hook makes cancellation asynchronous
//! around the call, and the unwinder finds its way through the gate's unwind information.
//!
//! `redhook` looks a real function up at its first use, under a lock: a signal at that instant that calls
//! the same function would wait for ever. [`start`] uses each of them once. A name with several versions in
//! libc stands in the table only if the versions are one function, or differ in nothing that a hook
//! changes; the newest is called.

mod libraries;
mod net;
mod process;
mod signal;
mod wait;

use core::sync::atomic::{AtomicBool, Ordering};
use holo_sys::gate::holo_syscall;
use libc::{c_char, c_int, ssize_t};

/// Hooks make their calls through the gate.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// A hook only calls the real function.
#[inline(always)]
pub(crate) fn passive() -> bool {
    !ACTIVE.load(Ordering::Relaxed)
}

/// Looks up every real function; until [`activate`] hooks only call them.
pub(crate) fn start() {
    libraries::resolve();
    net::resolve();
    process::resolve();
    process::resolve_vfork();
    signal::resolve();
    wait::resolve();
}

/// From now on hooks make their calls through the gate: nothing else would see them.
pub(crate) fn activate() {
    ACTIVE.store(true, Ordering::Release);
}

/// What libc returns for a system call's result.
trait Answer {
    fn of(ret: i64) -> Self;
}

fn with_errno(ret: i64) -> i64 {
    if ret < 0 {
        // SAFETY: the calling thread's errno.
        unsafe { *libc::__errno_location() = -ret as c_int };
        return -1;
    }
    ret
}

impl Answer for c_int {
    fn of(ret: i64) -> Self {
        with_errno(ret) as Self
    }
}

impl Answer for ssize_t {
    fn of(ret: i64) -> Self {
        with_errno(ret) as Self
    }
}

/// Makes a system call through the gate.
///
/// # Safety
/// As the call itself.
unsafe fn gate(nr: i64, given: &[u64]) -> i64 {
    let mut args = [0u64; 6];
    for (to, from) in args.iter_mut().zip(given) {
        *to = *from;
    }
    // SAFETY: the caller's.
    unsafe { holo_syscall(args[0], args[1], args[2], args[3], args[4], args[5], nr.cast_unsigned()) }
}

unsafe extern "C-unwind" {
    fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
}
const PTHREAD_CANCEL_ASYNCHRONOUS: c_int = 1;

/// [`gate`] for a cancellation point.
///
/// # Safety
/// As the call itself.
unsafe fn gate_cancellable(nr: i64, args: &[u64]) -> i64 {
    let mut old = 0;
    // SAFETY: a thread that is cancelled here holds nothing of ours.
    unsafe {
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &raw mut old);
        let ret = gate(nr, args);
        pthread_setcanceltype(old, &raw mut old);
        ret
    }
}

/// Looks `name` (NUL-terminated) up behind us: is there a real function?
fn exists(name: &str) -> bool {
    // SAFETY: a terminated name.
    !unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) }.is_null()
}

/// The table's lines: `name(arguments) -> result = call(number, ...)`.
///
/// `call`: through the gate; `wait`: the same, at a cancellation point; `own`: the body does it.
macro_rules! table {
    ($($name:ident ( $($arg:ident : $ty:ty),* ) -> $ret:ty = $kind:ident ( $($how:tt)* );)*) => {
        $(
            mod $name {
                #[allow(unused_imports)]
                use super::*;
                ::redhook::hook! {
                    unsafe fn $name($($arg: $ty),*) -> $ret => hooked {
                        // SAFETY: the application's call with its own arguments.
                        unsafe {
                            if $crate::symbols::passive() {
                                return ::redhook::real!($name)($($arg),*);
                            }
                            $crate::symbols::table!(@$kind $($how)*)
                        }
                    }
                }
                /// The real function; after the constructor without any lock.
                #[allow(dead_code)]
                pub(super) fn real() -> unsafe extern "C" fn($($ty),*) -> $ret {
                    ::redhook::real!($name)
                }
            }
        )*
        /// Looks up each real function once.
        pub(super) fn resolve() {
            $(
                if $crate::symbols::exists(concat!(stringify!($name), "\0")) {
                    core::hint::black_box($name::real());
                }
            )*
        }
    };
    (@call $nr:expr $(, $arg:expr)*) => {
        $crate::symbols::Answer::of($crate::symbols::gate($nr, &[$($arg as u64),*]))
    };
    (@wait $nr:expr $(, $arg:expr)*) => {
        $crate::symbols::Answer::of($crate::symbols::gate_cancellable($nr, &[$($arg as u64),*]))
    };
    (@own $body:expr) => { $body };
}
pub(crate) use table;
