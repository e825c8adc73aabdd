//! The resource manager: one trait, one file per kind, phases as in the design (section 4).

use crate::asks::Asking;
use crate::clone::Late;
use crate::install::Channel;
use crate::kinds::laid::Laid;
use crate::kinds::ptys::Terminals;
use crate::remote::Remote;
use crate::tree::Process;
use holo_image::wire::{self, Kind};
use holo_image::{Blob, EpochReader, EpochWriter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Envelope of a kind's state; the kind's own version is beside it in the manifest.
pub(crate) const SECTION: Kind = Kind::new(32, 1);
/// Longest section that is decoded: descriptors with their queued bytes are the largest.
const SECTION_BYTES_MAX: u64 = 256 << 20;

/// Spaces of pages that each process has in an image.
pub const SPACES: u64 = 1 << 20;

/// Why a manager's phase failed.
#[derive(Debug, thiserror::Error)]
pub enum RmError {
    /// A resource that cannot be replicated: the application is *unprotected*, and runs on.
    #[error("{0}")]
    Unsupported(String),
    /// A system call on an object failed.
    #[error("{operation} {object}: {source}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Cause.
        source: io::Error,
    },
    /// The image lacks something or contradicts itself.
    #[error("section `{kind}`: {what}")]
    BadSection {
        /// Kind of resource.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The image's storage failed.
    #[error(transparent)]
    Image(#[from] holo_image::Error),
}

/// Shorthand.
pub type RmResult<T> = Result<T, RmError>;

/// Gives an I/O error its operation and object.
pub trait Context<T> {
    /// `operation` on `object` failed.
    ///
    /// # Errors
    /// If `self` is one.
    fn on(self, operation: &'static str, object: impl std::fmt::Display) -> RmResult<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, operation: &'static str, object: impl std::fmt::Display) -> RmResult<T> {
        self.map_err(|source| RmError::Kernel { operation, object: object.to_string(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn on(self, operation: &'static str, object: impl std::fmt::Display) -> RmResult<T> {
        self.map_err(io::Error::from).on(operation, object)
    }
}

/// States by kind and process, encoded.
#[derive(Default)]
pub struct Sections(pub BTreeMap<String, (u16, Vec<u8>)>);

/// Name of the section of a kind: one for the application, or one for each process by its place in the tree.
#[must_use]
pub fn section_name(kind: &str, process: usize) -> String {
    if process == 0 { kind.to_owned() } else { format!("{kind}@{process}") }
}

impl Sections {
    fn put<T: Serialize>(
        &mut self,
        kind: &'static str,
        process: usize,
        version: u16,
        state: &T,
    ) -> RmResult<()> {
        let bytes = wire::encode(state, SECTION)
            .map_err(|cause| RmError::BadSection { kind, what: cause.to_string() })?;
        self.0.insert(section_name(kind, process), (version, bytes));
        Ok(())
    }
}

/// A file whose content was copied in the stop, to be put into the image afterwards.
pub struct Staged {
    /// Name by which the kind finds it again, unique: `kind:number`.
    pub name: String,
    /// The copy (unlinked already).
    pub copy: File,
    /// What an epoch has already, if the copy has only what changed since then.
    pub since: Option<Since>,
}

/// A content that a kept epoch has, and the ranges, of whole pages, that are not as in it.
pub struct Since {
    /// The content, of the same length.
    pub base: Blob,
    /// First byte and end of each, rising.
    pub changed: Vec<(u64, u64)>,
}

/// What a DUMP phase works with. The application is parked in `dump` only.
pub struct DumpCx<'a> {
    /// The process; for kinds of the whole application the one that stands for it.
    pub remote: &'a Remote,
    /// Slots of all its threads, the thread-group leader's first; none while it runs.
    pub slots: &'a [usize],
    /// All processes, in the order of the tree.
    pub processes: &'a [Process],
    /// Which of them `remote` is.
    pub index: usize,
    /// Out: states.
    pub sections: &'a mut Sections,
    /// Out: what was noticed and does not prevent the epoch.
    pub remarks: &'a mut Vec<String>,
    /// Out: what would be cut in two now and is whole a moment later; the epoch is then tried again.
    pub unsettled: &'a mut Vec<String>,
    /// Out: contents to be stored.
    pub staged: &'a mut Vec<Staged>,
    /// Where copies may be made.
    pub staging_dir: &'a Path,
    /// The epoch, in POST phases.
    pub writer: Option<&'a mut EpochWriter>,
    /// Out: files whose content differs from the epoch before.
    pub files_changed: u64,
}

impl DumpCx<'_> {
    /// Enters the state of a kind.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn put<T: Serialize>(&mut self, kind: &'static str, version: u16, state: &T) -> RmResult<()> {
        self.sections.put(kind, self.index, version, state)
    }

    /// The state of a kind that was put before, of this process.
    ///
    /// # Errors
    /// There is none.
    pub fn section<T: DeserializeOwned>(&self, kind: &'static str) -> RmResult<T> {
        let put = self.sections.0.get(&section_name(kind, self.index));
        let state = put.and_then(|(_, bytes)| decode(bytes));
        state.ok_or_else(|| RmError::BadSection { kind, what: "it was not put yet".into() })
    }

    /// The place in the tree of a process with this pid on this node.
    #[must_use]
    pub fn place(&self, pid: i32) -> Option<u32> {
        self.processes.iter().position(|process| process.remote.pid == pid).map(|place| place as u32)
    }

    /// Number of a space of pages that is this process's own: `local` below [`SPACES`].
    #[must_use]
    pub fn space(&self, local: u64) -> u64 {
        self.index as u64 * SPACES + local
    }

    /// Copies the content of `file` (holes stay holes, a reflink where possible), to be found as `name` by
    /// [`SwitchCx::blob`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn stage(&mut self, name: String, file: &File) -> RmResult<()> {
        let copy = crate::staging::copy(self.staging_dir, file).on("copying", &name)?;
        self.staged.push(Staged { name, copy, since: None });
        Ok(())
    }
}

/// What a SWITCH phase (also a local restore) works with: a clone that serves calls in its first slot and
/// has nothing yet but the control page.
pub struct SwitchCx<'a> {
    /// The clone; for kinds of the whole application the process that stands for it.
    pub remote: &'a Remote,
    /// Slots of its threads, as they are made: the first serves.
    pub slots: &'a mut Vec<usize>,
    /// Memory that the process has already; none: it is empty.
    pub laid: &'a mut Option<Laid>,
    /// Takes pages that may come while the clone runs already.
    pub late: Option<&'a mut Late>,
    /// All processes of the clone, in the order of the tree.
    pub tree: &'a [Remote],
    /// Which of them `remote` is.
    pub index: usize,
    /// The epoch.
    pub image: &'a EpochReader,
    /// Contents staged by kinds, by name.
    pub blobs: &'a BTreeMap<String, Blob>,
    /// Out: what could not be kept, for people.
    pub remarks: &'a mut Vec<String>,
    /// Our end of a socket to the clone, for passing descriptors; see [`crate::install`].
    pub channel: &'a UnixStream,
    /// The clone's end.
    pub channel_fd: i32,
    /// Pseudo-terminals of the clone.
    pub terminals: &'a Terminals,
    /// Descriptors to become the application's standard ones where they led outside; else files or
    /// `/dev/null` are used.
    pub stdio: &'a [std::os::fd::OwnedFd],
    /// Where the output of an application whose terminal or pipe is gone goes to.
    pub output: &'a Path,
    /// Nanoseconds to add to a monotonic time of the image to get the same instant on this node's clock;
    /// in the clone's own time namespace nothing changes.
    pub monotonic_offset_ns: i64,
}

impl SwitchCx<'_> {
    /// The way to the clone's processes.
    #[must_use]
    pub fn way(&self) -> Channel<'_> {
        Channel { ours: self.channel, theirs: self.channel_fd }
    }

    /// Decodes the state of a kind.
    ///
    /// # Errors
    /// Missing, of an unknown version, or malformed.
    pub fn section<T: DeserializeOwned>(&self, kind: &'static str, version: u16) -> RmResult<T> {
        section_of(self.image, kind, self.index, version)
    }

    /// Number of a space of pages that is this process's own, as [`DumpCx::space`].
    #[must_use]
    pub fn space(&self, local: u64) -> u64 {
        self.index as u64 * SPACES + local
    }

    /// The content staged under `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn blob(&self, kind: &'static str, name: &str) -> RmResult<&Blob> {
        self.blobs
            .get(name)
            .ok_or_else(|| RmError::BadSection { kind, what: format!("the image has no content `{name}`") })
    }
}

