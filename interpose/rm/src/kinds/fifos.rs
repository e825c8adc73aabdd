//! FIFOs: pipes with a name.

use super::kernel::{self, Bytes, identity, reopen};
use super::open::{Dumping, Each, Making, Open, path_of};
use super::pipes::{PipeState, refill, resize};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// An end of a FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FifoState {
    path: Bytes,
    mode: u32,
    /// User and group.
    owner: (u32, u32),
    /// The name does not lead to it any more.
    gone: bool,
    key: (u64, u64),
    pipe: PipeState,
}

impl FifoState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let link = open.link.as_bytes();
        let gone = identity(Path::new(&open.link), true) != Some(open.key());
        let path = if gone { link.strip_suffix(b" (deleted)").unwrap_or(link) } else { link };
        let pipe = PipeState::describe(open, dumping)?;
        let (mode, owner) = (open.stat.st_mode & 0o7777, (open.stat.st_uid, open.stat.st_gid));
        Ok(Self { path: Bytes(path.to_vec()), mode, owner, gone, key: open.key(), pipe })
    }

    /// The FIFO, open both ways so that nobody waits.
    fn open(&self) -> io::Result<OwnedFd> {
        let path = path_of(&self.path.0);
        let both = |path: &Path| kernel::open(path, libc::O_RDWR | libc::O_NONBLOCK, 0);
        let make = |path: &Path| {
            let c_path = kernel::c_path(path)?;
            // SAFETY: a terminated path.
            kernel::checked(unsafe { libc::mkfifo(c_path.as_ptr(), self.mode) })?;
            // An ordinary user's may only become his again.
            let _ = std::os::unix::fs::chown(path, Some(self.owner.0), Some(self.owner.1));
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(self.mode))?;
            both(path)
        };
        if !self.gone {
            return match both(&path) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => make(&path),
                opened => opened,
            };
        }
        let place = if path.exists() || path.parent().is_none_or(|parent| !parent.is_dir()) {
            std::env::temp_dir().join(format!("holo-fifo-{}-{}", std::process::id(), self.key.1))
        } else {
            path
        };
        let opened = make(&place);
        std::fs::remove_file(&place)?;
        opened
    }
}

/// Makes all FIFOs again.
pub(crate) fn recreate(all: &Each<FifoState>, making: &mut Making) -> RmResult<()> {
    let mut fifos: BTreeMap<(u64, u64), Vec<(u32, &FifoState)>> = BTreeMap::new();
    for (index, state) in all {
        fifos.entry(state.key).or_default().push((*index, state));
    }
    for ends in fifos.values() {
        let Some((first, state)) = ends.first() else { continue };
        let path = path_of(&state.path.0);
        let both = state.open().on("opening FIFO", path.display())?;
        // Where others kept the FIFO open, its content is still there.
        let empty = kernel::readable_bytes(&both).on("reading", path.display())? == 0;
        resize(&both, state.pipe.capacity, *first, making)?;
        for (_, state) in ends.iter().filter(|_| empty) {
            refill(&both, &state.pipe.queued).on("refilling FIFO", path.display())?;
        }
        for (index, _) in ends {
            let flags = making.flags(*index);
            let fd = reopen(&both, flags & !libc::O_DIRECT | libc::O_NONBLOCK);
            making.put(*index, fd.on("opening FIFO", path.display())?)?;
        }
    }
    Ok(())
}
