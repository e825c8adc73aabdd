//! What a clone puts back by itself: the kernel's picture of its memory layout, its timers' ids.

use std::fs;

use super::child::{self, errno};
use super::{Probe, Status, refused};

const GROUP: &str = "restore";
/// The call worked but did not do what it says.
const NO_EFFECT: i64 = -1;

pub(super) fn probes() -> Vec<Probe> {
    vec![
        Probe::feature(
            GROUP,
            "prctl_mm_map",
            "a clone gets back its heap end and its command line in /proc",
            tried(mm_map),
            (Status::Missing, "a kernel with CONFIG_CHECKPOINT_RESTORE"),
        )
        .needed(),
        Probe::feature(
            GROUP,
            "timer_ids",
            "POSIX timers are created with their ids; without, creation is repeated until the id comes",
            tried(timer_ids),
            (Status::Degraded, "a kernel of 6.15 or later"),
        ),
    ]
}

fn tried(probe: impl FnOnce() -> i64) -> Result<String, String> {
    let [result] = child::run(|| [probe()])?;
    match result {
        0 => Ok("tried, works".to_owned()),
        NO_EFFECT => Err("tried, has no effect".to_owned()),
        errno => Err(refused("tried", i32::try_from(errno).unwrap_or(libc::EIO))),
    }
}

/// Sets what is set already.
fn mm_map() -> i64 {
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return i64::from(libc::ENOENT) };
    // The name may hold blanks and brackets; what follows its last bracket is figures from field 3 on.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    // SAFETY: a query.
    let brk = unsafe { libc::sbrk(0) } as u64;
    // struct prctl_mm_map: start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
    // env_start, env_end, auxv, then auxv_size and exe_fd as 32 bits each.
    let no_auxv_no_exe = u64::from(u32::MAX) << 32;
    let map: [u64; 13] = [
        field(26),
        field(27),
        field(45),
        field(46),
        field(47),
        brk,
        field(28),
        field(48),
        field(49),
        field(50),
        field(51),
        0,
        no_auxv_no_exe,
    ];
    // SAFETY: the structure has the size that is told; the values are this process's own.
    let done = unsafe {
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, map.as_ptr() as u64, size_of_val(&map) as u64, 0)
    };
    errno(i64::from(done))
}

fn timer_ids() -> i64 {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const WANTED: i32 = 42;
    // SAFETY: a switch of this child alone.
    let on = unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0) };
    if on != 0 {
        return errno(i64::from(on));
    }
    let mut id = WANTED;
    // SAFETY: a null event means SIGALRM; the id is read and written.
    let done = unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, 0, &raw mut id) };
    match errno(done) {
        0 if id == WANTED => 0,
        0 => NO_EFFECT,
        error => error,
    }
}
