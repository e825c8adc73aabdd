//! Waits for timers that are due and have not expired yet.
//!
//! Each processor has timers of its own and comes to them in an interrupt, in the order of their instants. So one of ours that is due
//! later, on the same processor, wakes us after them, also where the host has taken that processor away for a while.

use super::kernel::checked;
use std::io;
use std::thread;
use std::time::Duration;

/// What is left of timers on processors where we may not run.
const ELSEWHERE: Duration = Duration::from_millis(3);

/// Returns when timers that these processes armed, and that were due before, have expired.
pub(crate) fn wait(processes: &[i32]) {
    let seen = thread::scope(|scope| {
        let all = thread::Builder::new().name("due".into()).spawn_scoped(scope, visit_all);
        all.ok().and_then(|all| all.join().ok()?.ok())
    });
    let is_seen = |pid: &i32| match (&seen, may_run_on(*pid)) {
        (Some(seen), Ok(on)) => processors(&on).all(|one| has(seen, one)),
        _ => false,
    };
    if !processes.iter().all(is_seen) {
        thread::sleep(ELSEWHERE);
    }
}

/// Visits all processors where we may run, at the same time, and tells which they are.
fn visit_all() -> io::Result<libc::cpu_set_t> {
    // SAFETY: a set of bits, of which all may be set.
    let anywhere: libc::cpu_set_t = unsafe { std::mem::transmute([0xffu8; size_of::<libc::cpu_set_t>()]) };
    run_on_any(&anywhere)?;
    let on = may_run_on(0)?;
    // The threads below begin with it. SAFETY: no memory is passed.
    checked(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) })?;
    thread::scope(|scope| {
        let each = processors(&on)
            .map(|one| thread::Builder::new().name("due".into()).spawn_scoped(scope, move || visit(one)));
        let each: Vec<_> = each.collect::<io::Result<_>>()?;
        each.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })?;
    Ok(on)
}

/// Sleeps for the shortest time on one processor.
fn visit(processor: usize) -> io::Result<()> {
    run_on(processor)?;
    let least = libc::timespec { tv_sec: 0, tv_nsec: 1 };
    loop {
        // SAFETY: one `timespec`; what is left is not asked for.
        match unsafe {
            libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const least, std::ptr::null_mut())
        } {
            0 => return Ok(()),
            libc::EINTR => {}
            other => return Err(io::Error::from_raw_os_error(other)),
        }
    }
}

/// Runs this thread on one processor only.
pub(super) fn run_on(processor: usize) -> io::Result<()> {
    // SAFETY: a set of bits, for which zero is empty; the number is checked.
    let one = unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut one);
        one
    };
    run_on_any(&one)
}

fn run_on_any(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: a whole set, which is only read.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(set), set) }).map(|_| ())
}

/// Processors on which a process may run; 0: this thread.
fn may_run_on(pid: i32) -> io::Result<libc::cpu_set_t> {
    // SAFETY: a set of bits, for which zero is empty.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes a set of this size.
    checked(unsafe { libc::sched_getaffinity(pid, size_of_val(&set), &raw mut set) })?;
    Ok(set)
}

fn processors(set: &libc::cpu_set_t) -> impl Iterator<Item = usize> {
    (0..libc::CPU_SETSIZE as usize).filter(|one| has(set, *one))
}

fn has(set: &libc::cpu_set_t, processor: usize) -> bool {
    // SAFETY: only looks at the set; the number is below its size.
    unsafe { libc::CPU_ISSET(processor, set) }
}
