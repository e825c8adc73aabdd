//! `holo cfor log NAME`: what an application has changed since its last epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use holo_api::local::{FileChanges, RecordedFile, Request};
use holo_cfor::log::Ranges;
use holo_cfor::{Captured, Inode, Kind, Time, Touched, Tree};

use super::changes;
use super::source::{self, Held, Title};
use crate::args::Source;
use crate::client::{QUICK, call, pick};
use crate::error::CliError;
use crate::paths::Agent;

pub(super) fn main(name: &str, json: bool, agent: &Agent) -> Result<u8, CliError> {
    let request = Request::FileChanges { name: name.to_owned() };
    // Asked first: it says so if there is no such application, or it does not run here.
    let ask = || call(&agent.socket, &request, QUICK, pick!(FileChanges));
    ask()?;
    let held = Held::open(&Source::App(name.to_owned()), None, agent)?;
    let title = held.title();
    let Held::Epoch { captured, .. } = held else {
        return Err(CliError::Usage(format!("{name} is no application")));
    };
    let now = scan(&captured.tree, &source::state_dir(agent), &captured.tree)?;
    // After the scan: what it saw was recorded before.
    let recorded = ask()?;
    let known: BTreeMap<(u64, u64), &RecordedFile> =
        recorded.files.iter().map(|file| ((file.device, file.inode), file)).collect();
    let deltas = holo_cfor::compare(&captured.tree, &now, newer(&now, captured.tree.taken_at), |a, b| {
        Ok::<_, CliError>(touched(&captured, a, &now.inodes[b as usize], &known, &recorded))
    })?;
    let to = Title { name: Some(name.to_owned()), at: source::time(now.taken_at), ..Title::default() };
    changes::print(&title, &to, recorded.complete, &deltas, json)?;
    Ok(0)
}

/// What is here now of the roots of a tree. Files that `known` has, and that have not changed since, are not opened.
pub(super) fn scan(tree: &Tree, state: &std::path::Path, known: &Tree) -> Result<Tree, CliError> {
    let (mut roots, mut files) = (Vec::new(), Vec::new());
    for root in &tree.roots {
        let is_dir = tree.inode(&root.entries[0]).kind == Kind::Dir;
        if is_dir { roots.push(path(&root.path)) } else { files.push(path(&root.path)) }
    }
    // What the epoch left out says nothing now either.
    let left = tree.entries().filter(|(_, entry)| tree.inode(entry).kind == Kind::Left);
    let mut excludes: BTreeSet<PathBuf> =
        left.map(|(root, entry)| path(&entry.path.under(&root.path))).collect();
    excludes.insert(state.to_owned());
    Ok(holo_cfor::scan_since(&roots, &files, &Vec::from_iter(excludes), known)?)
}

fn path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// Tells of an inode in a tree of what is here, by index, whether it was made after `then`, where the file system knows.
pub(super) fn newer(here: &Tree, then: Time) -> impl Fn(u32) -> bool {
    let names: BTreeMap<u32, PathBuf> =
        here.entries().map(|(root, entry)| (entry.inode, path(&entry.path.under(&root.path)))).collect();
    move |at| {
        let meta = names.get(&at).and_then(|path| fs::symlink_metadata(path).ok());
        let made = meta.and_then(|meta| meta.created().ok());
        let since = made.and_then(|made| made.duration_since(SystemTime::UNIX_EPOCH).ok());
        since.is_some_and(|since| {
            let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
            (seconds, since.subsec_nanos()) > (then.seconds, then.nanos)
        })
    }
}

/// What is known of the bytes of a file that was `old`, by index, in an epoch.
fn touched<C>(
    captured: &Captured<C>,
    old: u32,
    now: &Inode,
    known: &BTreeMap<(u64, u64), &RecordedFile>,
    recorded: &FileChanges,
) -> Touched {
    let before = &captured.tree.inodes[old as usize];
    let number = |inode: &Inode| (inode.identity.dev, inode.identity.ino);
    // Another file under the name.
    if number(before) != number(now) {
        return Touched::Unknown;
    }
    let is_same = (before.kind.size(), before.mtime) == (now.kind.size(), now.mtime);
    match known.get(&number(now)) {
        Some(file) if file.whole => Touched::Unknown,
        Some(file) if recorded.complete && !captured.mapped.contains(&old) => {
            let mut ranges = Ranges::new();
            file.ranges.iter().for_each(|(at, len)| ranges.insert(*at, *len));
            Touched::Ranges(ranges)
        }
        Some(_) => Touched::Unknown,
        None if is_same => Touched::Ranges(Ranges::new()),
        None => Touched::Unknown,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn recorded(complete: bool, whole: bool, now: &Inode) -> FileChanges {
        let (device, inode) = (now.identity.dev, now.identity.ino);
        FileChanges {
            complete,
            files: vec![RecordedFile { device, inode, whole, ranges: vec![(4096, 4096)] }],
        }
    }

    /// Ranges are gone by only if all was recorded; a file that nobody was recorded for and has other times may differ anywhere.
    #[test]
    fn ranges_need_a_complete_record() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("f");
        fs::write(&root, [1; 9000]).unwrap();
        let tree = holo_cfor::scan(std::slice::from_ref(&root), &[], &[]).unwrap();
        let mut captured = Captured { tree, contents: BTreeMap::from([(0, ())]), mapped: BTreeSet::new() };
        let mut now = captured.tree.inodes[0].clone();
        let ask = |captured: &Captured<()>, now: &Inode, recorded: &FileChanges| {
            let known = recorded.files.iter().map(|file| ((file.device, file.inode), file)).collect();
            touched(captured, 0, now, &known, recorded)
        };
        let mut wanted = Ranges::new();
        wanted.insert(4096, 4096);
        let all = recorded(true, false, &now);
        assert_eq!(ask(&captured, &now, &all), Touched::Ranges(wanted));
        assert_eq!(ask(&captured, &now, &recorded(false, false, &now)), Touched::Unknown);
        assert_eq!(ask(&captured, &now, &recorded(true, true, &now)), Touched::Unknown);
        let none = FileChanges { complete: true, ..FileChanges::default() };
        assert_eq!(ask(&captured, &now, &none), Touched::Ranges(Ranges::new()));
        captured.mapped.insert(0);
        assert_eq!(ask(&captured, &now, &all), Touched::Unknown);
        captured.mapped.clear();
        now.mtime.seconds += 1;
        assert_eq!(ask(&captured, &now, &none), Touched::Unknown);
        now.identity.ino += 1;
        assert_eq!(ask(&captured, &now, &all), Touched::Unknown);
    }
}
