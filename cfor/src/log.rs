//! The log of file changes: actions come in, what they amount to comes out.
//!
//! An action has ranges and no data; data are read from the files when the log has been cut. Files are known by
//! [`FileId`], never by path, so that renames, links and open descriptors need no care. What cancels itself
//! leaves nothing: ranges merge, truncation cuts them, a chain of renames is the name before and the name
//! after, a file that was made and removed was never there.

mod ranges;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use ranges::Ranges;

/// A file for as long as it exists: inode numbers are used again, with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// File system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Tells files apart that had the number one after the other (`FS_IOC_GETVERSION`).
    pub generation: u64,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The directory.
    pub dir: FileId,
    /// One name, without a slash.
    pub name: Vec<u8>,
}

/// One change, as its system call did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A file, directory, link or node was made; its name is a [`Action::Link`] that follows (none for
    /// `O_TMPFILE`).
    Make(FileId),
    /// Bytes changed: `write`, `fallocate`, a punched hole, a copied or cloned range, a dirty mapped page. For
    /// calls that move what follows (`FALLOC_FL_COLLAPSE_RANGE`), to the end of all offsets.
    Write {
        /// Whose.
        file: FileId,
        /// First byte.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// The size was set.
    Truncate {
        /// Whose.
        file: FileId,
        /// To this.
        size: u64,
    },
    /// Mode, owner, times or extended attributes changed.
    Attributes(FileId),
    /// A free name was given to a file: `open`, `mkdir`, `mknod`, `symlink`, `link`.
    Link {
        /// The name.
        name: Name,
        /// What it names now.
        file: FileId,
    },
    /// A name was taken away: `unlink`, `rmdir`.
    Unlink {
        /// The name.
        name: Name,
        /// What it named.
        file: FileId,
        /// Whether that was the file's last name.
        is_last: bool,
    },
    /// A file's name was changed.
    Rename {
        /// The old name.
        from: Name,
        /// The new one.
        to: Name,
        /// The file.
        file: FileId,
        /// What had the new name, and whether that was its last.
        replaced: Option<(FileId, bool)>,
    },
    /// Two names were exchanged: the file of each, before.
    Exchange {
        /// One name.
        a: Name,
        /// What it named.
        a_file: FileId,
        /// The other name.
        b: Name,
        /// What that named.
        b_file: FileId,
    },
}

/// What happened to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileChange {
    /// It is new: none of it is known to the other side.
    pub is_new: bool,
    /// Of what was there before, bytes from here on are gone: zeros if the file is longer now.
    pub cut_to: Option<u64>,
    /// Bytes and holes that must be read again. May go past the end of the file.
    pub touched: Ranges,
    /// Whether attributes changed. Times always may have when content did.
    pub attributes: bool,
}

/// What a name was and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameChange {
    /// What it named at the cut before.
    pub before: Option<FileId>,
    /// What it names now.
    pub after: Option<FileId>,
}

/// All that the actions between two cuts amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that exist at the cut under some name. Those without names left are not here.
    pub files: BTreeMap<FileId, FileChange>,
    /// Names that are not what they were.
    pub names: BTreeMap<Name, NameChange>,
    /// Bytes in `files` that did not change and are there because of the bound on ranges.
    pub coarsened_bytes: u64,
}

/// What a cut gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// These are all changes.
    Changes(Changes),
    /// More files or names changed than the log may hold: trees must be scanned.
    Overflow,
}

/// Bounds of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Files, and names, each. Past it the log overflows.
    pub entries_max: usize,
    /// Ranges of all files, raised to twice `entries_max` if less. Past it ranges coarsen.
    pub ranges_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries_max: 1 << 19, ranges_max: 1 << 20 }
    }
}

/// A file in the log.
#[derive(Clone, Debug, Default)]
struct State {
    change: FileChange,
    /// Names that were given, less those taken away.
    names: i64,
    /// The last name is gone. Kept, because descriptors may still write.
    is_gone: bool,
}

