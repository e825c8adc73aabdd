//! What can go wrong with a table or the module it is made from.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A module or a table could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A table could not be put into the cache.
    #[error("write call-site table {path}: {source}")]
    Write {
        /// The file or its directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The module is not an ELF file that can be patched.
    #[error("module: {0}")]
    Elf(String),
    /// A table breaks its format.
    #[error("call-site table: {what} (at byte {at})")]
    Table {
        /// The rule that is broken.
        what: &'static str,
        /// Offset in the table.
        at: usize,
    },
    /// A table is well formed but not for this module, or would change what the code does.
    #[error("call site {site:#x}: {what}")]
    Mismatch {
        /// Address of the `syscall` in the module, 0 for the whole table.
        site: u32,
        /// What differs.
        what: String,
    },
}
