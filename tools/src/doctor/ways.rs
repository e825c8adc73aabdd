//! The ways in by which holo sees an application's system calls.

use std::fs;
use std::path::{Path, PathBuf};

use super::child::{self, errno};
use super::{Probe, Status, refused};

const GROUP: &str = "ways in";
/// The call worked but did not do what it says.
const NO_EFFECT: i64 = -1;

pub(super) fn probes() -> Vec<Probe> {
    let loaded = loaded_modules();
    let find = |name: &str| {
        let named =
            |path: &&PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
        loaded.iter().find(named).cloned()
    };
    let trap = |name, tried| {
        let means =
            "system calls outside of libc can be seen (Go, hand-written assembly), where that is asked for";
        Probe::feature(
            GROUP,
            name,
            means,
            tried,
            (
                Status::Degraded,
                "a kernel with this feature, or a container \
         whose seccomp profile allows it",
            ),
        )
    };
    vec![
        chosen(),
        sites("sites_libc", find("libc.so").or_else(|| find("libc-"))).needed(),
        sites("sites_loader", find("ld-linux").or_else(|| find("ld-"))).needed(),
        trap("syscall_user_dispatch", worded(dispatch())),
        trap("seccomp_trap", worded(seccomp())),
    ]
}

/// What `HOLO_WAYS` leaves of them.
fn chosen() -> Probe {
    let means = "with fewer ways in, calls are missed and the application cannot be protected";
    let ways = std::env::var("HOLO_WAYS");
    let probe = Probe::ok(GROUP, "chosen", means, "symbols and sites (HOLO_WAYS is not set)");
    let Ok(ways) = ways else { return probe };
    let probe = Probe { why: format!("HOLO_WAYS={ways}"), ..probe };
    let has = |name| ways.split(',').any(|way| way == name);
    if has("symbols") && has("sites") { probe } else { probe.bad(Status::Degraded, "unset HOLO_WAYS") }
}

fn loaded_modules() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths: Vec<PathBuf> =
        maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..]))).collect();
    paths.dedup();
    paths
}

fn sites(name: &'static str, path: Option<PathBuf>) -> Probe {
    let means = "call sites of the C library are patched; a call that cannot be is not seen";
    let probe = Probe::ok(GROUP, name, means, "");
    let counted = path.ok_or_else(|| "not loaded: holo needs glibc".to_owned()).and_then(|path| count(&path));
    match counted {
        Ok((0, _, why)) => Probe { why, ..probe }.bad(Status::Missing, "use a glibc of x86-64"),
        Ok((_, 0, why)) => Probe { why, ..probe },
        Ok((_, _, why)) => Probe { why, ..probe }
            .bad(Status::Degraded, "report this build-id: some of its calls can be seen as traps only"),
        Err(why) => Probe { why, ..probe }.bad(Status::Missing, "use a glibc of x86-64 that can be read"),
    }
}

/// Sites that can be patched, sites that cannot, and both in words.
fn count(path: &Path) -> Result<(usize, u32, String), String> {
    let fail = |e: holo_sites::Error| format!("{}: {e}", path.display());
    let bytes = holo_sites::build(path).map_err(fail)?;
    let table = holo_sites::parse_table(&bytes).map_err(fail)?;
    let id: String = table.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (patched, left) = (table.sites.len(), table.left);
    let why = format!("{}: {patched} of {} sites, build-id {id}", path.display(), patched + left as usize);
    Ok((patched, left, why))
}

fn worded(result: Result<i64, String>) -> Result<String, String> {
    match result? {
        0 => Ok("tried, works".to_owned()),
        NO_EFFECT => Err("tried, has no effect".to_owned()),
        error => Err(refused("tried", i32::try_from(error).unwrap_or(libc::EIO))),
    }
}

/// A call that the handler answers with this, in place of the kernel.
const ANSWER: i64 = 4_040;
static TRAPPED: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);
/// Read by the kernel before each call: 0 lets it pass, 1 sends `SIGSYS`.
static SELECTOR: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

extern "C" fn on_trap(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    use std::sync::atomic::Ordering::Relaxed;
    SELECTOR.store(0, Relaxed);
    TRAPPED.fetch_add(1, Relaxed);
    let _ = info;
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel's frame of this signal, valid until the handler returns.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = ANSWER };
}

fn install() -> i64 {
    // SAFETY: the handler is async-signal-safe; the structure is complete.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        errno(i64::from(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())))
    }
}

fn answered() -> i64 {
    // SAFETY: a call without memory.
    if unsafe { libc::syscall(libc::SYS_getppid) } == ANSWER { 0 } else { NO_EFFECT }
}

/// Syscall User Dispatch with a selector.
fn dispatch() -> Result<i64, String> {
    const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
    const PR_SYS_DISPATCH_ON: u64 = 1;
    let [result] = child::run(|| {
        let error = install();
        if error != 0 {
            return [error];
        }
        // SAFETY: the selector is static; a range of no bytes leaves every call to it.
        let on = unsafe {
            libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0u64, 0u64, SELECTOR.as_ptr())
        };
        if on != 0 {
            return [errno(i64::from(on))];
        }
        SELECTOR.store(1, std::sync::atomic::Ordering::Relaxed);
        [answered()]
    })?;
    Ok(result)
}

/// A filter that traps `getppid`.
fn seccomp() -> Result<i64, String> {
    let [result] = child::run(|| {
        let error = install();
        if error != 0 {
            return [error];
        }
        let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let mut filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
            libc::sock_filter { code: equal as u16, jt: 0, jf: 1, k: libc::SYS_getppid as u32 },
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRAP),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the filter lives during the call; it binds this child alone.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        [if done == 0 { answered() } else { errno(i64::from(done)) }]
    })?;
    Ok(result)
}
