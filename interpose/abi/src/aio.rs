//! Contexts of asynchronous I/O (`io_setup`) of a process, and how many requests the kernel has taken in each: it tells
//! nobody how many are under way.
//!
//! The table is libholo's own memory, at [`super::control::Header::aio_at`]. A child of `fork` has a copy and none of the
//! contexts: entries are those of the process that they name.

use core::sync::atomic::AtomicU64;

/// Contexts of a process that are counted; of more, the application is unprotected.
pub const CONTEXTS_MAX: usize = 512;

/// A context.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Context {
    /// Its id, the address of its ring; 0: the entry is free. Written last.
    pub at: AtomicU64,
    /// The process, by its pid as it sees itself.
    pub pid: AtomicU64,
    /// Requests that `io_submit` took.
    pub taken: AtomicU64,
}

const _: () = assert!(size_of::<Context>() == 24);
