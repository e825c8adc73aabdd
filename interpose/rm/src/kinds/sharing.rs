//! Which processes share their descriptors or their directory (`clone` with `CLONE_FILES` or `CLONE_FS`).
//!
//! Sharing is inherited: there is no call by which a process joins what another one has. So a process is made again by one
//! that shares with it, its parent or a sibling that is there before (`CLONE_PARENT`).

use super::kernel::{compare, kcmp};
use super::tree::{NAME, TreeState};
use crate::face::has_ended;
use crate::manager::{Context, DumpCx, RmError, RmResult, decode};
use crate::tree::{Process, Stat};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fs;

/// What a process shares with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// The process, by its place in the tree.
    pub process: u32,
    /// Its parent or a sibling, by which it is made: a place before its own.
    pub with: u32,
    /// Descriptors.
    pub files: bool,
    /// Directory, root and file mode mask.
    pub directory: bool,
}

/// For each process of an epoch the one whose descriptors it has: itself, or one before it.
pub(super) fn holders(cx: &DumpCx) -> Vec<usize> {
    let mut holders: Vec<usize> = (0..cx.processes.len()).collect();
    let tree: Option<TreeState> = cx.sections.0.get(NAME).and_then(|(_, bytes)| decode(bytes));
    for one in tree.iter().flat_map(|tree| &tree.shared).filter(|one| one.files) {
        holders[one.process as usize] = holders[one.with as usize];
    }
    holders
}

/// For each process the first one that has the same.
fn firsts(faces: &[i32], what: i32) -> RmResult<Vec<usize>> {
    let mut failed = Ok(());
    let mut order = |one: usize, other: usize| {
        kcmp((faces[one], faces[other]), what, 0, 0).unwrap_or_else(|cause| {
            failed = Err(cause);
            Ordering::Equal
        })
    };
    let mut places: Vec<usize> = (0..faces.len()).collect();
    // Stable: of those that share, the first comes first.
    places.sort_by(|one, other| order(*one, *other));
    let mut firsts: Vec<usize> = (0..faces.len()).collect();
    for pair in places.windows(2) {
        if order(pair[0], pair[1]).is_eq() {
            firsts[pair[1]] = firsts[pair[0]];
        }
    }
    failed.on("comparing", "processes")?;
    Ok(firsts)
}

/// Finds who shares.
///
/// # Errors
/// Nobody who shares with a process can make it.
pub(super) fn find(processes: &[Process]) -> RmResult<Vec<Sharing>> {
    if processes.len() < 2 {
        return Ok(Vec::new());
    }
    let faces: Vec<i32> = processes.iter().map(|process| process.remote.face).collect();
    let files = firsts(&faces, compare::FILES)?;
    let directory = firsts(&faces, compare::FS)?;
    let sharers = (0..faces.len()).filter(|place| files[*place] != *place || directory[*place] != *place);
    sharers.map(|place| sharing(place, processes, &files, &directory)).collect()
}

fn sharing(place: usize, processes: &[Process], files: &[usize], directory: &[usize]) -> RmResult<Sharing> {
    let pid = |place: usize| processes[place].remote.pid;
    let (shares_files, shares_directory) = (files[place] != place, directory[place] != place);
    let own = processes[place].remote.stat();
    let session = |place: usize, seen: Stat| (seen.session != pid(place)).then_some(seen.session);
    let makes = |with: &usize| {
        let same = |groups: &[usize], wanted: bool| !wanted || groups[*with] == groups[place];
        let (Some(own), Some(other)) = (own, processes[*with].remote.stat()) else { return false };
        let sibling = own.parent == other.parent && session(place, own) == session(*with, other);
        same(files, shares_files)
            && same(directory, shares_directory)
            && (own.parent == pid(*with) || sibling)
    };
    let Some(with) = (0..place).rev().find(makes) else {
        let first = if shares_files { files[place] } else { directory[place] };
        let what = if shares_files { "descriptors" } else { "directory" };
        let why = format!(
            "process {} shares its {what} with process {} (clone), and neither its parent nor a sibling that could make it again does",
            pid(place),
            pid(first)
        );
        return Err(RmError::Unsupported(why));
    };
    Ok(Sharing { process: place as u32, with: with as u32, files: shares_files, directory: shares_directory })
}

/// Threads of one process must have one table of descriptors and one directory.
///
/// # Errors
/// One has its own.
pub(super) fn check_threads(processes: &[Process]) -> RmResult<()> {
    for process in processes {
        let (pid, face) = (process.remote.pid, process.remote.face);
        let names = fs::read_dir(process.remote.proc("task")).into_iter().flatten().flatten();
        let tids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for tid in tids.filter(|tid| *tid != face) {
            for (kind, what) in [(compare::FILES, "descriptors"), (compare::FS, "a directory")] {
                // One that has ended meanwhile has nothing.
                if kcmp((face, tid), kind, 0, 0).is_ok_and(Ordering::is_ne)
                    && !has_ended(tid)
                    && !has_ended(face)
                {
                    let why = format!("thread {tid} of process {pid} has {what} of its own (unshare)");
                    return Err(RmError::Unsupported(why));
                }
            }
        }
    }
    Ok(())
}
