//! What descriptor kinds work with: a description of the parked process at the cut, and the set of
//! descriptions in the making at the restore.

use super::fdinfo::FdInfo;
use super::kernel;
use super::known_options::KnownOptions;
use super::ptys::Terminals;
use super::shared::{Contents, SharedObjects};
use super::sockdiag::SockDiag;
use super::watched::Names;
use crate::install::Channel;
use crate::manager::{Context, DumpCx, RmError, RmResult};
use crate::remote::Remote;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// An open file description of the parked process.
pub(crate) struct Open {
    /// The process that has it, by its place in the tree.
    pub(crate) process: usize,
    /// Its lowest number.
    pub(crate) number: i32,
    /// A duplicate in the agent. Whatever is done with it is seen by the application.
    pub(crate) fd: OwnedFd,
    /// Where `/proc/<pid>/fd/<number>` points.
    pub(crate) link: OsString,
    /// `fdinfo` of its lowest number.
    pub(crate) info: FdInfo,
    /// `fstat`.
    pub(crate) stat: libc::stat,
    /// Of a socket: family, type, protocol. They never change.
    pub(crate) socket: OnceLock<[i32; 3]>,
}

impl AsRawFd for Open {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Open {
    /// For people: number and object.
    pub(crate) fn named(&self) -> String {
        format!("{} ({})", self.number, self.link.to_string_lossy())
    }

    /// This cannot be replicated.
    pub(crate) fn unsupported(&self, why: impl std::fmt::Display) -> RmError {
        RmError::Unsupported(format!("descriptor {}: {why}", self.named()))
    }

    /// `fdinfo` of this moment.
    pub(crate) fn info_now(&self, remote: &Remote) -> RmResult<FdInfo> {
        match self.number {
            super::passed::NOWHERE => super::passed::own_info(self),
            number => FdInfo::read(remote, number),
        }
    }

    /// Identity of the object.
    pub(crate) fn key(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// `S_IFMT` part of the mode.
    pub(crate) fn file_type(&self) -> u32 {
        self.stat.st_mode & libc::S_IFMT
    }

    /// Status flags.
    pub(crate) fn flags(&self) -> i32 {
        self.info.flags & !libc::O_CLOEXEC
    }

    /// Whether it was opened for reading.
    pub(crate) fn reads(&self) -> bool {
        reads(self.info.flags)
    }

    /// The link starts so.
    pub(crate) fn link_starts(&self, prefix: &str) -> bool {
        self.link.as_bytes().starts_with(prefix.as_bytes())
    }
}

/// Whether flags allow reading.
pub(crate) fn reads(flags: i32) -> bool {
    flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR)
}

/// Whether flags allow writing.
pub(crate) fn writes(flags: i32) -> bool {
    flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
}

/// A capture in progress.
pub(crate) struct Dumping<'a, 'b> {
    /// The phase.
    pub(crate) cx: &'a mut DumpCx<'b>,
    /// Objects shared with memory.
    pub(crate) shared: &'a SharedObjects,
    /// Objects of which the content was recorded with another description.
    pub(crate) recorded: BTreeSet<(u64, u64)>,
    /// Names of watched files that are known.
    pub(crate) watched: &'a Names,
    /// Options of sockets.
    pub(crate) options: &'a mut KnownOptions,
    /// The kernel's tables of sockets.
    pub(crate) diag: SockDiag,
    /// Descriptions in queues.
    pub(crate) passed: super::passed::Passed,
    /// Multicast groups of this host, once somebody has asked for them.
    pub(crate) groups: Option<Vec<super::multicast::Group>>,
    /// Of clocks of processes.
    pub(crate) offsets: super::clock::Offsets,
}

/// What all kinds have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Common {
    /// Status flags.
    pub(crate) flags: i32,
    /// First process that has it, by its place in the tree.
    pub(crate) process: u32,
    /// Lowest number there, also for messages.
    pub(crate) number: i32,
    /// Who gets `SIGIO`.
    pub(crate) owner: Option<super::owner::Owner>,
}

/// A process, by its place in the tree, and a number there.
pub(crate) type Place = (u32, i32);

