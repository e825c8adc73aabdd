//! The process tree: who is there, which of them share a control page, who has ended and was not waited for yet.
//!
//! Parents, groups and sessions are in each process's own state; `grow.rs` for how they are made again.

use super::sharing::{self, Sharing};
use super::{namespaces, sysctl};
use crate::manager::{DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::tree::{Process, is_nested, state_and_parent};
use serde::{Deserialize, Serialize};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Name of the kind and of its section.
pub const NAME: &str = "tree";
/// Version of the section.
pub const VERSION: u16 = 2;
/// Processes of one application.
pub const PROCESSES_MAX: usize = 4096;

/// Namespaces and the like are looked for this often even if nobody was seen to change them.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The id that was given out last, under `/proc/sys`.
const LAST_PID: &str = "kernel/ns_last_pid";

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// Its pid as it sees itself.
    pub pid: i32,
    /// Its control page, an index of [`TreeState::pages`].
    pub page: u32,
    /// The signal that its parent gets when it ends, 0: none.
    pub exit_signal: i32,
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its pid.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// `wait` status.
    pub status: i32,
}

/// State.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeState {
    /// Processes; the first stands for the application.
    pub processes: Vec<Branch>,
    /// For each page the pid of the process that joined with it.
    pub pages: Vec<i32>,
    /// Zombies.
    pub ended: Vec<Ended>,
    /// Processes that share descriptors or directory with one before them.
    pub shared: Vec<Sharing>,
    /// The id that was given out last, to whatever process or thread: none of them is soon given out again.
    pub last_pid: i32,
}

impl TreeState {
    /// What an image says, or that it is malformed.
    ///
    /// # Errors
    /// An index that leads nowhere, a pid that is there twice.
    pub fn check(&self) -> RmResult<()> {
        let bad = |what: String| Err(RmError::BadSection { kind: NAME, what });
        let mut pids: Vec<i32> = self.processes.iter().map(|process| process.pid).collect();
        pids.extend(self.ended.iter().map(|ended| ended.pid));
        if self.processes.is_empty() || pids.len() > PROCESSES_MAX {
            return bad(format!("{} processes", pids.len()));
        }
        pids.sort_unstable();
        if pids[0] < 1 || pids.windows(2).any(|pair| pair[0] == pair[1]) {
            return bad("a pid that is none, or twice".into());
        }
        let disordered =
            |one: &&Sharing| one.with >= one.process || one.process as usize >= self.processes.len();
        if let Some(one) = self.shared.iter().find(disordered) {
            return bad(format!(
                "process {} shares with {} of {}",
                one.process,
                one.with,
                self.processes.len()
            ));
        }
        if let Some(one) = self.processes.iter().find(|one| !(0..=64).contains(&one.exit_signal)) {
            return bad(format!("process {} ends with signal {}", one.pid, one.exit_signal));
        }
        let strange = |process: &&Branch| process.page as usize >= self.pages.len();
        match self.processes.iter().find(strange) {
            Some(process) => bad(format!("page {} of {}", process.page, self.pages.len())),
            None if self.pages.len() > self.processes.len() => bad(format!("{} pages", self.pages.len())),
            None => Ok(()),
        }
    }
}

/// The manager.
#[derive(Default)]
pub struct Tree {
    /// Who was there when all was last looked for, and the time of that.
    looked: Option<(Vec<(i32, u32)>, Instant)>,
}

/// Processes, and the count of calls in the page of each that change what a process is.
fn changes(processes: &[Process]) -> Vec<(i32, u32)> {
    let count = |process: &Process| process.remote.page.control().header.changes.load(Ordering::Acquire);
    processes.iter().map(|process| (process.remote.pid, count(process))).collect()
}

/// The zombies among the children of a process that is `parent` to itself.
fn ended(children: &[i32], parent: i32) -> Vec<Ended> {
    let zombie = |child: &i32| state_and_parent(*child).is_some_and(|(state, _)| state == 'Z');
    children
        .iter()
        .filter(|child| zombie(child))
        .filter_map(|child| {
            let text = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
            let inner = |name: &str| -> Option<i32> {
                let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().last()?.parse().ok()
            };
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
            let status = stat.split_whitespace().last()?.parse().ok()?;
            let (pid, pgid, sid) = (inner("NSpid:")?, inner("NSpgid:")?, inner("NSsid:")?);
            Some(Ended { pid, ppid: parent, pgid, sid, status })
        })
        .collect()
}

