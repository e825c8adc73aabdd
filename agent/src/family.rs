//! All processes of an application, found without the agent's knowledge: by who descends from whom, and by the control
//! pages that they have mapped. Slow, and for emergencies: the guard stops what must not run.

use holo_rm::face::face;
use holo_rm::tree::{children, state_and_parent};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// A process that is being made while others are stopped is found in the next round.
const ROUNDS: usize = 20;
const PATIENCE: Duration = Duration::from_millis(500);

/// How the paths of an application's control pages begin, from one of them: `<dir>/<app>.<pid>.<time>.page[.<number>]`.
fn beginning(path: &[u8]) -> Option<&[u8]> {
    let numeric = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let cut = |path: &[u8]| path.iter().rposition(|byte| *byte == b'.');
    let mut end = cut(path)?;
    if numeric(&path[end + 1..]) {
        end = cut(&path[..end])?;
    }
    if !path[end..].starts_with(b".page") {
        return None;
    }
    for _ in 0..2 {
        let next = cut(&path[..end])?;
        if !numeric(&path[next + 1..end]) {
            return None;
        }
        end = next;
    }
    Some(&path[..=end])
}

fn paths(maps: &[u8]) -> impl Iterator<Item = &[u8]> {
    maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'/')?;
        let path = &line[at..];
        Some(path.strip_suffix(b" (deleted)").unwrap_or(path))
    })
}

fn maps(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{}/maps", face(pid))).unwrap_or_default()
}

/// Those that have a page of the same application mapped, but for agents.
fn with_pages(pid: i32) -> Vec<i32> {
    let own = maps(pid);
    let Some(begin) = paths(&own).find_map(beginning) else { return Vec::new() };
    let agent = fs::read_link("/proc/self/exe").unwrap_or_default();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|other| {
        let theirs = fs::read_link(format!("/proc/{}/exe", face(*other))).unwrap_or_default();
        theirs.as_os_str().as_bytes() != agent.as_os_str().as_bytes()
            && paths(&maps(*other)).filter_map(beginning).any(|other| other == begin)
    })
    .collect()
}

fn descendants(pid: i32) -> Vec<i32> {
    let (mut out, mut queue) = (Vec::new(), vec![pid]);
    while let Some(at) = queue.pop() {
        out.push(at);
        queue.extend(children(at));
    }
    out
}

/// Stops all processes of the application that `pid` stands for.
pub(crate) fn stop(pid: i32) {
    let mut done = BTreeSet::new();
    let until = Instant::now() + PATIENCE;
    for round in 0..ROUNDS {
        let mut found = descendants(pid);
        // Those that nobody knows the parent of: slow, so that it is done twice only.
        if round == 1 || round == 2 {
            found.extend(with_pages(pid).into_iter().flat_map(descendants));
        }
        let fresh: Vec<i32> = found.into_iter().filter(|pid| done.insert(*pid)).collect();
        for pid in &fresh {
            // SAFETY: no memory is passed.
            unsafe { libc::kill(*pid, libc::SIGSTOP) };
        }
        if fresh.is_empty() && round > 2 || Instant::now() > until {
            return;
        }
    }
}

/// Stops again those that somebody let go on.
pub(crate) fn stop_again(pid: i32) {
    for pid in descendants(pid) {
        if state_and_parent(pid).is_some_and(|(state, _)| !matches!(state, 'T' | 'Z' | 'X')) {
            // SAFETY: no memory is passed.
            unsafe { libc::kill(pid, libc::SIGSTOP) };
        }
    }
}

/// Is it stopped, or about to be? A process that was told to stop does so when it is about to run in its own code again, thread by
/// thread: on a busy machine, or in a call that waits for a disk, some time later.
fn is_stopping(pid: i32) -> bool {
    const SIGSTOP_PENDING: u64 = 1 << (libc::SIGSTOP - 1);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let pending = pending.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    pending & SIGSTOP_PENDING != 0 || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut tids = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        tids.any(|tid| state_and_parent(tid).is_some_and(|(state, _)| state == 'T'))
    }
}

/// Lets all processes of the application that `pid` stands for go on.
pub(crate) fn go_on(pid: i32) {
    let all: BTreeSet<i32> = descendants(pid).into_iter().chain(with_pages(pid)).collect();
    for pid in all {
        if is_stopping(pid) {
            // SAFETY: no memory is passed.
            unsafe { libc::kill(pid, libc::SIGCONT) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pages_of_one_application_begin_alike() {
        let begin = |path: &'static str| beginning(path.as_bytes()).map(|b| std::str::from_utf8(b).unwrap());
        assert_eq!(begin("/dev/shm/holo-1/my.app.12.345.page"), Some("/dev/shm/holo-1/my.app."));
        assert_eq!(begin("/dev/shm/holo-1/a.12.345.page.7"), Some("/dev/shm/holo-1/a."));
        assert_eq!(begin("/usr/lib/libc.so.6"), None);
        assert_eq!(begin("/a.x.345.page"), None);
    }

    // Goal: a child is stopped with its parent and goes on with it. Method: a shell with a child, by their states.
    #[test]
    fn a_tree_stops_and_goes_on() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let pid = shell.id() as i32;
        let until = Instant::now() + Duration::from_secs(10);
        let mut child = None;
        while child.is_none() && Instant::now() < until {
            child = children(pid).first().copied();
        }
        let child = child.unwrap();
        let becomes = |stopped: bool| {
            let until = Instant::now() + Duration::from_secs(10);
            while Instant::now() < until {
                let state = |pid| state_and_parent(pid).unwrap().0 == 'T';
                if state(pid) == stopped && state(child) == stopped {
                    return true;
                }
            }
            false
        };
        stop(pid);
        assert!(becomes(true));
        go_on(pid);
        assert!(becomes(false));
        for pid in [child, pid] {
            // SAFETY: our own processes.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        shell.wait().unwrap();
    }

    // Goal: what was told to stop and has not seen it yet goes on, too. Method: a process in a call that lets no signal in, here
    // until a child of its has ended, is told both.
    #[test]
    fn what_is_about_to_stop_goes_on() {
        const CHILD_LIVES: Duration = Duration::from_millis(400);
        // SAFETY: the child makes calls that are safe after a fork, and no other.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; the child of the child has memory of its own.
            unsafe {
                let flags = libc::CLONE_VFORK | libc::SIGCHLD;
                if libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) == 0 {
                    libc::usleep(CHILD_LIVES.as_micros() as u32);
                    libc::_exit(0);
                }
                loop {
                    libc::pause();
                }
            }
        }
        let state = || state_and_parent(pid).unwrap().0;
        let until = Instant::now() + Duration::from_secs(10);
        while state() != 'D' {
            assert!(Instant::now() < until, "it does not wait");
        }
        // SAFETY: our own process.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        assert_eq!(state(), 'D', "it has stopped already");
        go_on(pid);
        while state() == 'D' {
            assert!(Instant::now() < until, "its child lives on");
        }
        std::thread::sleep(Duration::from_millis(50));
        let after = state();
        // SAFETY: our own process.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        assert_ne!(after, 'T');
    }
}
