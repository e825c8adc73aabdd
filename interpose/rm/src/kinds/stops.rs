//! Job control: which processes are stopped, and what of that their parents have not waited for yet.
//!
//! What a parent has still to be told is the state of its child: it is asked for with `WNOWAIT` and stays. A clone is
//! stopped before anything else is done to it, serves calls as our tracee (see `stopped.rs`), and is left stopped.

use crate::grow::{WALL, forget_child_signal};
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::remote::{Remote, call, outcome};
use crate::stopped::Stopped;
use crate::tree::state_and_parent;
use holo_abi::control::Call;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Name of the kind and of its section.
pub const NAME: &str = "stops";
/// Version of the section.
pub const VERSION: u16 = 1;

const P_PID: u64 = 1;
const WNOHANG: u64 = 1;
const WSTOPPED: u64 = 2;
const WCONTINUED: u64 = 8;
const WNOWAIT: u64 = 0x0100_0000;
const CLD_STOPPED: i32 = 5;
const CLD_CONTINUED: i32 = 6;
const SIG_UNBLOCK: u64 = 1;
const SIG_SETMASK: u64 = 2;
const INFO_BYTES: usize = 128;
/// Children that are asked for at once.
const BATCH: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);
/// A process of an orphaned group ignores what a terminal stops with.
const BY_ITSELF: Duration = Duration::from_millis(200);

/// A process that is stopped, or that was let go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Its pid as it sees itself.
    pub pid: i32,
    /// What it is, and what its parent has to be told.
    pub news: News,
}

/// What there is to tell of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// It is stopped, and its parent was told, or is none of ours.
    Stopped,
    /// It was stopped by this signal; its parent has not waited for it.
    StoppedUntold(i32),
    /// It runs again; its parent has not waited for that.
    ContinuedUntold,
}

/// State.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopsState {
    /// Processes that there is something to tell of.
    pub stops: Vec<Stop>,
}

impl StopsState {
    /// What an image says, or that it is malformed.
    ///
    /// # Errors
    /// A process that is none of `pids`, or is there twice; a signal that stops nobody.
    pub fn check(&self, pids: &[i32]) -> RmResult<()> {
        let stops = |signal| (libc::SIGSTOP..=libc::SIGTTOU).contains(&signal);
        for (index, stop) in self.stops.iter().enumerate() {
            let twice = self.stops[..index].iter().any(|other| other.pid == stop.pid);
            let strange = matches!(stop.news, News::StoppedUntold(signal) if !stops(signal));
            if twice || strange || !pids.contains(&stop.pid) {
                let what = format!("process {}: {:?}", stop.pid, stop.news);
                return Err(RmError::BadSection { kind: NAME, what });
            }
        }
        Ok(())
    }
}

/// The manager.
#[derive(Default)]
pub struct Stops;

fn wait_call(pid: i32, info_at: u64, options: u64) -> Call {
    call(sysno::waitid, &[P_PID, pid as u64, info_at, options | WNOHANG | WALL, 0])
}

/// What a parent would be told of these children of its.
fn untold(parent: &Remote, children: &[i32]) -> RmResult<BTreeMap<i32, News>> {
    let mut all = BTreeMap::new();
    let page = &parent.page;
    for part in children.chunks(BATCH) {
        page.put(0, &vec![0; part.len() * INFO_BYTES]);
        let look = |(at, pid): (usize, &i32)| {
            wait_call(*pid, page.scratch_address(at * INFO_BYTES), WSTOPPED | WCONTINUED | WNOWAIT)
        };
        let mut calls: Vec<Call> = part.iter().enumerate().map(look).collect();
        parent.run(&mut calls, false).on("asking for children of", parent.pid)?;
        for (at, (pid, made)) in part.iter().zip(&calls).enumerate() {
            if outcome(made).is_err() {
                continue;
            }
            let info = page.take(at * INFO_BYTES, INFO_BYTES);
            let word = |at: usize| i32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
            match (word(16), word(8)) {
                (0, _) => {}
                (_, CLD_STOPPED) => drop(all.insert(*pid, News::StoppedUntold(word(24)))),
                (_, CLD_CONTINUED) => drop(all.insert(*pid, News::ContinuedUntold)),
                _ => {}
            }
        }
    }
    Ok(all)
}

