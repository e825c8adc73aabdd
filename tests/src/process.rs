//! Processes by pid: alive, killed, reaped, swept.

use crate::{leftovers, wait};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

static SUBREAPER: Once = Once::new();

/// Orphans of what we start come to us, so that they can be reaped and none is lost.
pub fn become_subreaper() {
    SUBREAPER.call_once(|| {
        if let Err(e) = nix::sys::prctl::set_child_subreaper(true) {
            eprintln!("cannot become subreaper: {e}");
        }
    });
}

/// Has the kernel soft-dirty bits? Says so if not.
#[must_use]
pub fn have_soft_dirty() -> bool {
    let page = [1u8];
    let mut entry = [0; 8];
    let read = fs::File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entry, page.as_ptr() as u64 / 4096 * 8));
    let have = read.is_ok() && u64::from_le_bytes(entry) >> 55 & 1 == 1;
    if !have {
        eprintln!("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY): not tried");
    }
    have
}

/// The state letter of a process (`R`, `S`, `Z`, ...), if it exists.
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Who traces a process, if anybody does.
#[must_use]
pub fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Runs, sleeps or is stopped: neither gone nor dead and unreaped.
#[must_use]
pub fn alive(pid: u32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or_else(|_| panic!("{pid} is no pid")))
}

/// Reaps the process if it is our child and dead.
pub fn reap(pid: u32) {
    let _ = waitpid(to_pid(pid), Some(WaitPidFlag::WNOHANG));
}

/// Kills processes with -9 and waits until they are gone, not even a zombie.
///
/// # Panics
/// When one remains after 10 s.
pub fn kill_and_wait(pids: &[u32]) {
    kill_all(pids);
    wait_gone(pids, Duration::from_secs(10));
}

/// Sends -9 and does not wait.
pub fn kill_all(pids: &[u32]) {
    signal_all(pids, Signal::SIGKILL);
}

/// Sends a signal to each that is there.
pub fn signal_all(pids: &[u32], signal: Signal) {
    for &pid in pids {
        let _ = kill(to_pid(pid), signal);
    }
}

/// Kills these and all that they started, as the end of their machine would: nobody sees another one's death. All that were
/// found.
#[must_use]
pub fn kill_trees(pids: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    loop {
        // Whoever stands still starts nothing more.
        let mut found: Vec<u32> = pids.iter().chain(&all).flat_map(|pid| tree(*pid)).collect();
        found.retain(|pid| !all.contains(pid));
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            break;
        }
        signal_all(&found, Signal::SIGSTOP);
        found.iter().copied().for_each(leftovers::note);
        all.append(&mut found);
    }
    kill_all(&all);
    all
}

/// Waits until none of the processes exists.
///
/// # Panics
/// When one remains after `limit`.
pub fn wait_gone(pids: &[u32], limit: Duration) {
    wait::until(limit, &format!("end of processes {pids:?}"), || {
        pids.iter()
            .all(|&pid| {
                reap(pid);
                state(pid).is_none()
            })
            .then_some(())
    });
}

/// Every pid now in `/proc`.
#[must_use]
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Direct children of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|t| fs::read_to_string(t.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// A process and all below it.
#[must_use]
pub fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let below = children(found[next]);
        found.extend(below.into_iter().filter(|p| *p != pid));
        next += 1;
    }
    found
}

/// Processes whose environment holds `mark` as a whole variable (`NAME=value`).
#[must_use]
pub fn marked(mark: &str) -> Vec<u32> {
    let me = std::process::id();
    let has = |pid: &u32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
    };
    all().into_iter().filter(|pid| *pid != me && has(pid)).collect()
}

/// Processes that have something open below a directory: a server that writes its title over its environment has no mark.
fn users(dir: &Path) -> Vec<u32> {
    let is_below = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(dir));
    let uses = |pid: &u32| {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        fds.flatten().any(|fd| is_below(&fd.path()))
    };
    let me = std::process::id();
    all().into_iter().filter(|pid| *pid != me && uses(pid)).collect()
}

/// Kills every process with the mark or with something open below `dir`, and whatever is below them, until there are none.
pub fn sweep(mark: &str, dir: &Path) {
    let mut seen: Vec<u32> = Vec::new();
    let done = wait::try_until(Duration::from_secs(5), || {
        let mut found: Vec<u32> = marked(mark).into_iter().chain(users(dir)).flat_map(tree).collect();
        found.retain(|pid| *pid != std::process::id());
        for pid in &found {
            leftovers::note(*pid);
            let _ = kill(to_pid(*pid), Signal::SIGKILL);
        }
        // A dead process has no environment any more: those that come to us are reaped by number.
        seen.append(&mut found);
        seen.sort_unstable();
        seen.dedup();
        seen.iter().for_each(|pid| reap(*pid));
        seen.iter().all(|pid| !alive(*pid)).then_some(())
    });
    if done.is_none() {
        eprintln!("processes with {mark} remain: {:?}", marked(mark));
    }
}
