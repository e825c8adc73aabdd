//! Files of an image are put in place.

use super::directories::Directory;
use super::{DIRECTORIES, DIRECTORIES_VERSION, Files, NAME, Source, failed, trees};
use holo_cfor::{Captured, CapturedByInode, CapturedWithoutFlags, Remark, Targets};
use holo_image::{Blob, EpochReader};
use holo_rm::manager::{self, RmError, RmResult, SwitchCx};

impl Files {
    /// Makes the files those of an image.
    pub(super) fn put_in_place(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let mut captured = captured_in(cx.image)
            .map_err(|cause| RmError::BadSection { kind: NAME, what: cause.to_string() })?;
        for (at, blob) in &mut captured.contents {
            if let Some(inode) = captured.tree.inodes.get(*at as usize) {
                trees::complete(cx.image, inode.identity.dev, inode.identity.ino, blob);
            }
        }
        let directories = directories_in(cx.image)?;
        let targets = Targets {
            gone: self.made_since(&captured, &directories, cx.remarks),
            replaced: self.replaced.clone(),
            excludes: self.excludes.clone(),
            since: Some(self.others.since()),
            // The managers of descriptors and memory are yet to open files as the application had them open.
            holds_later: true,
            ..Targets::default()
        };
        let mut report = holo_cfor::apply(&captured, &mut Source(cx.image), &targets).map_err(failed)?;
        if !report.errors.is_empty() && report.removed > 0 {
            // What was moved away last may have been in the way of what came before, or taken its space.
            let first = report;
            drop(first.holds);
            report = holo_cfor::apply(&captured, &mut Source(cx.image), &targets).map_err(failed)?;
            report.remarks.splice(0..0, first.remarks);
            report.others.join(first.others);
        }
        for directory in &directories {
            if let Err(cause) = directory.make() {
                cx.remarks.push(format!("{}: cannot be made: {cause}", directory.path().display()));
            }
        }
        self.holds = std::mem::take(&mut report.holds);
        self.others.found(&report.others, self.replaced.as_deref());
        // What was done here is not others'.
        self.others.note();
        if let Some(first) = report.errors.first() {
            return Err(RmError::Unsupported(format!(
                "{} of the application's files cannot be put in place, first {}: {}",
                report.errors.len(),
                String::from_utf8_lossy(&first.path),
                first.what
            )));
        }
        cx.remarks.extend(report.remarks.iter().map(text));
        let captured_as = |at: u32| captured.tree.inodes.get(at as usize).map(|inode| inode.identity);
        let placed = report.inodes.iter().filter_map(|(real, at)| Some((*real, captured_as(*at)?)));
        self.placed = placed.map(|(real, was)| (real, (was.dev, was.ino))).collect();
        self.placed.sort_unstable();
        self.previous = None;
        Ok(())
    }

    /// Makes immutable and append-only what is to be, when descriptors are open, or nobody will open any; what could not be.
    pub(super) fn hold(&mut self) -> Vec<Remark> {
        let holds = std::mem::take(&mut self.holds);
        if holds.is_empty() {
            return Vec::new();
        }
        let refused = holds.hold();
        // Nobody else has changed these.
        self.others.note();
        refused
    }
}

/// The trees of an epoch, of which contents are to be completed.
pub(super) fn captured_in(epoch: &EpochReader) -> Result<Captured<Blob>, trees::TreesError> {
    trees::trees::<_, CapturedWithoutFlags<Blob>, CapturedByInode<Blob>>(epoch)
}

/// The directories outside the roots of an epoch.
pub(super) fn directories_in(epoch: &EpochReader) -> RmResult<Vec<Directory>> {
    match epoch.section(DIRECTORIES) {
        None => Ok(Vec::new()),
        Some(_) => manager::section(epoch, DIRECTORIES, DIRECTORIES_VERSION),
    }
}

/// A remark of an application.
pub(super) fn text(remark: &Remark) -> String {
    format!("{}: {}", String::from_utf8_lossy(&remark.path), remark.what)
}