/// A state of a kind, with the index of its description.
pub(crate) type Each<S> = Vec<(u32, S)>;

/// A restore in progress.
pub(crate) struct Making<'a> {
    /// What each description has in common.
    pub(crate) common: &'a [Common],
    /// Descriptions by index.
    pub(crate) made: BTreeMap<u32, OwnedFd>,
    /// Numbers that get something else than their description: standard ones that led outside.
    pub(crate) replaced: BTreeMap<Place, OwnedFd>,
    /// Ways to bound unix sockets of which the names are gone, or relative to a directory, by the inodes that they had.
    pub(crate) reach: BTreeMap<u64, OwnedFd>,
    /// Numbers of each description.
    pub(crate) numbers: &'a BTreeMap<u32, Vec<Place>>,
    /// Contents of the image.
    pub(crate) contents: &'a dyn Contents,
    /// Objects shared with memory.
    pub(crate) shared: &'a SharedObjects,
    /// Pseudo-terminals.
    pub(crate) terminals: &'a Terminals,
    /// Standard descriptors to attach to.
    pub(crate) stdio: &'a [OwnedFd],
    /// Where output without a reader goes.
    pub(crate) output: &'a Path,
    /// For people.
    pub(crate) remarks: &'a mut Vec<String>,
    /// The clone, where objects remember who made them; none in tests.
    pub(crate) clone: Option<&'a Remote>,
    /// The way to it.
    pub(crate) way: Option<Channel<'a>>,
    /// All its processes.
    pub(crate) tree: &'a [Remote],
    /// Pids of the processes at the cut and of their clones, as the agent sees them.
    pub(crate) pids: &'a [(i32, i32)],
}

impl<'a> Making<'a> {
    /// What a description has in common with all.
    pub(crate) fn common(&self, index: u32) -> &Common {
        &self.common[index as usize]
    }

    /// A path as the clone has it, for files and directories. It has mounts of its own: what is opened by ours is of another mount, and
    /// nothing can be moved or linked between that and what the application opens itself.
    pub(crate) fn in_clone(&self, path: &Path) -> PathBuf {
        let is_others = ["/proc", "/dev", "/sys"].iter().any(|top| path.starts_with(top));
        match (self.clone, path.strip_prefix("/")) {
            (Some(clone), Ok(below)) if !is_others => clone.proc("root").join(below),
            _ => path.to_owned(),
        }
    }

    /// Status flags of a description.
    pub(crate) fn flags(&self, index: u32) -> i32 {
        self.common(index).flags
    }

    /// A description is made; its status flags become those of the cut.
    pub(crate) fn put(&mut self, index: u32, fd: OwnedFd) -> RmResult<()> {
        const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;
        let (wanted, number) = (self.common(index).flags, self.common(index).number);
        if wanted & libc::O_PATH == 0 {
            let now = kernel::fcntl(&fd, libc::F_GETFL, 0).on("reading flags of", number)?;
            if (now ^ wanted) & SETTABLE != 0 {
                let flags = now & !SETTABLE | wanted & SETTABLE;
                // O_NOATIME needs ownership of the file, which may have changed hands.
                kernel::fcntl(&fd, libc::F_SETFL, i64::from(flags))
                    .or_else(|_| kernel::fcntl(&fd, libc::F_SETFL, i64::from(flags & !libc::O_NOATIME)))
                    .on("setting flags of", number)?;
            }
        }
        self.made.insert(index, fd);
        Ok(())
    }

    /// Something for people.
    pub(crate) fn remark(&mut self, index: u32, what: impl std::fmt::Display) {
        let number = self.common(index).number;
        self.remarks.push(format!("descriptor {number}: {what}"));
    }

    /// Numbers of a description.
    pub(crate) fn numbers(&self, index: u32) -> &[Place] {
        self.numbers.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Whether a description is one of the standard ones.
    pub(crate) fn is_stdio(&self, index: u32) -> bool {
        self.numbers(index).iter().any(|(_, number)| (0..=2).contains(number))
    }
}

/// Bytes of the image as a path.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}
