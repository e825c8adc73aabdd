//! Waiting: for time, for descriptors, for children, for System V objects and semaphores.

use super::table;
use holo_abi::sysno as nr;
use holo_sys::tls::tls;
use libc::{
    c_int, c_long, c_uint, c_void, clockid_t, epoll_event, fd_set, id_t, idtype_t, nfds_t, pid_t, pollfd,
    rusage, sem_t, sembuf, siginfo_t, sigset_t, size_t, ssize_t, timespec, timeval, useconds_t,
};

type Time = *const timespec;
type Mask = *const sigset_t;
type Set = *mut fd_set;
/// What the kernel is told is the size of a signal set.
const MASK_BYTES: u64 = 8;

table! {
    nanosleep(time: Time, left: *mut timespec) -> c_int = wait(nr::nanosleep, time, left);
    __nanosleep(time: Time, left: *mut timespec) -> c_int = wait(nr::nanosleep, time, left);
    clock_nanosleep(clock: clockid_t, flags: c_int, time: Time, left: *mut timespec) -> c_int = own(
        sleep_on(clock, flags, time, left));
    usleep(us: useconds_t) -> c_int = own(sleep_us(us));
    sleep(seconds: c_uint) -> c_uint = own(sleep_s(seconds));
    thrd_sleep(time: Time, left: *mut timespec) -> c_int = own(
        match sleep_on(libc::CLOCK_REALTIME, 0, time, left) { 0 => 0, libc::EINTR => -1, _ => -2 });

    poll(list: *mut pollfd, count: nfds_t, ms: c_int) -> c_int = wait(nr::poll, list, count, ms);
    __poll(list: *mut pollfd, count: nfds_t, ms: c_int) -> c_int = wait(nr::poll, list, count, ms);
    __poll_chk(list: *mut pollfd, count: nfds_t, ms: c_int, room: size_t) -> c_int = own(
        if too_many(count, room) { real()(list, count, ms, room) }
        else { table!(@wait nr::poll, list, count, ms) });
    ppoll(list: *mut pollfd, count: nfds_t, time: Time, mask: Mask) -> c_int = own({
        let copy = copied(time);
        table!(@wait nr::ppoll, list, count, at(&copy), mask, MASK_BYTES)
    });
    __ppoll_chk(list: *mut pollfd, count: nfds_t, time: Time, mask: Mask, room: size_t) -> c_int = own({
        if too_many(count, room) { return real()(list, count, time, mask, room) }
        let copy = copied(time);
        table!(@wait nr::ppoll, list, count, at(&copy), mask, MASK_BYTES)
    });
    select(count: c_int, r: Set, w: Set, e: Set, time: *mut timeval) -> c_int =
        wait(nr::select, count, r, w, e, time);
    __select(count: c_int, r: Set, w: Set, e: Set, time: *mut timeval) -> c_int =
        wait(nr::select, count, r, w, e, time);
    pselect(count: c_int, r: Set, w: Set, e: Set, time: Time, mask: Mask) -> c_int = own({
        let copy = copied(time);
        let pair = [mask as u64, MASK_BYTES];
        table!(@wait nr::pselect6, count, r, w, e, at(&copy), pair.as_ptr())
    });
    epoll_wait(epoll: c_int, events: *mut epoll_event, count: c_int, ms: c_int) -> c_int =
        wait(nr::epoll_wait, epoll, events, count, ms);
    epoll_pwait(epoll: c_int, events: *mut epoll_event, count: c_int, ms: c_int, mask: Mask) -> c_int =
        wait(nr::epoll_pwait, epoll, events, count, ms, mask, MASK_BYTES);

    wait(status: *mut c_int) -> pid_t = wait(nr::wait4, -1i64, status, 0, 0);
    __wait(status: *mut c_int) -> pid_t = wait(nr::wait4, -1i64, status, 0, 0);
    waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t = wait(nr::wait4, pid, status, options, 0);
    __waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t =
        wait(nr::wait4, pid, status, options, 0);
    wait3(status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t =
        wait(nr::wait4, -1i64, status, options, usage);
    wait4(pid: pid_t, status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t =
        wait(nr::wait4, pid, status, options, usage);
    waitid(kind: idtype_t, id: id_t, info: *mut siginfo_t, options: c_int) -> c_int =
        wait(nr::waitid, kind, id, info, options, 0);

    semop(id: c_int, list: *mut sembuf, count: size_t) -> c_int = call(nr::semop, id, list, count);
    semtimedop(id: c_int, list: *mut sembuf, count: size_t, time: Time) -> c_int =
        call(nr::semtimedop, id, list, count, time);
    msgrcv(id: c_int, to: *mut c_void, bytes: size_t, kind: c_long, flags: c_int) -> ssize_t =
        wait(nr::msgrcv, id, to, bytes, kind, flags);
    msgsnd(id: c_int, from: *const c_void, bytes: size_t, flags: c_int) -> c_int =
        wait(nr::msgsnd, id, from, bytes, flags);

    // The futex call is inside libc; its deadline is absolute, so that it can be made anew as it is.
    sem_timedwait(semaphore: *mut sem_t, until: Time) -> c_int = own(unparked(|| real()(semaphore, until)));
    sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, until: Time) -> c_int = own(
        unparked(|| real()(semaphore, clock, until)));
}

/// Younger than the libc that this library is made for, so there may be no real function to call.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_pwait2(
    epoll: c_int,
    events: *mut epoll_event,
    count: c_int,
    time: Time,
    mask: Mask,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { table!(@wait nr::epoll_pwait2, epoll, events, count, time, mask, MASK_BYTES) }
}

