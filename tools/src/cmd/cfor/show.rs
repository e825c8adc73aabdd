//! `holo cfor show`.

use std::collections::HashMap;
use std::io::Write;

use holo_cfor::{Inode, Kind, Tree};
use serde::Serialize;

use super::changes::{Path, Range, text};
use super::source::{Held, Title, time};
use crate::args::CforShow;
use crate::error::CliError;
use crate::paths::Agent;
use crate::table::{Align, Table};
use crate::{human, json};

#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    title: &'a Title,
    entries: Vec<Entry>,
    remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    path: Path,
    /// Path of the root that it belongs to.
    root: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: Option<u64>,
    /// Where a file has data, all else is holes.
    data: Vec<Range>,
    target: Option<String>,
    mtime: String,
    xattrs: Vec<String>,
    flags: Vec<&'static str>,
    /// The same number: the same file.
    inode: u32,
}

fn target(inode: &Inode) -> Option<String> {
    match &inode.kind {
        Kind::Symlink { target } => Some(text(target)),
        Kind::File { .. } | Kind::Dir | Kind::Fifo | Kind::Socket | Kind::Left => None,
    }
}

fn stored(inode: &Inode) -> u64 {
    inode.data().iter().map(|extent| extent.len).sum()
}

pub(super) fn main(args: &CforShow, agent: &Agent) -> Result<u8, CliError> {
    let held = Held::open(&args.source, args.epoch, agent)?;
    let tree = held.tree();
    let title = held.title();
    if args.json {
        let entries = tree.entries().map(|(root, entry)| {
            let inode = tree.inode(entry);
            Entry {
                path: Path::of(&entry.path.under(&root.path)),
                root: text(&root.path),
                kind: inode.kind.name(),
                mode: format!("{:04o}", inode.mode),
                uid: inode.uid,
                gid: inode.gid,
                size: inode.kind.size(),
                data: inode.data().iter().map(|one| Range { at: one.at, len: one.len }).collect(),
                target: target(inode),
                mtime: time(inode.mtime),
                xattrs: inode.xattrs.iter().map(|xattr| text(&xattr.name)).collect(),
                flags: holo_cfor::flag_names(inode.flags).collect(),
                inode: entry.inode,
            }
        });
        let remarks = tree.remarks.iter().map(ToString::to_string).collect();
        json::print(&Shown { title: &title, entries: entries.collect(), remarks })?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    let files = tree.inodes.iter().filter(|inode| inode.kind.size().is_some()).count();
    let bytes: u64 = tree.inodes.iter().map(stored).sum();
    let head = format!(
        "{title}: {} roots, {} names, {files} files, {} of data",
        tree.roots.len(),
        tree.entries().count(),
        human::bytes(bytes)
    );
    writeln!(out, "{}", human::plain(&head))?;
    write!(out, "{}", table(tree))?;
    for remark in &tree.remarks {
        writeln!(out, "{}", human::plain(&remark.to_string()))?;
    }
    Ok(0)
}

fn table(tree: &Tree) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("KIND", Left),
        ("MODE", Right),
        ("OWNER", Left),
        ("NAMES", Right),
        ("SIZE", Right),
        ("DATA", Right),
        ("TIME", Left),
        ("PATH", Left),
    ]);
    let mut names: HashMap<u32, u32> = HashMap::new();
    tree.entries().for_each(|(_, entry)| *names.entry(entry.inode).or_default() += 1);
    for (root, entry) in tree.entries() {
        let inode = tree.inode(entry);
        let path = text(&entry.path.under(&root.path));
        table.row(vec![
            inode.kind.name().into(),
            format!("{:04o}", inode.mode),
            format!("{}:{}", inode.uid, inode.gid),
            names[&entry.inode].to_string(),
            inode.kind.size().map_or_else(|| "-".into(), |size| size.to_string()),
            inode.kind.size().map_or_else(|| "-".into(), |_| stored(inode).to_string()),
            time(inode.mtime),
            target(inode).map_or_else(|| path.clone(), |target| format!("{path} -> {target}")),
        ]);
    }
    table
}
