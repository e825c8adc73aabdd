//! Files that must not be opened: that breaks somebody's lease (`F_SETLEASE`), of which the kernel tells the holder by a signal.

use std::fs::File;

use crate::watch::Number;

/// Who has leases.
pub trait Leases {
    /// The descriptor of who has a lease on a file. It reads without opening; its position must not move.
    fn descriptor(&self, _file: Number) -> Option<&File> {
        None
    }

    /// A file is about to be opened: nobody takes a lease until [`Leases::close`]. False: somebody has, or is about to.
    fn open(&self) -> bool {
        true
    }

    /// Somebody waits for the file to be closed.
    fn is_wanted(&self) -> bool {
        false
    }

    /// It is closed.
    fn close(&self) {}
}

/// Nobody has any, or whoever has is to hear of it.
#[derive(Clone, Copy, Debug)]
pub struct NoLeases;

impl Leases for NoLeases {}

/// A file may be open as long as this lives.
pub(crate) struct Opening<'a>(&'a dyn Leases);

impl<'a> Opening<'a> {
    /// None: it must not be opened.
    pub(crate) fn begin(leases: &'a dyn Leases) -> Option<Self> {
        leases.open().then_some(Self(leases))
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.0.is_wanted()
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}
