//! Why the store could not do what it was asked.

use std::{io, path::PathBuf};

use crate::{key::PageKey, wire::WireError};

/// Result of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the store could not do what it was asked. Whatever it is, epochs that were sealed stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk (or the quota) is full.
    #[error("{op} {}: no space left; free space or keep fewer epochs; sealed epochs are intact", path.display())]
    DiskFull {
        /// What was done.
        op: &'static str,
        /// To what.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was done.
        op: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is truncated, damaged, foreign or too new.
    #[error("{}: {source}{}", path.display(), advice(source))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WireError,
    },
    /// A file is well-formed but says impossible things.
    #[error("{}: {reason}; restore another epoch, or copy the file back from another node", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is impossible.
        reason: ManifestError,
    },
    /// A page file ends before a page that an epoch has.
    #[error("{}: truncated, page {slot} is missing; restore another epoch, or fetch this one from another node", path.display())]
    PageFileShort {
        /// The page file.
        path: PathBuf,
        /// Place in it.
        slot: u32,
    },
    /// A stored page is not what was stored.
    #[error("{}: page {slot} is damaged (its content is not {key}); restore another epoch, or fetch this one from another node", path.display())]
    BadPage {
        /// The page file.
        path: PathBuf,
        /// Place in it.
        slot: u32,
        /// Name of the content that should be there.
        key: PageKey,
    },
    /// No application has such a name.
    #[error("{name:?} is no name for an application: 1 to 64 of A-Z a-z 0-9 . _ - and no dot in front")]
    BadName {
        /// The name.
        name: String,
    },
    /// The store does not know the application.
    #[error("the store has no application {name}")]
    NoSuchApp {
        /// Its name.
        name: String,
    },
    /// Another process has the application open.
    #[error("{}: another process uses this application's store (a second agent?); end it first", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// This process already writes an epoch of the application.
    #[error("an epoch of {app} is already being written")]
    Busy {
        /// The application.
        app: String,
    },
    /// Opened for reading only, or removed.
    #[error("the store of {app} is open for reading only")]
    ReadOnly {
        /// The application.
        app: String,
    },
    /// There is no such epoch.
    #[error("{app} has no epoch {epoch}")]
    NoSuchEpoch {
        /// The application.
        app: String,
        /// The number.
        epoch: u64,
    },
    /// Epochs are written in rising order.
    #[error("epoch {epoch} of {app} does not follow epoch {newest}")]
    EpochOrder {
        /// The application.
        app: String,
        /// The number that was asked for.
        epoch: u64,
        /// The newest number in the store.
        newest: u64,
    },
    /// The epoch (or one of the application's) is being read.
    #[error("epoch {epoch} of {app} is being read")]
    InUse {
        /// The application.
        app: String,
        /// The epoch.
        epoch: u64,
    },
    /// A page that the epoch shall have is not in the store.
    #[error("page {key} is not in the store")]
    UnknownPage {
        /// Its name.
        key: PageKey,
    },
    /// Received bytes are not the page that they were sent as.
    #[error("the page received as {key} has another content")]
    WrongPage {
        /// Its name.
        key: PageKey,
    },
    /// A page was received that the epoch does not have.
    #[error("page {key} does not belong to the epoch that is received")]
    Unwanted {
        /// Its name.
        key: PageKey,
    },
    /// The import is not complete.
    #[error("{count} pages were not received, {first} is the first")]
    Incomplete {
        /// How many.
        count: usize,
        /// One of them.
        first: PageKey,
    },
    /// A received manifest cannot be decoded.
    #[error("received manifest: {0}")]
    ReceivedWire(#[source] WireError),
    /// A received manifest, or one that was to be sealed, says impossible things.
    #[error("manifest: {0}")]
    BadManifest(#[from] ManifestError),
    /// A change was received of an epoch that is not here.
    #[error(
        "a change of epoch {base} of {app} was received, which is not the newest one here: the whole epoch is needed"
    )]
    NeedsWhole {
        /// The application.
        app: String,
        /// Number of that epoch.
        base: u64,
    },
    /// An earlier write of this epoch failed, so that it cannot be sealed.
    #[error("epoch {epoch} of {app} cannot be sealed: an earlier write failed")]
    Failed {
        /// The application.
        app: String,
        /// The epoch.
        epoch: u64,
    },
    /// What was to be stored could not be read.
    #[error("reading what is to be stored: {0}")]
    Source(#[source] io::Error),
    /// What was read from the store could not be written out.
    #[error("writing out what was stored: {0}")]
    Sink(#[source] io::Error),
    /// The store is full: slots are numbered with 32 bits.
    #[error("the store of {app} is full (16 TiB); keep fewer epochs")]
    Full {
        /// The application.
        app: String,
    },
}

/// What a manifest must not say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Made for another application.
    #[error("belongs to application {found:?}")]
    OtherApp {
        /// The other.
        found: String,
    },
    /// Made for another epoch than its place says.
    #[error("is epoch {found}")]
    OtherEpoch {
        /// The other.
        found: u64,
    },
    /// Pages at an address that is none.
    #[error("pages at {address:#x} (space {space}) that are unaligned or wrap around")]
    BadAddress {
        /// Address space or object.
        space: u64,
        /// First address.
        address: u64,
    },
    /// Two runs of pages overlap or are out of order.
    #[error("pages at {address:#x} (space {space}) that overlap others or are out of order")]
    Overlap {
        /// Address space or object.
        space: u64,
        /// First address.
        address: u64,
    },
    /// A run without pages.
    #[error("an empty run of pages at {address:#x}")]
    EmptyRun {
        /// First address.
        address: u64,
    },
    /// Too many pages.
    #[error("{found} pages, at most {limit} are accepted")]
    TooManyPages {
        /// How many.
        found: u64,
        /// Bound.
        limit: u64,
    },
    /// The list of pages outside the runs is not strictly rising, or has the zero page.
    #[error("list of further pages is out of order")]
    BadExtra,
    /// A section's kind has no name or too long a name.
    #[error("a section with a name of {bytes} bytes")]
    BadSectionName {
        /// Length.
        bytes: usize,
    },
    /// Two sections of one kind.
    #[error("two sections {kind:?}")]
    DuplicateSection {
        /// The kind.
        kind: String,
    },
    /// Places of pages do not match the pages.
    #[error("places of {found} pages for {wanted} pages")]
    SlotCount {
        /// Places.
        found: u64,
        /// Pages.
        wanted: u64,
    },
    /// One place is said to hold two pages.
    #[error("two pages at place {slot}")]
    SlotConflict {
        /// The place.
        slot: u32,
    },
    /// A change of an epoch that is not there, or of which something else comes out.
    #[error("is a change of epoch {base}, which is another one or missing")]
    BadBase {
        /// Number of that epoch.
        base: u64,
    },
    /// A blob whose parts do not fit together.
    #[error("a file content of {len} bytes whose parts do not fit")]
    BadBlob {
        /// Its length.
        len: u64,
    },
}