/// The kernel writes what is left into the time-out, libc's functions leave the caller's alone.
unsafe fn copied(time: Time) -> Option<timespec> {
    // SAFETY: as libc, which reads it too.
    unsafe { time.as_ref().copied() }
}

fn at(copy: &Option<timespec>) -> u64 {
    copy.as_ref().map_or(0, |time| core::ptr::from_ref(time) as u64)
}

fn too_many(count: nfds_t, room: size_t) -> bool {
    room / size_of::<pollfd>() < count as usize
}

/// `clock_nanosleep` returns its error.
unsafe fn sleep_on(clock: clockid_t, flags: c_int, time: Time, left: *mut timespec) -> c_int {
    if clock == libc::CLOCK_THREAD_CPUTIME_ID {
        return libc::EINVAL;
    }
    // SAFETY: the caller's arguments.
    let ret = unsafe {
        super::gate_cancellable(
            nr::clock_nanosleep,
            &[i64::from(clock).cast_unsigned(), flags as u64, time as u64, left as u64],
        )
    };
    -ret as c_int
}

unsafe fn sleep_us(us: useconds_t) -> c_int {
    let time = timespec { tv_sec: i64::from(us / 1_000_000), tv_nsec: i64::from(us % 1_000_000) * 1000 };
    // SAFETY: one timespec.
    unsafe { table!(@wait nr::nanosleep, &raw const time, 0) }
}

/// Returns the seconds that are left, and keeps `errno`.
unsafe fn sleep_s(seconds: c_uint) -> c_uint {
    let mut time = timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
    let at = &raw mut time;
    // SAFETY: one timespec, read before it is written.
    if unsafe { super::gate_cancellable(nr::nanosleep, &[at as u64, at as u64]) } == 0 {
        return 0;
    }
    time.tv_sec as c_uint
}

/// Calls again what a park interrupted, if no handler of the application ran.
fn unparked(mut call: impl FnMut() -> c_int) -> c_int {
    // SAFETY: own thread's words and errno.
    unsafe {
        let counts = || ((*tls()).handlers, (*tls()).parks);
        loop {
            let (handlers, parks) = counts();
            let ret = call();
            let interrupted = ret == -1 && *libc::__errno_location() == libc::EINTR;
            let (handlers_now, parks_now) = counts();
            if !interrupted || handlers_now != handlers || parks_now == parks {
                return ret;
            }
        }
    }
}
