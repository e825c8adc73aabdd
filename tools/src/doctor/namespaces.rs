//! Can a clone be made? A restore needs a pid namespace, where the application's own pids are free, and for an
//! ordinary user a user namespace, which grants that.
//!
//! Tried as the restorer does it, in order: user namespace and its maps, pid, mount and time namespace, a child in
//! them that mounts `/proc`, reads its shifted clock and makes a process with a chosen pid.

use std::fs;
use std::io;

use super::child::{self, errno};
use super::{Probe, Status, refused};

const GROUP: &str = "namespaces";

/// Not reached, because an earlier step failed.
const NOT_TRIED: i64 = -1;
/// The call worked but did not do what it says.
const NO_EFFECT: i64 = -2;
const STEPS: usize = 6;
const USER: usize = 0;
const PID: usize = 1;
const MOUNT: usize = 2;
const TIME: usize = 3;
const PROC: usize = 4;
const SET_TID: usize = 5;

/// An id that nobody is: `nobody` of every distribution.
const ORDINARY_ID: u32 = 65_534;
const CLOCK_SHIFT_S: i64 = 100_000;
const CHOSEN_PID: libc::pid_t = 4242;

/// Who tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// Root, without a user namespace.
    Root,
    /// Root, after having become an ordinary user.
    OrdinaryInsteadOfRoot,
    /// The ordinary user that runs this.
    Ordinary,
}

pub(super) fn probes() -> Vec<Probe> {
    let root = nix::unistd::geteuid().is_root();
    let ordinary = steps(if root { As::OrdinaryInsteadOfRoot } else { As::Ordinary });
    let own = if root { steps(As::Root) } else { ordinary.clone() };
    let user = user_namespaces(result(&ordinary, USER));
    let probe =
        |name, means, step, otherwise| Probe::feature(GROUP, name, means, result(&own, step), otherwise);
    let gone =
        (Status::Missing, "allow namespaces: user.max_pid_namespaces and the container's seccomp profile");
    vec![
        // Root does without.
        if root { user } else { user.needed() },
        probe("pid_namespace", "a restored application gets its own pids back", PID, gone).needed(),
        probe("mount_namespace", "a restored application sees its own pids in /proc", MOUNT, gone).needed(),
        probe(
            "mount_proc",
            "a restored application sees its own pids in /proc",
            PROC,
            (Status::Missing, "leave /proc unmasked in the container (systempaths=unconfined)"),
        )
        .needed(),
        probe(
            "time_namespace",
            "the monotonic clock of a restored application does not jump",
            TIME,
            (Status::Degraded, "a kernel of 5.6 or later with CONFIG_TIME_NS"),
        ),
        probe(
            "clone3_set_tid",
            "threads and processes are recreated with their ids",
            SET_TID,
            (Status::Missing, "a kernel of 5.5 or later; allow clone3 in the container's seccomp profile"),
        )
        .needed(),
    ]
}

fn user_namespaces(tried: Result<String, String>) -> Probe {
    let means = "an ordinary user can restore without root";
    let reads = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let mend = if reads("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "set kernel.unprivileged_userns_clone to 1 with sysctl"
    } else if reads("/proc/sys/user/max_user_namespaces", "0") {
        "raise user.max_user_namespaces with sysctl"
    } else if reads("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "allow userns in an AppArmor profile for holo-restorer, or set \
         kernel.apparmor_restrict_unprivileged_userns to 0"
    } else {
        "a kernel with CONFIG_USER_NS, a container that allows unshare, no chroot"
    };
    Probe::feature(GROUP, "user_namespace", means, tried, (Status::Missing, mend))
}

fn result(steps: &Result<[i64; STEPS], String>, step: usize) -> Result<String, String> {
    match steps {
        Err(why) => Err(why.clone()),
        Ok(steps) => match steps[step] {
            0 => Ok("tried, works".to_owned()),
            NOT_TRIED => Err("not tried: what it builds on does not work".to_owned()),
            NO_EFFECT => Err("the kernel accepted it but it had no effect".to_owned()),
            errno => Err(refused("tried", i32::try_from(errno).unwrap_or(libc::EIO))),
        },
    }
}

fn steps(who: As) -> Result<[i64; STEPS], String> {
    child::run(move || {
        let mut steps = [NOT_TRIED; STEPS];
        enter(who, &mut steps);
        steps
    })
}