impl ResourceManager for Stops {
    fn name(&self) -> &'static str {
        NAME
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let place: BTreeMap<i32, usize> =
            cx.processes.iter().enumerate().map(|(index, process)| (process.remote.pid, index)).collect();
        let mut families: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for process in cx.processes {
            let parent = process.remote.stat().map(|stat| stat.parent);
            if let Some(parent) = parent.and_then(|parent| place.get(&parent)) {
                families.entry(*parent).or_default().push(process.pid);
            }
        }
        let mut news = BTreeMap::new();
        families.retain(|parent, _| cx.processes[*parent].remote.has_news());
        for (parent, children) in families {
            news.append(&mut untold(&cx.processes[parent].remote, &children)?);
        }
        let mut state = StopsState::default();
        for process in cx.processes {
            let untold = news.get(&process.pid).copied();
            let told = process.stopped.then_some(News::Stopped);
            if let Some(news) = untold.or(told) {
                state.stops.push(Stop { pid: process.pid, news });
            }
        }
        cx.put(NAME, VERSION, &state)
    }

    /// Done before all kinds, see `stop_all`.
    fn switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
        Ok(())
    }
}

/// Stops the processes of a clone, each of which has one thread that serves calls, and goes on doing so. `parents` are
/// places in `tree`, none for those that are not the application's.
pub(crate) fn stop_all(
    state: &StopsState,
    pids: &[i32],
    parents: &[Option<usize>],
    tree: &[Remote],
) -> RmResult<Vec<Stopped>> {
    let mut all = Vec::new();
    for stop in &state.stops {
        let Some(index) = pids.iter().position(|pid| *pid == stop.pid) else { continue };
        let (remote, parent) = (&tree[index], parents[index].map(|parent| &tree[parent]));
        let tell = |options: u64| match parent {
            Some(parent) => {
                let info = parent.page.scratch_address(0);
                let mut calls = [wait_call(stop.pid, info, options)];
                parent.run(&mut calls, false).on("telling the parent of", stop.pid)
            }
            None => Ok(()),
        };
        match stop.news {
            News::Stopped => {
                all.push(stop_by(remote, stop.pid, libc::SIGSTOP)?);
                tell(WSTOPPED)?;
            }
            News::StoppedUntold(signal) => all.push(stop_by(remote, stop.pid, signal)?),
            News::ContinuedUntold => {
                send(remote, libc::SIGSTOP)?;
                stops(remote, PATIENCE).then_some(()).ok_or_else(|| not(stop.pid, "stop"))?;
                tell(WSTOPPED)?;
                send(remote, libc::SIGCONT)?;
                remote.call(sysno::getpid, &[]).on("letting go on", stop.pid)?;
            }
        }
        if let Some(parent) = parent {
            forget_child_signal(parent)?;
        }
    }
    Ok(all)
}

fn not(pid: i32, what: &str) -> RmError {
    RmError::Unsupported(format!("process {pid} does not {what}"))
}

fn send(remote: &Remote, signal: i32) -> RmResult<()> {
    // SAFETY: no memory is passed; the clone is ours.
    let sent = unsafe { libc::kill(remote.pid, signal) };
    if sent < 0 { Err(std::io::Error::last_os_error()).on("signalling", remote.pid) } else { Ok(()) }
}

/// Whether it stops within `patience`.
fn stops(remote: &Remote, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        match state_and_parent(remote.pid) {
            Some(('T', _)) => return true,
            Some(_) if Instant::now() < until => std::thread::sleep(Duration::from_micros(100)),
            _ => return false,
        }
    }
}

/// Stops a process by a signal of its own; it serves calls again then.
fn stop_by(remote: &Remote, pid: i32, signal: i32) -> RmResult<Stopped> {
    let page = &remote.page;
    let mut calls = [
        call(sysno::rt_sigprocmask, &[SIG_UNBLOCK, page.put(0, &(1u64 << (signal - 1)).to_le_bytes()), 0, 8]),
        call(sysno::kill, &[pid as u64, signal as u64]),
        call(sysno::rt_sigprocmask, &[SIG_SETMASK, page.put(8, &[0xff; 8]), 0, 8]),
    ];
    page.start(remote.leader, &calls, false);
    if !stops(remote, BY_ITSELF) {
        send(remote, libc::SIGSTOP)?;
        stops(remote, PATIENCE).then_some(()).ok_or_else(|| not(pid, "stop"))?;
    }
    let stopped = Stopped::serve(remote.pid, vec![remote.pid]).ok_or_else(|| not(pid, "serve"))?;
    page.finish(remote.leader, &mut calls, PATIENCE).on("stopping", pid)?;
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_forged_stop_is_refused() {
        let state = |news| StopsState { stops: vec![Stop { pid: 5, news }] };
        assert!(state(News::Stopped).check(&[4, 5]).is_ok());
        assert!(state(News::StoppedUntold(libc::SIGTSTP)).check(&[5]).is_ok());
        assert!(state(News::StoppedUntold(libc::SIGKILL)).check(&[5]).is_err());
        assert!(state(News::ContinuedUntold).check(&[4]).is_err());
        let mut twice = state(News::Stopped);
        twice.stops.push(twice.stops[0]);
        assert!(twice.check(&[5]).is_err());
    }
}
