//! What does not belong: moved to where its owner finds it, or removed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, readlinkat, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::{Applier, HELD, Place, Refused, is_temporary};
use crate::access::{Dir, SELF, is};
use crate::attributes::{CAPABILITY, comes_last, mode_without};
use crate::capture::ContentSource;
use crate::copy;
use crate::error::to_path;
use crate::path::RelPath;
use crate::tree::{Root, Xattr};

/// Things of one name that are kept; past it the last one is given up.
const SAME_NAME_MAX: u32 = 10_000;
/// Directories in one another that are removed or copied; each costs a descriptor.
const DEPTH_MAX: u32 = 256;

impl<S: ContentSource> Applier<'_, S> {
    /// Moves away or removes what is in a directory and not in the tree.
    pub(super) fn prune(
        &mut self,
        root: &Root,
        path: &RelPath,
        dir: &Dir,
        full: &[u8],
        dev: u64,
    ) -> Result<(), Refused> {
        let here = Place { dir, name: SELF, full, dev };
        for name in dir.names().map_err(here.refused("list"))? {
            let known = path
                .join(&name)
                .is_some_and(|path| root.entries.binary_search_by(|entry| entry.path.cmp(&path)).is_ok());
            let full = [full, if full.ends_with(b"/") { b"" } else { b"/" }, &name].concat();
            if known || self.holds_excluded(&full) {
                continue;
            }
            let place = Place { dir, name: &name, full: &full, dev };
            let found = dir.look(&name);
            let is_others = matches!(&found, Ok(Some(stat)) if !is_temporary(&name) && self.is_others(stat));
            let removed = match found {
                Ok(Some(stat)) if stat.st_dev != dev => {
                    Err((full.clone(), "is a mount point here: left as it is".into()))
                }
                // Also what an apply left that was killed: it may be the old file that it had exchanged.
                Ok(_) => self.displace(place),
                Err(cause) => Err(place.refused("look at")(cause)),
            };
            match removed {
                Ok(()) => {
                    self.report.removed += 1;
                    self.note_others(&full, is_others);
                }
                Err((path, why)) => self.errors.add(&path, why),
            }
        }
        Ok(())
    }

    /// Moves a single file away; a directory is removed if nothing is in it.
    pub(super) fn gone(&mut self, path: &Path) -> Result<(), Refused> {
        let full = path.as_os_str().as_bytes();
        let (Some(home), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let Ok(dir) = Dir::open(home) else { return Ok(()) };
        let Ok(Some(stat)) = dir.look(name.as_bytes()) else { return Ok(()) };
        let place = Place { dir: &dir, name: name.as_bytes(), full, dev: stat.st_dev };
        if self.holds_excluded(full) {
            return Ok(());
        }
        if is(&stat, SFlag::S_IFDIR) {
            // Others may have something there.
            let done = unlinkat(&dir, name, UnlinkatFlags::RemoveDir);
            self.report.removed += usize::from(done.is_ok());
            return Ok(());
        }
        self.report.removed += 1;
        self.displace(place)
    }

    /// Whether something that must not be touched is at `full` or below.
    fn holds_excluded(&self, full: &[u8]) -> bool {
        let path = to_path(full);
        self.is_excluded(full) || self.excludes.iter().any(|exclude| exclude.starts_with(&path))
    }

    /// Moves or removes what is at `place`.
    pub(super) fn displace(&mut self, place: Place<'_>) -> Result<(), Refused> {
        self.displace_from(place, place.name)
    }

    /// [`Self::displace`] for something that has the name `now` at the moment.
    pub(super) fn displace_from(&mut self, place: Place<'_>, now: &[u8]) -> Result<(), Refused> {
        let held = Place { name: now, ..place };
        if self.replaced.is_none() {
            return self.erase(held);
        }
        // Whoever finds it there may want to remove it.
        let released = held.dir.release(now).map_err(place.refused(HELD))?;
        let mut copied = false;
        let moved = self.among_replaced(place, |dir, free| {
            match renameat2(place.dir, now, dir, free, RenameFlags::RENAME_NOREPLACE) {
                Err(Errno::EXDEV | Errno::EINVAL) => {
                    copy_node(place.dir, now, dir, free, DEPTH_MAX)?;
                    copied = true;
                    Ok(())
                }
                other => other,
            }
        });
        if moved.is_err() {
            held.dir.hold_again(now, released);
        }
        moved?;
        if copied { self.erase(held) } else { Ok(()) }
    }

    /// Copies the file at `place` to where replaced things go; without such a place nothing is kept.
    pub(super) fn keep_copy(&self, place: Place<'_>) -> Result<(), Refused> {
        if self.replaced.is_none() {
            return Ok(());
        }
        self.among_replaced(place, |dir, free| copy_node(place.dir, place.name, dir, free, DEPTH_MAX))
    }

    /// Calls `put` with the directory for what was at `place`, and names until one of them is free.
    fn among_replaced(
        &self,
        place: Place<'_>,
        mut put: impl FnMut(&Dir, &[u8]) -> nix::Result<()>,
    ) -> Result<(), Refused> {
        let path = to_path(place.full);
        let below = path.parent().and_then(|p| p.strip_prefix("/").ok()).unwrap_or(&path);
        let top = self.replaced.unwrap_or(Path::new("/"));
        let mut home = top.join(below);
        let told = home.clone();
        let failed = |what: &str, cause: std::io::Error| {
            (place.full.to_vec(), format!("{what} {}: {cause}", told.display()))
        };
        if fs::create_dir_all(&home).is_err() {
            home = make_home(top, below).map_err(|cause| failed("make", cause))?;
        }
        let dir = Dir::open(&home).map_err(|cause| failed("open", cause.into()))?;
        let name = path.file_name().map_or(place.name, |name| name.as_bytes());
        for count in 0..SAME_NAME_MAX {
            let free = numbered(name, count);
            match put(&dir, &free) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) => (),
                Err(cause) => return Err(failed("move to", cause.into())),
            }
        }
        Err(failed("move to", Errno::EEXIST.into()))
    }

    /// Removes what is at `place`, with all below it.
    pub(super) fn erase(&self, place: Place<'_>) -> Result<(), Refused> {
        erase(place.dir, place.name, place.dev, DEPTH_MAX).map_err(place.refused("remove"))
    }
}

