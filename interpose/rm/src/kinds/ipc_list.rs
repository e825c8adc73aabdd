//! Which System V objects there are: asked by us where the kernel tells us the same as the application.

use super::ipc::word;
use crate::manager::{Context, RmResult};
use crate::remote::{Remote, call, outcome};
use holo_abi::control::BATCH_CALLS;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io;

/// A sort of System V objects.
pub(super) struct Sort {
    /// The call that tells of them.
    pub(super) call: i64,
    /// It has the number of a part as its second argument.
    pub(super) sub: bool,
    /// Commands: how many there are, and what one of them is by its index.
    pub(super) info: u64,
    pub(super) stat: u64,
    /// Where the first tells how many there are.
    pub(super) used_at: usize,
    /// What the second one gives.
    pub(super) bytes: usize,
}

/// All objects of a sort that an application could see, by id, and what the kernel says of all of them.
pub(super) struct Objects {
    pub(super) info: Vec<u8>,
    pub(super) objects: BTreeMap<i32, Vec<u8>>,
}

/// Room for what a command gives.
const DS_ROOM: usize = 128;

impl Sort {
    fn args(&self, index: u64, command: u64, at: u64) -> [u64; 4] {
        if self.sub { [index, 0, command, at] } else { [index, command, at, 0] }
    }
}

/// For each index what was answered, and what the kernel wrote.
type Given = Vec<(io::Result<u64>, Vec<u8>)>;
/// Asks for many indexes at once.
type Ask<'a> = &'a dyn Fn(&[u64], u64) -> io::Result<Given>;

/// Lists them before it is a kind's turn, where no process is needed for that.
pub(super) fn look(remote: &Remote, sort: &Sort) -> Option<Objects> {
    if sees_what_we_see(remote.face) {
        all(sort, &|indexes, command| by_us(sort, indexes, command), "").ok()
    } else {
        None
    }
}

/// Asks ourselves.
fn by_us(sort: &Sort, indexes: &[u64], command: u64) -> io::Result<Given> {
    let ask = |index: &u64| {
        let mut room = vec![0; DS_ROOM];
        let [one, two, three, four] = sort.args(*index, command, room.as_mut_ptr() as u64);
        // SAFETY: the kernel writes a structure for which there is room.
        let ret = unsafe { libc::syscall(sort.call, one, two, three, four) };
        (if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret.cast_unsigned()) }, room)
    };
    Ok(indexes.iter().map(ask).collect())
}

/// Lists them, if that was not done before. We ask ourselves where the kernel gives us the same answers as the process.
pub(super) fn list(
    remote: &Remote,
    sort: &Sort,
    named: &'static str,
    looked: Option<Objects>,
) -> RmResult<Objects> {
    if let Some(objects) = looked {
        return Ok(objects);
    }
    let by_process = |indexes: &[u64], command: u64| {
        let mut out = Vec::new();
        for part in indexes.chunks(BATCH_CALLS) {
            let at = remote.page.scratch_address(0);
            let places = (at..).step_by(DS_ROOM);
            let ask = |(index, at): (&u64, u64)| call(sort.call, &sort.args(*index, command, at));
            let mut calls: Vec<_> = part.iter().zip(places).map(ask).collect();
            remote.run(&mut calls, false)?;
            let written = |index: usize| remote.page.take(index * DS_ROOM, DS_ROOM);
            out.extend(calls.iter().enumerate().map(|(index, made)| (outcome(made), written(index))));
        }
        Ok(out)
    };
    let by_us = |indexes: &[u64], command: u64| by_us(sort, indexes, command);
    all(sort, if sees_what_we_see(remote.face) { &by_us } else { &by_process }, named)
}

fn all(sort: &Sort, ask: Ask, named: &'static str) -> RmResult<Objects> {
    let (last, info) = ask(&[0], sort.info).on("listing", named)?.remove(0);
    let last = last.on("listing", named)?;
    let mut objects = BTreeMap::new();
    if word(&info, sort.used_at) > 0 {
        let indexes: Vec<u64> = (0..=last).collect();
        for (id, mut ds) in ask(&indexes, sort.stat).on("listing", named)? {
            // An index without an object is refused.
            if let Ok(id) = id {
                ds.truncate(sort.bytes);
                objects.insert(id as i32, ds);
            }
        }
    }
    Ok(Objects { info, objects })
}

/// Whether a process has objects, ids of processes and ids of users in common with us.
fn sees_what_we_see(pid: i32) -> bool {
    let same = |kind: &str| {
        let of = |who: &dyn Display| fs::read_link(format!("/proc/{who}/ns/{kind}")).ok();
        let own = of(&"self");
        own.is_some() && own == of(&pid)
    };
    ["ipc", "pid", "user"].into_iter().all(same)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: whom we may ask for is told from others. Method: we, and a process in an IPC namespace of its own.
    #[test]
    fn namespaces_are_told_apart() {
        assert!(sees_what_we_see(std::process::id() as i32));
        let mut child = std::process::Command::new("unshare").args(["-Uri", "sleep", "20"]).spawn().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while sees_what_we_see(child.id() as i32) && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!sees_what_we_see(child.id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!sees_what_we_see(-1));
    }
}
