//! Objects that descriptors and memory zones share: memfds, files without a name.
//!
//! A memfd that is open *and* mapped must be one object again. Both managers name it by device and inode;
//! whoever comes first stages its content at the cut, and creates it at the restore.

use super::kernel::owned;
use crate::manager::{Context, DumpCx, RmResult, SwitchCx};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Device and inode at the cut.
pub type ObjectKey = (u64, u64);

/// Name of an object's content in the image.
#[must_use]
pub fn content_name((dev, ino): ObjectKey) -> String {
    format!("shared:{dev}:{ino}")
}

/// Where contents come from.
pub trait Contents {
    /// Makes `file` have the content staged as `name`.
    ///
    /// # Errors
    /// There is none, or it cannot be written.
    fn fill(&self, name: &str, file: &File) -> RmResult<()>;
}

impl Contents for SwitchCx<'_> {
    fn fill(&self, name: &str, file: &File) -> RmResult<()> {
        Ok(self.image.read_blob_to_file(self.blob("descriptors", name)?, file)?)
    }
}

#[derive(Default)]
struct Inner {
    staged: BTreeSet<ObjectKey>,
    made: BTreeMap<ObjectKey, OwnedFd>,
    /// Ranges of which some process's zone has given the pages.
    covered: BTreeMap<ObjectKey, Vec<(u64, u64)>>,
}

/// The objects of one capture or of one restore. Clones are the same set.
#[derive(Clone, Default)]
pub struct SharedObjects(Arc<Mutex<Inner>>);

impl SharedObjects {
    /// A set without objects, for one epoch or one restore.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stages the content of an object, once, under [`content_name`].
    ///
    /// # Errors
    /// The copy's.
    pub fn stage(&self, cx: &mut DumpCx, key: ObjectKey, file: &File) -> RmResult<()> {
        if self.inner().staged.contains(&key) {
            return Ok(());
        }
        cx.stage(content_name(key), file)?;
        self.inner().staged.insert(key);
        Ok(())
    }

    /// Whether a range of an object is still to be copied; asked once by each zone of any process.
    #[must_use]
    pub fn cover(&self, key: ObjectKey, from: u64, to: u64) -> bool {
        let mut inner = self.inner();
        let done = inner.covered.entry(key).or_default();
        if done.iter().any(|(start, end)| *start <= from && to <= *end) {
            return false;
        }
        done.push((from, to));
        true
    }

    /// Whether the content of an object was staged.
    #[must_use]
    pub fn is_staged(&self, key: ObjectKey) -> bool {
        self.inner().staged.contains(&key)
    }

    /// The object if it was made already: a duplicate of the descriptor that made it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn made(&self, key: ObjectKey) -> RmResult<Option<OwnedFd>> {
        let inner = self.inner();
        let found = inner.made.get(&key).map(|fd| fd.as_fd().try_clone_to_owned());
        found.transpose().on("duplicating", content_name(key))
    }

    /// The object, made with `make` if it is not there yet.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get_or_make(&self, key: ObjectKey, make: impl FnOnce() -> RmResult<OwnedFd>) -> RmResult<OwnedFd> {
        if let Some(fd) = self.made(key)? {
            return Ok(fd);
        }
        let fd = make()?;
        let copy = fd.try_clone().on("duplicating", content_name(key))?;
        self.inner().made.insert(key, copy);
        Ok(fd)
    }

    /// The memory file `key` with its staged content, writable and not yet sealed.
    ///
    /// # Errors
    /// The kernel's, or a missing content.
    pub fn memfd(&self, key: ObjectKey, name: &[u8], flags: u32, from: &dyn Contents) -> RmResult<OwnedFd> {
        self.get_or_make(key, || {
            let name = CString::new(name).unwrap_or_default();
            // SAFETY: a terminated name. Sealing is allowed here and taken away by a seal where it was not.
            let made = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
            let fd = owned(made).on("making memory file", name.to_string_lossy())?;
            let file = File::from(fd);
            from.fill(&content_name(key), &file)?;
            Ok(file.into())
        })
    }

    /// Forgets all: the objects live on through the descriptors and maps that were made of them.
    pub fn clear(&self) {
        *self.inner() = Inner::default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Seek, Write};

    struct Fixed;
    impl Contents for Fixed {
        fn fill(&self, name: &str, mut file: &File) -> RmResult<()> {
            file.write_all(name.as_bytes()).on("writing", name)
        }
    }

    // Goal: one object however often it is asked for. Method: ask twice, write through one, read through the other.
    #[test]
    fn one_object() {
        let shared = SharedObjects::new();
        let mut one = File::from(shared.memfd((1, 2), b"x", libc::MFD_ALLOW_SEALING, &Fixed).unwrap());
        let mut other = File::from(shared.clone().memfd((1, 2), b"x", 0, &Fixed).unwrap());
        one.write_all(b"+").unwrap();
        let mut text = String::new();
        other.rewind().unwrap();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "shared:1:2+");
        assert!(shared.made((1, 3)).unwrap().is_none());
    }
}
