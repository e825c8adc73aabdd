//! What an application recorded of names since the last cut (`holo_abi::names`), and what became of them since.

use holo_abi::changes::Changes;
use holo_abi::names::{HEAD_WORDS, NAME_BYTES_MAX, entry_words, kind, moves};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// Names that are moved, one by one, in one epoch.
const FOLLOWED_MAX: usize = 1 << 16;
/// Places that one name may have led to.
const PLACES_MAX: usize = 8;

/// Something that was recorded, in the order of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    /// A file, or whatever has no name of its own otherwise, is opened for writing or made.
    Name(PathBuf),
    /// A directory is made.
    Made(PathBuf),
    /// Something gets this name.
    Put(PathBuf),
    /// A directory becomes another one.
    Moved(PathBuf, PathBuf, Move),
    /// Two names are exchanged.
    Exchanged(PathBuf, PathBuf, Move),
}

/// Is it known that a move was made? Whoever was about to may be waiting for the cut's end, or was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Made,
    Perhaps,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sign {
    /// Before the last cut.
    pub(super) is_known: bool,
    /// What had another name got it.
    pub(super) is_put: bool,
}

/// What was recorded since the last cut.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    events: Vec<Event>,
    /// Not all is in it.
    pub(super) is_lost: bool,
}

impl Heard {
    /// Takes what is in a table, while nobody records; the table is empty then.
    pub(crate) fn take(table: &Changes) -> Self {
        let names = &table.names;
        if names.used.load(Acquire) == 0 && names.lost.load(Relaxed) == 0 {
            return Self::default();
        }
        let heard = Self::read(table);
        names.slots.iter().for_each(|slot| slot.store(0, Relaxed));
        names.used.store(0, Relaxed);
        names.lost.store(0, Relaxed);
        names.moves.store(0, Relaxed);
        heard
    }

    fn read(table: &Changes) -> Self {
        let heard = &table.names;
        let mut entries = Vec::new();
        let mut directories: HashMap<u64, PathBuf> = HashMap::new();
        let mut places: Vec<u64> =
            heard.slots.iter().map(|slot| slot.load(Acquire)).filter(|at| *at != 0).collect();
        places.sort_unstable();
        for at in places {
            // The application may have written anything there.
            let Some(entry) = heard.words.get(at as usize - 1..) else { continue };
            let word = |at: usize| entry.get(at).map_or(0, |word| word.load(Relaxed));
            let (sort, len) = ((word(1) >> 32) as u32, word(1) as u32 as usize);
            if len > NAME_BYTES_MAX || entry.len() < entry_words(len) {
                continue;
            }
            let words = entry[HEAD_WORDS..].iter().flat_map(|word| word.load(Relaxed).to_le_bytes());
            let bytes: Vec<u8> = words.take(len).collect();
            if sort == kind::DIRECTORY {
                directories.insert(word(0), PathBuf::from(OsString::from_vec(bytes)));
            } else {
                entries.push((word(0), sort, word(2), bytes));
            }
        }
        let (mut paths, mut events): (HashMap<u64, PathBuf>, _) = (HashMap::new(), Vec::new());
        let mut places = Places::default();
        for (hash, sort, directory, bytes) in entries {
            if matches!(sort, kind::MOVED | kind::EXCHANGED) {
                let made = match directory {
                    moves::MADE => Move::Made,
                    moves::FAILED => continue,
                    _ => Move::Perhaps,
                };
                let hashes = bytes.chunks_exact(8).map(|hash| hash.try_into().map_or(0, u64::from_le_bytes));
                let mut both = hashes.filter_map(|hash| paths.get(&hash).cloned());
                if let (Some(from), Some(to)) = (both.next(), both.next()) {
                    let is_exchange = sort == kind::EXCHANGED;
                    events.push(if is_exchange {
                        Event::Exchanged(from, to, made)
                    } else {
                        Event::Moved(from, to, made)
                    });
                }
                continue;
            }
            let name = Path::new(OsStr::from_bytes(&bytes));
            let home = if name.is_absolute() {
                Some(Path::new("/"))
            } else {
                // A directory that is gone shows a path that is none.
                directories.get(&directory).map(PathBuf::as_path).filter(|path| path.is_absolute())
            };
            let (Some(home), Some(_)) = (home, name.file_name()) else { continue };
            let places = places.of(home, name);
            // Of a move it is the name alone, in the directory as it was.
            paths.extend(places.first().map(|path| (hash, path.clone())));
            events.extend(places.into_iter().map(|path| match sort {
                kind::MADE => Event::Made(path),
                kind::PUT => Event::Put(path),
                _ => Event::Name(path),
            }));
        }
        Self { events, is_lost: heard.lost.load(Relaxed) != 0 }
    }