/// Decodes the state of a kind out of an image.
///
/// # Errors
/// Missing, of an unknown version, or malformed.
pub fn section<T: DeserializeOwned>(image: &EpochReader, kind: &'static str, version: u16) -> RmResult<T> {
    section_of(image, kind, 0, version)
}

/// Decodes the state of a kind for one process out of an image.
///
/// # Errors
/// Missing, of an unknown version, or malformed.
pub fn section_of<T: DeserializeOwned>(
    image: &EpochReader,
    kind: &'static str,
    process: usize,
    version: u16,
) -> RmResult<T> {
    let bad = |what: String| RmError::BadSection { kind, what };
    let name = section_name(kind, process);
    let (found, bytes) = image.section(&name).ok_or_else(|| bad(format!("`{name}` is missing")))?;
    if found != version {
        return Err(bad(format!("version {found}, but this holo knows {version}; update it")));
    }
    wire::decode(bytes, SECTION, SECTION_BYTES_MAX).map_err(|cause| bad(cause.to_string()))
}

/// Bytes of a section, without its name and version.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    wire::decode(bytes, SECTION, SECTION_BYTES_MAX).ok()
}

/// A kind of resource.
///
/// PRE and main phases run in registry order, POST and ABORT in reverse. ABORT reaches every manager whose
/// PRE was attempted; it cannot fail and may come twice.
pub trait ResourceManager: Send {
    /// Name of the kind, and of its section.
    fn name(&self) -> &'static str;

