//! How far writers are, for who looks on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of contents, found in the store or written.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    put: AtomicU64,
    expected: AtomicU64,
}

impl Progress {
    pub(crate) fn restart(&self) {
        self.put.store(0, Relaxed);
        self.expected.store(0, Relaxed);
    }

    pub(crate) fn put(&self, bytes: u64) {
        self.put.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn expect(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Relaxed);
    }

    /// What was put, and what is known to come in all.
    pub(crate) fn look(&self) -> (u64, u64) {
        let put = self.put.load(Relaxed);
        (put, self.expected.load(Relaxed).max(put))
    }
}
