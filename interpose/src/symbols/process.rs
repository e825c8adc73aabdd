//! Programs, threads, and `syscall` itself.

use super::{gate, passive, table, with_errno};
use crate::{exec, signals};
use core::arch::naked_asm;
use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, Ordering};
use holo_abi::sysno as nr;
use libc::{c_char, c_int, c_long, posix_spawn_file_actions_t, posix_spawnattr_t, pthread_attr_t, pthread_t};

type Text = *const c_char;
type List = *const *const c_char;
type Body = extern "C" fn(*mut c_void) -> *mut c_void;
type BodyC11 = extern "C" fn(*mut c_void) -> c_int;

/// libc's cancellation signal.
const CANCEL_SIGNAL: i32 = 32;

unsafe extern "C" {
    static environ: List;
}

table! {
    execve(path: Text, argv: List, env: List) -> c_int = own(started(|| real()(path, argv, extended(env))));
    execv(path: Text, argv: List) -> c_int = own(
        started(|| execve::real()(path, argv, extended(environ))));
    execvp(file: Text, argv: List) -> c_int = own(
        started(|| execvpe::real()(file, argv, extended(environ))));
    execvpe(file: Text, argv: List, env: List) -> c_int = own(
        started(|| real()(file, argv, extended(env))));
    fexecve(fd: c_int, argv: List, env: List) -> c_int = own(
        started(|| real()(fd, argv, extended(env))));
    execveat(dir: c_int, path: Text, argv: List, env: List, flags: c_int) -> c_int = own(
        started(|| real()(dir, path, argv, extended(env), flags)));
    // Before 2.15 a script without `#!` was given to the shell; that version is not called any more.
    posix_spawn(pid: *mut c_int, path: Text, files: *const posix_spawn_file_actions_t,
        how: *const posix_spawnattr_t, argv: List, env: List) -> c_int = own(
        real()(pid, path, files, how, argv, extended(env)));
    posix_spawnp(pid: *mut c_int, file: Text, files: *const posix_spawn_file_actions_t,
        how: *const posix_spawnattr_t, argv: List, env: List) -> c_int = own(
        real()(pid, file, files, how, argv, extended(env)));

    // libc installs handlers of its own, below us, when it makes or cancels a thread for the first time.
    pthread_create(thread: *mut pthread_t, how: *const pthread_attr_t, body: Body, arg: *mut c_void)
        -> c_int = own({ let ret = real()(thread, how, body, arg); signals::take_back(holo_abi::PARK_SIGNAL); ret });
    thrd_create(thread: *mut pthread_t, body: BodyC11, arg: *mut c_void) -> c_int = own({
        let ret = real()(thread, body, arg);
        signals::take_back(holo_abi::PARK_SIGNAL);
        ret
    });
    pthread_cancel(thread: pthread_t) -> c_int = own({
        let ret = real()(thread);
        signals::take_back(CANCEL_SIGNAL);
        ret
    });

    // Variadic, but a caller that passes fewer arguments only leaves the others undefined.
    syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long = own(
        match number {
            // The child must not come back through a frame of ours.
            nr::clone | nr::clone3 | nr::fork | nr::vfork => real()(number, a, b, c, d, e, f),
            _ => with_errno(gate(number, &[a, b, c, d, e, f].map(i64::cast_unsigned))),
        });
}

/// A call that starts a program, see `exec::on_exec`.
fn started(call: impl FnOnce() -> c_int) -> c_int {
    signals::block_park(true);
    let failed = call();
    signals::block_park(false);
    failed
}

/// The environment with what holo needs in it.
unsafe fn extended(env: List) -> List {
    let here = 0u64;
    // SAFETY: the environment that the caller wants to start a program with.
    unsafe { exec::extended(env as u64, (&raw const here) as u64) }.map_or(env, |built| built as List)
}

// The child of `vfork` comes back through the same frame as its parent: nothing may stay on the stack.
macro_rules! forked {
    ($($name:ident),*) => {
        $(
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            unsafe extern "C" fn $name() {
                naked_asm!(
                    ".cfi_startproc",
                    "sub rsp, 8",
                    ".cfi_adjust_cfa_offset 8",
                    "call {before}",
                    "add rsp, 8",
                    ".cfi_adjust_cfa_offset -8",
                    "jmp rax",
                    ".cfi_endproc",
                    before = sym before_vfork,
                );
            }
        )*
    };
}

forked! { vfork, __vfork }

static VFORK: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// Looks up `vfork`, which no table line can stand for.
pub(super) fn resolve_vfork() {
    // SAFETY: a terminated name.
    VFORK.store(unsafe { libc::dlsym(libc::RTLD_NEXT, c"vfork".as_ptr()) }, Ordering::Release);
}

/// Returns libc's `vfork`.
extern "C" fn before_vfork() -> *mut c_void {
    const VFORK_FLAGS: u64 = 0x4100;
    if !passive() {
        signals::on_clone(VFORK_FLAGS);
    }
    if VFORK.load(Ordering::Acquire).is_null() {
        resolve_vfork();
    }
    VFORK.load(Ordering::Acquire)
}

// `execl` and its kin take their arguments one by one, up to a null pointer. The register arguments are
// pushed below those on the stack, which makes them one array; their array takes its place, it waits below.
macro_rules! listed {
    ($($name:ident, $body:path;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            unsafe extern "C" fn $name() {
                naked_asm!(
                    ".cfi_startproc",
                    "mov rax, [rsp]",
                    "mov [rsp], r9",
                    "push r8",
                    ".cfi_adjust_cfa_offset 8",
                    "push rcx",
                    ".cfi_adjust_cfa_offset 8",
                    "push rdx",
                    ".cfi_adjust_cfa_offset 8",
                    "push rsi",
                    ".cfi_adjust_cfa_offset 8",
                    "mov rsi, rsp",
                    "push rax",
                    ".cfi_adjust_cfa_offset 8",
                    ".cfi_offset rip, -48",
                    "call {body}",
                    "mov rcx, [rsp]",
                    "add rsp, 40",
                    ".cfi_adjust_cfa_offset -40",
                    "mov [rsp], rcx",
                    ".cfi_offset rip, -8",
                    "ret",
                    ".cfi_endproc",
                    body = sym $body,
                );
            }
        )*
    };
}

listed! {
    execl, list_path;
    execlp, list_file;
    execle, list_environment;
}

unsafe extern "C" fn list_path(path: Text, argv: List) -> c_int {
    // SAFETY: an array ended by a null pointer, by the contract of `execl`.
    unsafe {
        if passive() {
            return execve::real()(path, argv, environ);
        }
        started(|| execve::real()(path, argv, extended(environ)))
    }
}

unsafe extern "C" fn list_file(file: Text, argv: List) -> c_int {
    // SAFETY: as above.
    unsafe {
        if passive() {
            return execvpe::real()(file, argv, environ);
        }
        started(|| execvpe::real()(file, argv, extended(environ)))
    }
}

unsafe extern "C" fn list_environment(path: Text, argv: List) -> c_int {
    // SAFETY: the environment follows the null pointer, by the contract of `execle`.
    unsafe {
        let mut end = argv;
        while !(*end).is_null() {
            end = end.add(1);
        }
        let env = *end.add(1).cast::<List>();
        if passive() {
            return execve::real()(path, argv, env);
        }
        started(|| execve::real()(path, argv, extended(env)))
    }
}
