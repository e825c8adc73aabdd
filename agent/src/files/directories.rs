//! Directories outside the roots that the application has made, and links to directories: as they are, without what is in them. Its
//! files there are single files of the epoch.

use crate::inodes::Number;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::Path;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    path: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Of a link.
    target: Option<Vec<u8>>,
    /// Device and inode number.
    number: Number,
}

impl Directory {
    /// What is there.
    pub(super) fn of(path: &Path, meta: &Metadata) -> Option<Self> {
        let target = if meta.is_symlink() {
            Some(fs::read_link(path).ok()?.into_os_string().into_vec())
        } else {
            None
        };
        let path = path.as_os_str().as_bytes().to_vec();
        let number = (meta.dev(), meta.ino());
        Some(Self { path, mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), target, number })
    }

    /// What it was known by on the node of the epoch.
    pub(super) fn number(&self) -> Number {
        self.number
    }

    pub(super) fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// Is what is there in its way?
    pub(super) fn is_kept_out_by(&self, meta: &Metadata) -> bool {
        if self.target.is_some() { !meta.is_symlink() } else { !meta.is_dir() }
    }

    /// Makes it what it was. What is there and is none stays.
    pub(super) fn make(&self) -> io::Result<()> {
        let path = self.path();
        if !path.is_absolute() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let here = path.symlink_metadata();
        if let Some(target) = &self.target {
            let target = Path::new(OsStr::from_bytes(target));
            match here {
                Ok(meta) if !meta.is_symlink() => return Err(io::ErrorKind::AlreadyExists.into()),
                Ok(_) if fs::read_link(path).is_ok_and(|now| now == target) => return Ok(()),
                Ok(_) => fs::remove_file(path)?,
                Err(_) => {}
            }
            symlink(target, path)?;
            let _ = lchown(path, Some(self.uid), Some(self.gid));
            return Ok(());
        }
        if here.is_err() {
            fs::create_dir(path)?;
        }
        // Nobody may put a link there meanwhile.
        let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let dir = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(dir) => dir,
            // What is there is something else, or somebody else's.
            Err(_) if here.is_ok() => return Ok(()),
            Err(cause) => return Err(cause),
        };
        let now = dir.metadata()?;
        if (now.mode() & 0o7777, now.uid(), now.gid()) == (self.mode, self.uid, self.gid) {
            return Ok(());
        }
        // Only root may.
        let _ = fchown(&dir, Some(self.uid), Some(self.gid));
        match dir.set_permissions(Permissions::from_mode(self.mode)) {
            Err(cause) if here.is_ok() && cause.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        }
    }
}