impl ResourceManager for Tree {
    fn name(&self) -> &'static str {
        NAME
    }

    /// What an application hardly ever has, and has for long if it has: not looked for in the stop, and only after calls that
    /// could have made it, or a while.
    fn pre_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let (now, since) = (changes(cx.processes), Instant::now());
        if self.looked.as_ref().is_some_and(|(then, at)| *then == now && at.elapsed() < LOOK_AGAIN) {
            return Ok(());
        }
        self.looked = None;
        namespaces::check(cx.processes)?;
        sharing::check_threads(cx.processes)?;
        self.looked = Some((now, since));
        Ok(())
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let mut state = TreeState::default();
        let mut pages = Vec::new();
        for process in cx.processes {
            let page = &process.remote.page;
            let index = pages.iter().position(|known| Arc::ptr_eq(known, page)).unwrap_or_else(|| {
                // SAFETY: a plain word, constant since the process joined.
                state.pages.push(unsafe { (*page.header()).pid } as i32);
                pages.push(Arc::clone(page));
                pages.len() - 1
            });
            let seen = process.remote.stat();
            let exit_signal = seen.map_or(libc::SIGCHLD, |seen| seen.exit_signal);
            state.processes.push(Branch { pid: process.pid, page: index as u32, exit_signal });
            if process.remote.has_news() {
                state.ended.extend(ended(process.remote.children(), process.pid));
            }
        }
        state.shared = sharing::find(cx.processes)?;
        // It is the reader's namespace that is told of.
        let last = match is_nested(cx.remote.pid) {
            true => sysctl::read(cx.remote, LAST_PID),
            false => fs::read_to_string(format!("/proc/sys/{LAST_PID}")),
        };
        let last = last.ok().and_then(|text| text.trim().parse().ok());
        let highest = || state.processes.iter().map(|process| process.pid).max();
        state.last_pid = last.or_else(highest).unwrap_or(0);
        state.check()?;
        cx.put(NAME, VERSION, &state)
    }

    /// The processes are there before any kind is restored.
    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: TreeState = cx.section(NAME, VERSION)?;
        if state.processes.len() == cx.tree.len() {
            return Ok(());
        }
        let what = format!("{} processes, of which {} were made", state.processes.len(), cx.tree.len());
        Err(RmError::BadSection { kind: NAME, what })
    }

    /// Now that nothing is made any more.
    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: TreeState = cx.section(NAME, VERSION)?;
        if let Err(cause) = sysctl::write(cx.remote, LAST_PID, &state.last_pid.max(0).to_string()) {
            cx.remarks.push(format!("ids of ended processes may be given out again soon: {cause}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: a zombie is found with its status. Method: a child of ours that is not waited for.
    #[test]
    fn a_zombie_is_found() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let (me, pid) = (std::process::id() as i32, child.id() as i32);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while state_and_parent(pid).unwrap().0 != 'Z' && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let found = ended(&crate::tree::children(me), me).into_iter().find(|ended| ended.pid == pid).unwrap();
        assert_eq!((found.ppid, found.status), (me, 7 << 8));
        child.wait().unwrap();
    }

    #[test]
    fn a_forged_tree_is_refused() {
        let branch = |pid, page| Branch { pid, page, exit_signal: 17 };
        let tree = |processes| TreeState { processes, pages: vec![5], ..TreeState::default() };
        let sharing = |process, with| {
            let shared = vec![Sharing { process, with, files: true, directory: false }];
            TreeState { shared, ..tree(vec![branch(5, 0), branch(6, 0)]) }
        };
        assert!(sharing(1, 0).check().is_ok());
        assert!(sharing(1, 1).check().is_err());
        assert!(sharing(2, 0).check().is_err());
        assert!(tree(vec![branch(5, 0), branch(6, 0)]).check().is_ok());
        assert!(tree(vec![]).check().is_err());
        assert!(tree(vec![branch(5, 0), branch(5, 0)]).check().is_err());
        assert!(tree(vec![branch(5, 1)]).check().is_err());
        assert!(tree(vec![branch(0, 0)]).check().is_err());
    }
}