/// Takes actions in the order in which they happened.
#[derive(Clone, Debug)]
pub struct Log {
    bounds: Bounds,
    files: BTreeMap<FileId, State>,
    names: BTreeMap<Name, NameChange>,
    ranges: usize,
    coarsened_bytes: u64,
    is_full: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Log {
    /// An empty log.
    #[must_use]
    pub fn new(mut bounds: Bounds) -> Self {
        bounds.ranges_max = bounds.ranges_max.max(bounds.entries_max.saturating_mul(2));
        let (files, names) = (BTreeMap::new(), BTreeMap::new());
        Self { bounds, files, names, ranges: 0, coarsened_bytes: 0, is_full: false }
    }

    /// Records what has happened.
    pub fn record(&mut self, action: Action) {
        if self.is_full {
            return;
        }
        match action {
            Action::Make(file) => {
                self.ranges(file, |change| change.touched = Ranges::default());
                *self.state(file) = State {
                    change: FileChange { is_new: true, ..FileChange::default() },
                    ..State::default()
                };
            }
            Action::Write { file, at, len } => self.ranges(file, |change| change.touched.insert(at, len)),
            Action::Truncate { file, size } => self.ranges(file, |change| {
                change.touched.truncate(size);
                change.cut_to = Some(change.cut_to.map_or(size, |old| old.min(size)));
            }),
            Action::Attributes(file) => self.state(file).change.attributes = true,
            Action::Link { name, file } => self.bind(name, None, Some(file)),
            Action::Unlink { name, file, is_last } => {
                self.bind(name, Some(file), None);
                self.lost(file, is_last);
            }
            // Two names of one file: the call does nothing then.
            Action::Rename { file, replaced: Some((old, _)), .. } if old == file => (),
            Action::Rename { from, to, file, replaced } => {
                self.bind(from, Some(file), None);
                self.bind(to, replaced.map(|(old, _)| old), Some(file));
                if let Some((old, is_last)) = replaced {
                    self.lost(old, is_last);
                }
            }
            Action::Exchange { a, a_file, b, b_file } => {
                self.bind(a, Some(a_file), Some(b_file));
                self.bind(b, Some(b_file), Some(a_file));
            }
        }
        if self.files.len() > self.bounds.entries_max || self.names.len() > self.bounds.entries_max {
            *self = Self { is_full: true, ..Self::new(self.bounds) };
        } else if self.ranges > self.bounds.ranges_max {
            self.coarsen();
        }
    }

    /// Takes what was recorded, in constant time: the log is empty then, with the same bounds.
    #[must_use]
    pub fn cut(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.bounds))
    }

    /// What the actions amount to; files that are gone are not in it. Meant for what [`Self::cut`] took.
    #[must_use]
    pub fn into_changes(self) -> Cut {
        if self.is_full {
            return Cut::Overflow;
        }
        let is_there = |state: &State| !state.is_gone && (!state.change.is_new || state.names > 0);
        let files = self.files.into_iter().filter(|(_, state)| is_there(state));
        let files = files.map(|(file, state)| (file, state.change)).collect();
        Cut::Changes(Changes { files, names: self.names, coarsened_bytes: self.coarsened_bytes })
    }

    /// Ranges that are held.
    #[must_use]
    pub fn ranges_held(&self) -> usize {
        self.ranges
    }

    fn state(&mut self, file: FileId) -> &mut State {
        self.files.entry(file).or_default()
    }

    fn ranges(&mut self, file: FileId, change: impl FnOnce(&mut FileChange)) {
        let state = self.state(file);
        if state.is_gone {
            return;
        }
        let before = state.change.touched.len();
        change(&mut state.change);
        let after = state.change.touched.len();
        self.ranges = self.ranges - before + after;
    }

    fn bind(&mut self, name: Name, before: Option<FileId>, after: Option<FileId>) {
        for (file, by) in [(before, -1), (after, 1)] {
            if let Some(file) = file {
                // The time of last change of the file itself, and its number of links.
                let state = self.state(file);
                state.change.attributes = true;
                state.names += by;
            }
        }
        let change = self.names.entry(name.clone()).or_insert(NameChange { before, after });
        change.after = after;
        if change.before == change.after {
            self.names.remove(&name);
        }
        // Its times.
        self.state(name.dir).change.attributes = true;
    }

    fn lost(&mut self, file: FileId, is_last: bool) {
        if is_last {
            self.ranges(file, |change| change.touched = Ranges::default());
            self.state(file).is_gone = true;
        }
    }

    /// Makes room, a quarter at least, from the files with the most ranges.
    fn coarsen(&mut self) {
        let mut keep = self.files.values().map(|state| state.change.touched.len()).max().unwrap_or(0);
        while keep > 1 && self.ranges > self.bounds.ranges_max / 4 * 3 {
            keep /= 2;
            for state in self.files.values_mut().filter(|state| state.change.touched.len() > keep) {
                let before = state.change.touched.len();
                self.coarsened_bytes += state.change.touched.coarsen(keep);
                self.ranges -= before - state.change.touched.len();
            }
        }
    }
}