/// What a person can do about a file.
fn advice(source: &WireError) -> &'static str {
    match source {
        WireError::NewerVersion { .. } | WireError::OlderVersion { .. } => "; the file was left as it is",
        WireError::BadMagic | WireError::WrongKind { .. } => "; move it out of the store",
        WireError::TooShort { .. }
        | WireError::BadChecksum { .. }
        | WireError::TooLong { .. }
        | WireError::Trailing { .. }
        | WireError::TrailingInside
        | WireError::Decode(_) => "; restore another epoch, or fetch this one from another node",
        WireError::Closed | WireError::Encode(_) | WireError::Io(_) => "",
    }
}

impl Error {
    /// Sorts an error of the operating system.
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        move |source| {
            let full = matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge);
            if full { Error::DiskFull { op, path } } else { Error::Io { op, path, source } }
        }
    }

    /// Are stored or received data damaged, foreign or of another version?
    pub fn is_bad_image(&self) -> bool {
        matches!(
            self,
            Error::File { .. }
                | Error::Malformed { .. }
                | Error::PageFileShort { .. }
                | Error::BadPage { .. }
                | Error::WrongPage { .. }
                | Error::ReceivedWire(_)
                | Error::BadManifest(_)
        )
    }

    /// Is it about something that does not exist?
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NoSuchApp { .. } | Error::NoSuchEpoch { .. })
    }
}