    /// Adds what was recorded later.
    pub(super) fn add(&mut self, later: Self) {
        self.events.extend(later.events);
        self.is_lost |= later.is_lost;
    }

    /// What names have become: those that were `known` before, and those that were recorded. Also as they were: a call may have failed.
    pub(super) fn follow(&self, known: BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Sign> {
        const KNOWN: Sign = Sign { is_known: true, is_put: false };
        let mut now: BTreeMap<PathBuf, Sign> = known.iter().cloned().map(|path| (path, KNOWN)).collect();
        let mut left = FOLLOWED_MAX;
        for event in &self.events {
            let (moves, made) = match event {
                Event::Name(path) | Event::Made(path) => {
                    now.entry(path.clone()).or_default();
                    continue;
                }
                Event::Put(path) => {
                    now.entry(path.clone()).or_default().is_put = true;
                    continue;
                }
                Event::Moved(from, to, made) => (vec![(from, to)], *made),
                Event::Exchanged(one, other, made) => (vec![(one, other), (other, one)], *made),
            };
            let mut moved = Vec::new();
            for (from, to) in moves {
                let below = now.range(from.clone()..).take_while(|(path, _)| path.starts_with(from));
                let names: Vec<PathBuf> = below.take(left).map(|(path, _)| path.clone()).collect();
                left -= names.len();
                for name in names {
                    let sign = match made {
                        Move::Made => now.remove(&name),
                        Move::Perhaps => now.get(&name).copied(),
                    };
                    let sign = sign.unwrap_or_default();
                    let rest = name.strip_prefix(from).unwrap_or(Path::new(""));
                    let is_itself = rest.as_os_str().is_empty();
                    moved.push((if is_itself { to.clone() } else { to.join(rest) }, sign));
                }
            }
            for (path, sign) in moved {
                let there = now.entry(path).or_default();
                there.is_known |= sign.is_known;
                there.is_put |= sign.is_put;
            }
        }
        for event in &self.events {
            if let Event::Name(path) | Event::Made(path) | Event::Put(path) = event {
                now.entry(path.clone()).or_default().is_put |= matches!(event, Event::Put(_));
            }
        }
        for path in known {
            now.entry(path).or_default().is_known = true;
        }
        now
    }
}

/// Where names lead to: directories, and names in them, that were asked for.
#[derive(Default)]
struct Places(HashMap<PathBuf, Vec<PathBuf>>);

impl Places {
    /// All that a name may have led to when it was recorded, relative to a directory as it was: what is a link on the way there now may
    /// have been a directory then. What is not there any more may have been moved.
    fn of(&mut self, home: &Path, name: &Path) -> Vec<PathBuf> {
        let (Some(parent), Some(own)) = (name.parent(), name.file_name()) else { return Vec::new() };
        let dirs = self.dirs(home, parent);
        dirs.iter().map(|dir| dir.join(own)).collect()
    }