    /// Does the kind want to know what was changed since a moment at which nothing ran? Then [`Self::mark`] comes after
    /// [`Self::pre_dump`], which is done once more behind it.
    fn wants_mark(&self) -> bool {
        false
    }

    /// The application is parked, for no longer than this takes.
    ///
    /// # Errors
    /// The epoch is not taken.
    fn mark(&mut self, _: &mut DumpCx) -> RmResult<()> {
        Ok(())
    }

    /// The application runs: reserve, and refuse early what cannot be dumped.
    ///
    /// # Errors
    /// The epoch is not taken.
    fn pre_dump(&mut self, _: &mut DumpCx) -> RmResult<()> {
        Ok(())
    }

    /// The application runs, and will be parked: from now on is known what is changed of that which can be stored before. True: there is
    /// such, to be stored by [`Self::ahead`] when all threads have parked once and run on. Comes again after that.
    ///
    /// # Errors
    /// The epoch is not taken.
    fn watch(&mut self, _: &mut DumpCx) -> RmResult<bool> {
        Ok(false)
    }

    /// Stores that into [`DumpCx::writer`], where the epoch finds it.
    ///
    /// # Errors
    /// The epoch is not taken.
    fn ahead(&mut self, _: &mut DumpCx) -> RmResult<()> {
        Ok(())
    }

    /// What was stored so is not in the store.
    fn ahead_lost(&mut self) {}

    /// The application is parked: what [`Self::dump`] wants to know of the process by calls that change nothing, for kinds that
    /// are one for each process.
    fn ask(&mut self, _: &Remote, _: &mut Asking) {}

    /// The application is parked: what [`Self::dump`] wants to know of the kernel without asking a process, for kinds that are one
    /// for the application. Several kinds and processes are looked at at once; the process is the one that stands for it.
    fn look(&mut self, _: &Remote) {}

    /// The application is parked: read states without changing them. Kinds that are one for each process are asked for several
    /// processes at once, see [`crate::registry::Turn`] and [`crate::page::Page::hands`].
    ///
    /// # Errors
    /// The epoch is aborted.
    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()>;

    /// The application was let go this very moment, or stays parked: what cannot wait until [`Self::post_dump`].
    fn released(&mut self) {}

    /// The application runs again.
    ///
    /// # Errors
    /// The epoch is aborted.
    fn post_dump(&mut self, _: &mut DumpCx) -> RmResult<()> {
        Ok(())
    }

    /// What was staged is in the image, by name.
    fn stored(&mut self, _: &BTreeMap<String, Blob>) {}

    /// The epoch is sealed: what it has need not be dumped again.
    fn sealed(&mut self) {}

    /// How changes are found, for kinds that track them.
    fn engine(&self) -> Option<&'static str> {
        None
    }

    /// Parts of the time that `dump` took, by name, microseconds.
    fn parts_us(&self) -> &[(String, u64)] {
        &[]
    }

    /// Further figures of the last stop, by name, bytes.
    fn bytes(&self) -> &[(&'static str, u64)] {
        &[]
    }

    /// Put back everything.
    fn abort_dump(&mut self, _: &mut DumpCx) {}

    /// Check that all can be made on this node, before anything is made.
    ///
    /// # Errors
    /// The switch is not tried.
    fn pre_switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
        Ok(())
    }

    /// Make the objects.
    ///
    /// # Errors
    /// The clone is discarded.
    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()>;

    /// All kinds are made: what needs the others (a timer starts, a call list ends).
    ///
    /// # Errors
    /// The clone is discarded.
    fn post_switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
        Ok(())
    }

    /// Give back what is not the clone's own.
    fn abort_switch(&mut self, _: &mut SwitchCx) {}
}