/// In a child.
fn enter(who: As, steps: &mut [i64; STEPS]) {
    if who != As::Root {
        steps[USER] = user_namespace(who);
        if steps[USER] != 0 {
            return;
        }
    } else {
        steps[USER] = 0;
    }
    // SAFETY: this child is alone.
    let unshare = |flag| errno(i64::from(unsafe { libc::unshare(flag) }));
    steps[PID] = unshare(libc::CLONE_NEWPID);
    steps[MOUNT] = unshare(libc::CLONE_NEWNS);
    steps[TIME] = unshare(libc::CLONE_NEWTIME);
    if steps[TIME] == 0 {
        steps[TIME] = written("/proc/self/timens_offsets", &format!("monotonic {CLOCK_SHIFT_S} 0"));
    }
    if steps[PID] != 0 || steps[MOUNT] != 0 {
        return;
    }
    let before_s = monotonic_s();
    let (proc_only, tid_only, time) = (PROC, SET_TID, steps[TIME]);
    let inside = child::run(move || init(before_s));
    let Ok([shifted, proc, tid]) = inside else { return };
    (steps[proc_only], steps[tid_only]) = (proc, tid);
    if time == 0 {
        steps[TIME] = shifted;
    }
}

fn user_namespace(who: As) -> i64 {
    let (mut uid, mut gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    // SAFETY: calls without memory; this child is alone.
    unsafe {
        if who == As::OrdinaryInsteadOfRoot {
            (uid, gid) = (ORDINARY_ID, ORDINARY_ID);
            let mut done = libc::setgroups(0, std::ptr::null());
            done |= libc::setresgid(gid, gid, gid);
            done |= libc::setresuid(uid, uid, uid);
            // The change made /proc/self root's.
            done |= libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            if done != 0 {
                return errno(-1);
            }
        }
        if libc::unshare(libc::CLONE_NEWUSER) != 0 {
            return errno(-1);
        }
    }
    let steps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {uid} 1")),
        ("/proc/self/gid_map", format!("{gid} {gid} 1")),
    ];
    steps.iter().map(|(path, text)| written(path, text)).find(|&errno| errno != 0).unwrap_or(0)
}

/// In pid 1 of the new namespaces: clock, `/proc`, chosen pid.
fn init(before_s: i64) -> [i64; 3] {
    let shifted = if monotonic_s() - before_s >= CLOCK_SHIFT_S { 0 } else { NO_EFFECT };
    // SAFETY: literals with their zeros; the mounts are this namespace's own.
    let proc = unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let mut done =
            libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null());
        if done == 0 {
            let proc = c"proc".as_ptr();
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            done = libc::mount(proc, c"/proc".as_ptr(), proc, flags, std::ptr::null());
        }
        errno(i64::from(done))
    };
    [shifted, proc, set_tid()]
}

fn set_tid() -> i64 {
    let wanted = [CHOSEN_PID];
    // SAFETY: all zeros is a value of the structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = wanted.as_ptr() as u64;
    args.set_tid_size = 1;
    // SAFETY: without CLONE_VM this is a fork; the child leaves at once.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>());
        if pid == 0 {
            libc::_exit(i32::from(libc::getpid() != CHOSEN_PID));
        }
        if pid < 0 {
            return errno(pid);
        }
        let mut status = 0;
        libc::waitpid(CHOSEN_PID, &mut status, libc::__WALL);
        if pid == i64::from(CHOSEN_PID) && status == 0 { 0 } else { NO_EFFECT }
    }
}

fn monotonic_s() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec
}

fn written(path: &str, text: &str) -> i64 {
    let code = |e: io::Error| i64::from(e.raw_os_error().unwrap_or(libc::EIO));
    fs::write(path, text).map_or_else(code, |()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_have_words() {
        let steps = Ok([0, i64::from(libc::EPERM), NOT_TRIED, NO_EFFECT, 0, 0]);
        assert!(result(&steps, 0).is_ok());
        assert!(result(&steps, 1).is_err_and(|why| why.contains("not permitted")));
        assert!(result(&steps, 2).is_err_and(|why| why.contains("not tried")));
        assert!(result(&steps, 3).is_err_and(|why| why.contains("no effect")));
        assert_eq!(result(&Err("hung".into()), 0), Err("hung".to_owned()));
    }
}