/// The name of the `count`th thing that was called `name`.
fn numbered(name: &[u8], count: u32) -> Vec<u8> {
    if count == 0 { name.to_vec() } else { [name, format!(".~{count}~").as_bytes()].concat() }
}

/// Makes the directories `below` under `top`, beside what is kept there and is no directory.
fn make_home(top: &Path, below: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(top)?;
    let mut home = top.to_owned();
    for name in below.iter() {
        let mut counts = 0..SAME_NAME_MAX;
        home = loop {
            let count = counts.next().ok_or(io::ErrorKind::AlreadyExists)?;
            let made = home.join(OsStr::from_bytes(&numbered(name.as_bytes(), count)));
            match fs::create_dir(&made) {
                Ok(()) => break made,
                Err(_) if fs::symlink_metadata(&made).is_ok_and(|meta| meta.is_dir()) => break made,
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(cause),
            }
        };
    }
    Ok(home)
}

/// Removes a file, or a directory with all in it, also what is immutable or append-only.
///
/// # Errors
/// Something cannot be removed, or is of another file system.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let (Some(home), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = Dir::open(home)?;
    match dir.look(name.as_bytes())? {
        None => Ok(()),
        Some(stat) => Ok(erase(&dir, name.as_bytes(), stat.st_dev, DEPTH_MAX)?),
    }
}

fn erase(dir: &Dir, name: &[u8], dev: u64, depth: u32) -> nix::Result<()> {
    match dir.look(name)? {
        None => return Ok(()),
        Some(stat) if !is(&stat, SFlag::S_IFDIR) => {
            let remove = || unlinkat(dir, name, UnlinkatFlags::NoRemoveDir);
            // As a rule there is nothing to be asked.
            match remove() {
                Err(Errno::EPERM) => {}
                done => return done,
            }
            let released = dir.release(name)?;
            return remove().inspect_err(|_| dir.hold_again(name, released));
        }
        Some(stat) if stat.st_dev != dev => return Err(Errno::EXDEV),
        Some(stat) => {
            let mode = Mode::from_bits_truncate(stat.st_mode) | Mode::S_IRWXU;
            let _ = dir.release(name);
            // Where it fails, the next step says why.
            let _ = fchmodat(dir, name, mode, FchmodatFlags::NoFollowSymlink);
        }
    }
    let below = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
    let inner = dir.child(name)?;
    for name in inner.names()? {
        erase(&inner, &name, dev, below)?;
    }
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}

/// Copies something to another file system, under a name that is free.
fn copy_node(old: &Dir, old_name: &[u8], new: &Dir, new_name: &[u8], depth: u32) -> nix::Result<()> {
    let stat = old.stat(old_name)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let mode = Mode::from_bits_truncate(stat.st_mode);
    let errno = |cause: std::io::Error| cause.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    match kind {
        SFlag::S_IFDIR => {
            let below = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
            mkdirat(new, new_name, Mode::S_IRWXU)?;
            let (from, to) = (old.child(old_name)?, new.child(new_name)?);
            for name in from.names()? {
                copy_node(&from, &name, &to, &name, below)?;
            }
        }
        SFlag::S_IFREG => {
            let (from, to) = (old.read(old_name)?, new.create(new_name)?);
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            if copy::clone_file(&from, &to).is_err() {
                to.set_len(size).map_err(errno)?;
                copy::copy_ranges(&from, &to, &copy::extents(&from, size)?).map_err(errno)?;
            }
        }
        SFlag::S_IFLNK => symlinkat(readlinkat(old, old_name)?.as_os_str(), new, new_name)?,
        _ => mknodat(new, new_name, kind, mode, stat.st_rdev)?,
    }
    if kind != SFlag::S_IFLNK {
        // Capabilities are not for a copy, whose owner is another.
        let (last, first): (Vec<_>, Vec<_>) = old
            .xattrs(old_name, &mut |_, _| ())?
            .into_iter()
            .filter(|xattr| xattr.name != CAPABILITY)
            .partition(|xattr| comes_last(&xattr.name));
        // Kept where the other file system can.
        let set = |xattrs: &[Xattr]| {
            for xattr in xattrs {
                let _ = new.set_xattr(new_name, xattr);
            }
        };
        set(&first);
        let mode = last.iter().fold(stat.st_mode, |mode, list| mode_without(&list.value, mode));
        fchmodat(new, new_name, Mode::from_bits_truncate(mode), FchmodatFlags::NoFollowSymlink)?;
        set(&last);
    }
    let (atime, mtime) =
        (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    utimensat(new, new_name, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
}