    fn dirs(&mut self, home: &Path, name: &Path) -> Vec<PathBuf> {
        let Some(above) = name.parent() else { return vec![home.to_owned()] };
        let key = home.join(name);
        if let Some(known) = self.0.get(&key) {
            return known.clone();
        }
        let mut found = Vec::new();
        for dir in self.dirs(home, above) {
            let dir = match name.components().next_back() {
                Some(Component::Normal(own)) => dir.join(own),
                Some(Component::ParentDir) => dir.parent().unwrap_or(&dir).to_owned(),
                _ => dir,
            };
            let is_link = dir.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            let target = if is_link { dir.canonicalize().ok() } else { None };
            found.extend([Some(dir), target].into_iter().flatten());
        }
        found.truncate(PLACES_MAX);
        self.0.insert(key, found.clone());
        found
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::changes::Table;
    use holo_abi::changes::CHANGES_BYTES;
    use holo_abi::names::{HASH_START, NAMES_MAX, directory, mix};
    use holo_track::names::{Place, place, settle};
    use proptest::prelude::*;

    fn table() -> (tempfile::TempDir, Table) {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::create(&dir.path().join("t"), &[]).unwrap();
        (dir, table)
    }

    fn record(table: &Table, (hash, sort, dir): (u64, u32, u64), bytes: &[u8]) -> bool {
        match place(&table.table().names, hash, bytes.len()) {
            Place::Known => true,
            Place::Room(room) => {
                // SAFETY: room for as many bytes.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), room.bytes(), bytes.len()) };
                room.enter(sort, bytes.len(), dir);
                true
            }
            Place::Lost => false,
        }
    }

    fn name(number: u64) -> String {
        format!("{number}{}", "n".repeat(number as usize % 9))
    }

    // Goal: names that several threads record at once are all found once, absolute and relative ones, and moves of them; after that the
    // table is empty. Method: each in turns by three threads.
    #[test]
    fn what_is_recorded_is_found() {
        let (dir, table) = table();
        let top = dir.path().canonicalize().unwrap();
        let number = directory(1, 2, 0);
        let hash = |number: u64| mix(HASH_START, number);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    assert!(record(&table, (number, kind::DIRECTORY, 0), top.as_os_str().as_bytes()));
                    for at in 0..500 {
                        assert!(record(&table, (hash(at), kind::NAME, number), name(at).as_bytes()));
                        let path = top.join(format!("./made{at}"));
                        let made = (hash(1000 + at), kind::MADE, 0);
                        assert!(record(&table, made, path.as_os_str().as_bytes()));
                    }
                    let both = [hash(1).to_le_bytes(), hash(2).to_le_bytes()].concat();
                    assert!(record(&table, (hash(5000), kind::MOVED, 0), &both));
                });
            }
        });
        let heard = Heard::take(table.table());
        assert!(!heard.is_lost && heard.events.len() == 1001);
        for at in 0..500 {
            assert!(heard.events.contains(&Event::Name(top.join(name(at)))));
            assert!(heard.events.contains(&Event::Made(top.join(format!("made{at}")))));
        }
        let moved = Event::Moved(top.join(name(1)), top.join(name(2)), Move::Perhaps);
        assert_eq!(heard.events.last(), Some(&moved));
        let heard = Heard::take(table.table());
        assert!(heard.events.is_empty() && !heard.is_lost);
    }

    // Goal: names are followed in the order of calls, below directories, too, and however often these come back to a name; what was
    // recorded stays, since a call may have failed. Method: two directories that take turns, one in the other, by hand.
    #[test]
    fn names_are_followed() {
        let path = |text: &str| PathBuf::from(text);
        let moved = |from: &str, to: &str| Event::Moved(path(from), path(to), Move::Made);
        let events = vec![
            Event::Name(path("/a/new")),
            moved("/a", "/b"),
            Event::Name(path("/a/second")),
            moved("/b", "/a/c"),
            Event::Exchanged(path("/a"), path("/d"), Move::Made),
        ];
        let mut heard = Heard { events, is_lost: false };
        let known = ["/a", "/a/x", "/d/y", "/other"].map(PathBuf::from);
        let now = heard.follow(known.iter().cloned().collect());
        let is = |known: bool| -> BTreeSet<&str> {
            now.iter()
                .filter(|(_, sign)| sign.is_known == known)
                .filter_map(|(path, _)| path.to_str())
                .collect()
        };
        assert_eq!(is(true), ["/a", "/a/x", "/a/y", "/d/c", "/d/c/x", "/d/y", "/other"].into());
        assert_eq!(is(false), ["/a/new", "/a/second", "/d/c/new", "/d/second"].into());
        // Again and again: as many names as there are, not more with each turn.
        heard.events = (0..1000).flat_map(|_| [moved("/a", "/b/c"), moved("/b", "/a/d")]).collect();
        let now = heard.follow(["/a/x", "/b/y"].map(PathBuf::from).into());
        assert!(now.len() <= 4, "{}", now.len());
    }

    // Goal: a name is followed although a link has taken the place of a directory on the way there since, also behind other links; what
    // is behind a link is found there. Method: names that were recorded in a directory that was moved.
    #[test]
    fn a_link_in_place_of_a_directory_hides_no_name() {
        let (dir, table) = table();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("new")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", top.join("old")).unwrap();
        std::os::unix::fs::symlink(&top, top.join("through")).unwrap();
        let number = directory(1, 2, 0);
        assert!(record(&table, (number, kind::DIRECTORY, 0), top.as_os_str().as_bytes()));
        for (hash, sort, name) in [
            (1, kind::NAME, "old/made"),
            (2, kind::MADE, "./through/x/../old/directory"),
            (3, kind::NAME, "old"),
            (4, kind::NAME, "new"),
        ] {
            assert!(record(&table, (mix(HASH_START, hash), sort, number), name.as_bytes()));
        }
        let both = [mix(HASH_START, 3).to_le_bytes(), mix(HASH_START, 4).to_le_bytes()].concat();
        assert!(record(&table, (mix(HASH_START, 5), kind::MOVED, moves::MADE), &both));
        let now = Heard::take(table.table()).follow(BTreeSet::new());
        for name in ["new", "new/made", "new/directory"] {
            assert!(now.contains_key(&top.join(name)), "{name} of {now:?}");
        }
    }

    // Goal: names are followed by moves that were made, not by those that were refused; and of one that was yet to be made when the
    // epoch was cut, both are names. Method: a directory of a known file is moved twice, the second time in each of these states.
    #[test]
    fn names_are_followed_by_moves_that_were_made() {
        let (dir, table) = table();
        let top = dir.path().canonicalize().unwrap();
        let hash = |name: u64| mix(HASH_START, name);
        for (state, expected) in [
            (moves::MADE, &["/3/file"][..]),
            (moves::FAILED, &["/2/file"]),
            (moves::ABOUT, &["/2/file", "/3/file"]),
        ] {
            for name in 1..4 {
                let path = top.join(name.to_string());
                assert!(record(&table, (hash(name), kind::NAME, 0), path.as_os_str().as_bytes()));
            }
            for (from, to) in [(1, 2), (2, 3)] {
                let both = [hash(from).to_le_bytes(), hash(to).to_le_bytes()].concat();
                assert!(record(&table, (hash(10 * from), kind::MOVED, moves::ABOUT), &both));
                settle(&table.table().names, hash(10 * from), if from == 1 { moves::MADE } else { state });
            }
            let now = Heard::take(table.table()).follow([top.join("1/file")].into());
            let is_followed = |path: &PathBuf| path.ends_with("file") && !path.ends_with("1/file");
            let found: Vec<&PathBuf> = now.keys().filter(|path| is_followed(path)).collect();
            let expected: Vec<PathBuf> = expected.iter().map(|name| top.join(&name[1..])).collect();
            assert_eq!(found, expected.iter().collect::<Vec<_>>());
        }
    }

    // Goal: what there is no room for is told, until the next cut. Method: more names, and longer ones, than there is room for.
    #[test]
    fn what_is_lost_is_told() {
        for (count, len) in [(2 * NAMES_MAX as u64, 4), (1000, 4000)] {
            let (_dir, table) = table();
            let lost = (0..count)
                .filter(|at| !record(&table, (mix(HASH_START, *at), kind::NAME, 0), &b"/n".repeat(len / 2)));
            let lost = lost.count();
            assert!(Heard::take(table.table()).is_lost, "{lost} of {count}");
            assert!(record(&table, (1, kind::NAME, 0), b"/name"));
            let heard = Heard::take(table.table());
            assert!(!heard.is_lost && heard.events == [Event::Name("/name".into())]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        /// The application may write to the table whatever it likes.
        #[test]
        fn any_table_can_be_read(seed in any::<u64>(), places in any::<bool>()) {
            let (_dir, table) = table();
            let names = &table.table().names;
            prop_assert!(CHANGES_BYTES > size_of_val(names));
            let mut word = seed | 1;
            let mut next = || { word = mix(word, seed); word };
            names.slots.iter().for_each(|slot| slot.store(if places { next() % 70_000 } else { next() }, Relaxed));
            names.words.iter().for_each(|at| at.store(next() & 0x0000_0003_0000_0fff, Relaxed));
            names.used.store(1, Relaxed);
            let _ = Heard::take(table.table());
            prop_assert!(Heard::take(table.table()).events.is_empty());
        }
    }
}
