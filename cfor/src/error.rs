//! Errors of file trees.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;

/// What can go wrong with a tree as a whole. What goes wrong with one entry is a [`crate::Remark`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A tree breaks a rule or a bound.
    #[error("file tree: {what}: {path}")]
    Invalid {
        /// The rule.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
}

impl Error {
    /// A closure that adds operation and object to a cause.
    pub(crate) fn io<E: Into<std::io::Error>>(
        operation: &'static str,
        path: &[u8],
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: to_path(path), source: source.into() }
    }

    pub(crate) fn invalid(what: &'static str, path: &[u8]) -> Self {
        Self::Invalid { what, path: to_path(path) }
    }
}

/// Bytes as a path.
pub(crate) fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// The cause of a failed call, for a remark.
pub(crate) fn failed(operation: &str, cause: Errno) -> String {
    format!("{operation}: {}", cause.desc())
}
