//! Content that is read when the application runs again: somebody keeps it as it was at the cut.
//!
//! In the stop each such file gets a descriptor, so that it may be renamed and removed afterwards, and its keeper promises that nobody
//! changes what is to be read. Then files are read one after the other, large ones in pieces, and first those that somebody
//! waits for. What was read is given back before it is stored, or written to the staging directory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::sys::stat::fstat;

use crate::access::{number, open_referred, times};
use crate::capture::{Piece, Staged};
use crate::copy::{self, RangeReader};
use crate::error::Error;
use crate::flags;
use crate::hold::{Held, Holder};
use crate::tree::{Extent, Inode, Kind, Time};
use crate::watch::Number;

/// Larger pieces are copied without being held in memory.
const PIECE_BYTES_MAX: u64 = 8 << 20;

/// Keeps files as they are while the application runs, until they were read.
pub trait Keeper {
    /// Nobody changes these bytes of the file from now on until it was read. None: that cannot be promised, it is read at once.
    fn keep(&mut self, inode: &Inode, data: &[Extent]) -> Option<Kept>;
}

/// A file that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What [`Waiting`] knows it by.
    pub ticket: usize,
    /// It is given back in pieces of so many bytes, as a power of two.
    pub piece_shift: Option<u32>,
}

/// Those who wait until files were read.
pub trait Waiting {
    /// A file that somebody waits for, and which piece of it.
    fn wanted(&mut self) -> Option<(usize, u64)>;

    /// A piece was read.
    fn took_piece(&mut self, ticket: usize, piece: u64);

    /// All of a file was read, and it is closed. `is_same`: neither its size nor the time of its last change is another than at
    /// the cut.
    fn took(&mut self, ticket: usize, is_same: bool);

    /// Something was done. False: what is left need not be read, since the epoch is void.
    fn goes_on(&mut self) -> bool;
}

/// A file that is to be read.
pub(crate) struct Rest {
    /// Inode in the tree.
    at: u32,
    kept: Kept,
    /// Device and inode number.
    number: Number,
    file: File,
    data: Vec<Extent>,
    size: u64,
    mtime: Time,
    /// Who changes them waits until the file was read.
    flags: u32,
    begun: Option<Begun>,
}

/// What was read of a file that has pieces.
struct Begun {
    copy: File,
    path: PathBuf,
    /// Pieces that were not read yet.
    left: BTreeMap<u64, Vec<Extent>>,
}

impl Rest {
    /// Has a file kept that is as it was scanned. `fresh`: what is to be read, not all.
    pub(crate) fn keep(
        at: u32,
        file: File,
        inode: &Inode,
        fresh: Option<&[Extent]>,
        keeper: &mut dyn Keeper,
    ) -> Option<Self> {
        let data = fresh.unwrap_or_else(|| inode.data());
        let Kind::File { size, .. } = inode.kind else { return None };
        // Who may not read it finds out when it is copied.
        if data.is_empty() || !is_readable(inode) {
            return None;
        }
        let kept = keeper.keep(inode, data)?;
        let (data, mtime) = (data.to_vec(), inode.mtime);
        let number = (inode.identity.dev, inode.identity.ino);
        Some(Self { at, kept, number, file, data, size, mtime, flags: 0, begun: None })
    }

    fn is_same(&self) -> bool {
        let same = |stat: nix::sys::stat::FileStat| {
            u64::try_from(stat.st_size) == Ok(self.size) && times(&stat).1 == self.mtime
        };
        fstat(&self.file).is_ok_and(same)
    }

    /// The pieces that have any of its data.
    fn pieces(&self, shift: u32) -> BTreeMap<u64, Vec<Extent>> {
        let mut pieces: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
        for extent in &self.data {
            let (mut at, end) = (extent.at, extent.at + extent.len);
            while at < end {
                let next = ((at >> shift) + 1).checked_shl(shift).unwrap_or(end).min(end);
                pieces.entry(at >> shift).or_default().push(Extent { at, len: next - at });
                at = next;
            }
        }
        pieces
    }
}

/// May we certainly read it?
fn is_readable(inode: &Inode) -> bool {
    static ME: OnceLock<nix::unistd::Uid> = OnceLock::new();
    let me = ME.get_or_init(nix::unistd::geteuid);
    me.is_root() || me.as_raw() == inode.uid && inode.mode & 0o400 != 0
}

/// What was read of a file.
enum Taken {
    /// A piece of it.
    Part,
    /// These bytes, all that are wanted.
    Bytes(Vec<u8>),
    /// The last piece.
    All(Held),
}

