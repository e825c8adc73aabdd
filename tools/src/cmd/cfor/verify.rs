//! `holo cfor verify`.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use holo_cfor::{Delta, Here, RelPath, Touched, Tree, What};

use super::source::{Held, Title, state_dir, time};
use super::{changes, live};
use crate::args::CforVerify;
use crate::error::CliError;
use crate::paths::Agent;

pub(super) fn main(args: &CforVerify, agent: &Agent) -> Result<u8, CliError> {
    let mut held = Held::open(&args.source, args.epoch, agent)?;
    let title = held.title();
    let mut wanted = held.tree().clone();
    if let Some(dir) = &args.under {
        let dir = dir.canonicalize().map_err(|source| CliError::Path {
            what: "find",
            path: dir.clone(),
            source,
        })?;
        for root in &mut wanted.roots {
            root.path = under(&dir, &root.path);
        }
    }
    let here = live::scan(&wanted, &state_dir(agent), &Tree::default())?;
    let mut contents = Here::new(&here);
    let mut unread = Vec::new();
    let is_newer = live::newer(&here, wanted.taken_at);
    let mut deltas = holo_cfor::compare(&wanted, &here, is_newer, |a, b| {
        let data = here.inodes[b as usize].data();
        match contents.open(b) {
            Ok(mut content) => held.touched(a, data, &mut content).map(Touched::Ranges),
            Err(cause) => {
                unread.push((b, cause));
                Ok(Touched::Unknown)
            }
        }
    })?;
    for (at, cause) in &unread {
        let name = here.entries().find(|(_, entry)| entry.inode == *at);
        let path = name.map(|(root, entry)| changes::text(&entry.path.under(&root.path))).unwrap_or_default();
        crate::daemon::warn(&format!("{path}: {cause}"));
    }
    deltas.retain(|delta| !is_left(&wanted, delta));
    let to = Title { at: time(here.taken_at), ..Title::default() };
    changes::print(&title, &to, true, &deltas, args.json)?;
    Ok(u8::from(!deltas.is_empty()))
}

/// Where `holo cfor unpack --into` puts a root.
pub(super) fn under(dir: &Path, root: &[u8]) -> Vec<u8> {
    let below = root.strip_prefix(b"/").unwrap_or(root);
    let dir = dir.as_os_str().as_bytes();
    RelPath::new(below).map_or_else(|| dir.to_vec(), |below| below.under(dir))
}

/// Something that the epoch left out: whatever is there is right.
fn is_left(wanted: &Tree, delta: &Delta) -> bool {
    delta.what == What::Removed && delta.kind == "left"
        || wanted.remarks.iter().any(|remark| remark.path == delta.path && delta.kind == "left")
}
