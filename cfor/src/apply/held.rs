//! Flags (`chattr`): what is immutable or append-only is so last of all, since then nothing can be done with it any more.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use super::{Applier, HELD, Place, Refused};
use crate::access::{Dir, SELF, identity, times};
use crate::capture::ContentSource;
use crate::change::is_untouched;
use crate::error::failed;
use crate::flags::{self, HOLDING};
use crate::path::RelPath;
use crate::tree::{Inode, Kind, Remark, Remarks};

impl<S: ContentSource> Applier<'_, S> {
    /// Makes what is there what should be, if that can be done in its place.
    pub(super) fn keep(
        &mut self,
        place: Place<'_>,
        stat: &FileStat,
        (at, inode): (u32, &Inode),
        is_others: bool,
    ) -> Result<bool, Refused> {
        let is_right = self.is_right(place, stat, at, inode);
        if !is_right && !self.is_captured(stat, at, inode) {
            return Ok(false);
        }
        if is_right && !self.holds_later && place.dir.is_held(place.name) && self.is_same(place, stat, inode)
        {
            self.report.kept += 1;
            return Ok(true);
        }
        let released = match place.dir.release(place.name) {
            // Perhaps nothing of it has to be changed that cannot be. If so, the next steps say it.
            Err(_) if is_right => None,
            other => other.map_err(place.refused(HELD))?,
        };
        let done = if is_right {
            self.report.kept += 1;
            self.metadata(place, inode).map(|()| true)
        } else if self.rewrite(place, at, inode) {
            self.report.made += 1;
            self.note_others(place.full, is_others);
            self.metadata(place, inode).map(|()| true)
        } else {
            Ok(false)
        };
        if !matches!(done, Ok(true)) {
            place.dir.hold_again(place.name, released);
        }
        done
    }

    /// Whether nothing but content, which the caller has compared, could be other than it should be.
    pub(super) fn is_same(&self, place: Place<'_>, stat: &FileStat, inode: &Inode) -> bool {
        let (atime, mtime, _) = times(stat);
        let mut is_unread = false;
        let xattrs = place.dir.xattrs(place.name, &mut |_, _| is_unread = true);
        (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (inode.mode, inode.uid, inode.gid)
            && (atime, mtime) == (inode.atime, inode.mtime)
            && xattrs.is_ok_and(|xattrs| !is_unread && xattrs == inode.xattrs)
            && place.dir.flags_of(place.name, inode.kind == Kind::Dir) == Ok(inode.flags)
    }

    /// Sets flags, but for those that [`Holds`] sets. `stat` is as it was before anything was changed.
    pub(super) fn flags(&mut self, place: Place<'_>, stat: &FileStat, inode: &Inode) {
        if !matches!(inode.kind, Kind::File { .. } | Kind::Dir) {
            return;
        }
        let mut now = inode.clone();
        (now.identity, now.mtime) = (identity(stat), times(stat).1);
        // The very file that was captured: none of its flags was changed since.
        if !is_untouched(inode, self.captured.tree.taken_at, &now) {
            let done = place.dir.set_flags(place.name, inode.flags, inode.flags & HOLDING);
            tell(&mut self.remarks, place.full, inode.flags, done);
        }
    }
}

/// What is to become immutable or append-only. What is left of it when it is dropped becomes so then.
#[derive(Debug, Default)]
pub struct Holds(Vec<Hold>);

/// One inode: its flags and a name.
#[derive(Debug)]
struct Hold {
    flags: u32,
    top: PathBuf,
    path: RelPath,
}

impl Holds {
    /// Is there nothing?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An inode has got a name here.
    pub(super) fn add(&mut self, inode: &Inode, top: &Path, path: &RelPath) {
        if inode.flags & HOLDING != 0 {
            self.0.push(Hold { flags: inode.flags, top: top.to_owned(), path: path.clone() });
        }
    }

    /// Makes all of it so; what could not be, as [`Report::remarks`](super::Report::remarks).
    pub fn hold(mut self) -> Vec<Remark> {
        self.hold_all()
    }

    fn hold_all(&mut self) -> Vec<Remark> {
        let mut remarks = Remarks::default();
        for Hold { flags, top, path } in std::mem::take(&mut self.0) {
            let full = path.under(top.as_os_str().as_encoded_bytes());
            let (parent, name) = path.split().unwrap_or((RelPath::default(), SELF));
            match Dir::open(&top).and_then(|top| top.beneath(&parent)) {
                Ok(dir) => tell(&mut remarks, &full, flags, dir.set_flags(name, flags, 0)),
                Err(cause) => remarks.add(&full, failed("open directory above", cause)),
            }
        }
        remarks.finish()
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.hold_all();
    }
}

/// Adds a remark for flags that could not be set, and for those that could not be taken away.
fn tell(remarks: &mut Remarks, full: &[u8], wanted: u32, done: Result<(), flags::Refused>) {
    let Err(flags::Refused { flags, cause }) = done else { return };
    let told = [(flags & wanted, "to be set"), (flags & !wanted, "to be taken away")];
    for (flags, verb) in told.into_iter().filter(|(flags, _)| *flags != 0) {
        let what = format!("flags {} {verb}", flags::text(flags));
        remarks.add(full, failed(&what, cause.unwrap_or(Errno::EOPNOTSUPP)));
    }
}