impl Rest {
    /// Reads all of it, or a piece.
    fn read(
        &mut self,
        piece: Option<u64>,
        holder: &mut Holder,
        waiting: &mut dyn Waiting,
    ) -> io::Result<Taken> {
        if self.begun.is_none() {
            self.file = open_referred(&self.file)?;
            if fstat(&self.file).map(|stat| number(&stat)) != Ok(self.number) {
                // By somebody else, between two looks at its name in the stop.
                return Err(io::Error::other("was replaced meanwhile"));
            }
            self.flags = flags::of_file(&self.file);
        }
        let Some(shift) = self.kept.piece_shift else {
            let len: u64 = self.data.iter().map(|extent| extent.len).sum();
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            RangeReader::new(&self.file, &self.data).read_exact(&mut bytes)?;
            return Ok(Taken::Bytes(bytes));
        };
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => {
                let (copy, path) = holder.file()?;
                holder.bytes += self.data.iter().map(|extent| extent.len).sum::<u64>();
                let is_cloned = copy::clone_file(&self.file, &copy).is_ok();
                let left = if is_cloned { BTreeMap::new() } else { self.pieces(shift) };
                Begun { copy, path, left }
            }
        };
        let next = begun.left.keys().next().copied();
        let which = piece.or(next).unwrap_or_default();
        match begun.left.remove(&which) {
            Some(extents) => self.read_piece(&begun.copy, which, &extents, waiting)?,
            // It was read before.
            None => waiting.took_piece(self.kept.ticket, which),
        }
        if begun.left.is_empty() {
            return Ok(Taken::All(Held::File(begun.path)));
        }
        self.begun = Some(begun);
        Ok(Taken::Part)
    }

    /// Reads a piece, and gives it back before it is written.
    fn read_piece(
        &self,
        copy: &File,
        piece: u64,
        extents: &[Extent],
        waiting: &mut dyn Waiting,
    ) -> io::Result<()> {
        let len: u64 = extents.iter().map(|extent| extent.len).sum();
        let mut reader = RangeReader::new(&self.file, extents);
        if len <= PIECE_BYTES_MAX {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            reader.read_exact(&mut bytes)?;
            waiting.took_piece(self.kept.ticket, piece);
            return copy::write_ranges(copy, extents, &bytes);
        }
        // Of a file of many GiB.
        copy::copy_ranges(&self.file, copy, extents)?;
        waiting.took_piece(self.kept.ticket, piece);
        Ok(())
    }
}

impl<C> Staged<C> {
    /// Files whose content is yet to be read.
    #[must_use]
    pub fn rest(&self) -> usize {
        self.rest.len()
    }

    /// Reads what is left, in the order in which it is waited for.
    ///
    /// # Errors
    /// [`Error::Io`] with the file that could not be read or held; [`io::ErrorKind::Interrupted`] if `waiting` said so.
    pub fn read_rest(&mut self, waiting: &mut dyn Waiting) -> Result<(), Error> {
        // Small ones first: they are done soonest.
        let mut rest = std::mem::take(&mut self.rest);
        rest.sort_by_key(|one| one.kept.piece_shift.is_some());
        let tickets = rest.iter().map(|one| one.kept.ticket).zip(0..);
        let tickets: HashMap<usize, usize> = tickets.collect();
        let mut rest: Vec<Option<Rest>> = rest.into_iter().map(Some).collect();
        let mut next = 0;
        while next < rest.len() {
            let (at, piece) = match waiting.wanted() {
                Some((ticket, piece)) => match tickets.get(&ticket).filter(|at| rest[**at].is_some()) {
                    Some(at) => (*at, Some(piece)),
                    // It was read meanwhile, or nobody knows it.
                    None => {
                        waiting.took_piece(ticket, piece);
                        continue;
                    }
                },
                None => (next, None),
            };
            let Some(mut one) = rest[at].take() else {
                next += 1;
                continue;
            };
            let taken = if waiting.goes_on() {
                one.read(piece, &mut self.holder, waiting)
            } else {
                Err(io::ErrorKind::Interrupted.into())
            };
            match taken {
                Ok(Taken::Part) => rest[at] = Some(one),
                Ok(Taken::All(held)) => self.give_back(one, waiting, |_, _| Ok(held))?,
                Ok(Taken::Bytes(bytes)) => {
                    self.give_back(one, waiting, |holder, data| holder.put(bytes, data))?;
                }
                Err(cause) => return Err(Error::io("read after the cut", &self.path(one.at))(cause)),
            }
        }
        Ok(())
    }

    /// A file was read: whoever waits may go on, and then it is held.
    fn give_back(
        &mut self,
        one: Rest,
        waiting: &mut dyn Waiting,
        hold: impl FnOnce(&mut Holder, &[Extent]) -> io::Result<Held>,
    ) -> Result<(), Error> {
        let is_same = one.is_same();
        let Rest { at, kept, file, data, flags, .. } = one;
        drop(file);
        self.tree.inodes[at as usize].flags = flags;
        waiting.took(kept.ticket, is_same);
        let held = hold(&mut self.holder, &data);
        let held = held.map_err(|cause| Error::io("stage", &self.path(at))(cause))?;
        match self.pieces.get_mut(&at) {
            Some(Piece::Whole(place, _) | Piece::Patch { held: place, .. }) => *place = held,
            Some(Piece::Kept(_)) | None => {}
        }
        Ok(())
    }

    /// A path of an inode.
    fn path(&self, at: u32) -> Vec<u8> {
        let name = self.tree.entries().find(|(_, entry)| entry.inode == at);
        name.map(|(root, entry)| entry.path.under(&root.path)).unwrap_or_default()
    }
}
