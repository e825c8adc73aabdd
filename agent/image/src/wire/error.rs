//! Why bytes are not a frame.

use std::io;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream ended between frames.
    #[error("the other side closed the connection")]
    Closed,
    /// The bytes end too early: a truncated file or a connection that broke.
    #[error("truncated: {found} bytes of {wanted}")]
    TooShort {
        /// Bytes that should be there.
        wanted: u64,
        /// Bytes that are.
        found: u64,
    },
    /// It never was a frame.
    #[error("not a file or message of holo (foreign magic)")]
    BadMagic,
    /// Some other structure of holo.
    #[error("holds a structure of kind {found} where kind {wanted} belongs")]
    WrongKind {
        /// Kind of the frame.
        found: u16,
        /// Kind that was asked for.
        wanted: u16,
    },
    /// Written by a newer holo.
    #[error("has version {found}, this holo knows up to {supported}: use a newer holo")]
    NewerVersion {
        /// Version of the frame.
        found: u16,
        /// Newest version that this program reads.
        supported: u16,
    },
    /// Written by a holo so old that this one has forgotten its structures.
    #[error("has version {found}, this holo reads only {supported}: use the holo that wrote it")]
    OlderVersion {
        /// Version of the frame.
        found: u16,
        /// The version that this program reads.
        supported: u16,
    },
    /// The bytes changed after they were written.
    #[error("damaged: checksum of the {part} does not match")]
    BadChecksum {
        /// `header` or `payload`.
        part: &'static str,
    },
    /// Longer than the reader accepts.
    #[error("too long: {found} bytes, at most {limit} are accepted")]
    TooLong {
        /// Announced bytes of payload.
        found: u64,
        /// Bound of the reader.
        limit: u64,
    },
    /// Bytes behind the frame.
    #[error("{bytes} bytes follow the end")]
    Trailing {
        /// How many.
        bytes: u64,
    },
    /// Bytes behind the structure, inside the frame.
    #[error("the structure ends before its frame does")]
    TrailingInside,
    /// The payload is no such structure.
    #[error("malformed: {0}")]
    Decode(String),
    /// The value cannot be serialized.
    #[error("cannot be serialized: {0}")]
    Encode(String),
    /// The stream failed.
    #[error(transparent)]
    Io(io::Error),
}
