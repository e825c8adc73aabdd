//! Files whose content is read after the cut: the agent's side of the gate (`holo_abi::awaited`).
//!
//! ```text
//! [stop]     Keeping   enters files as they are staged      -> Shut: whoever would destroy what is to be read waits
//! [running]  Reading   a thread reads, first what is wanted -> dropping Shut opens the gate
//! ```
//!
//! An epoch is void, and taken again with all contents copied in the stop, if somebody lost patience at the gate, or could have
//! written without coming by: an unrecorded program was started meanwhile, or a file has other times that nobody told of.

mod gate;

use crate::changes::{Number, Table};
use crate::recorded::{Maps, Recorded};
use crate::witness;
use holo_abi::awaited::{AWAITED_MAX, Gate, PIECE_SHIFT, state};
use holo_abi::changes::{BROKEN, SHUT};
use holo_cfor::{Extent, Inode, Keeper, Kept, Staged, Waiting};
use holo_image::Blob;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Descriptors that are left for all else.
const DESCRIPTORS_SPARE: u64 = 512;
/// Files of all applications that are kept, each of which has a descriptor.
static KEPT: AtomicUsize = AtomicUsize::new(0);
/// How long we wait until programs that are about to start have joined.
const JOIN_MAX: Duration = Duration::from_millis(100);
/// The gate is tried only where somebody comes by while files are awaited: when epochs are compared, reading begins late.
const CHECK_DELAY: Duration = Duration::from_millis(3);

/// `0` has all contents copied in the stop, for comparisons.
const VARIABLE: &str = "HOLO_FILES_GATE";

/// Why there is no epoch of a cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Void {
    /// A process waited too long.
    #[error("a process did not wait until its file was read")]
    Broken,
    /// Files that somebody else may write to.
    #[error("{} files were written to by others while they were read", .0.len())]
    Outsiders(BTreeSet<Number>),
    /// A program was started of which nothing is known.
    #[error("a program was started that does not record what it writes")]
    Strangers,
    /// A file could not be read or held.
    #[error("{0}")]
    Unread(holo_cfor::Error),
    /// Nobody wants it any more.
    #[error("called off")]
    CalledOff,
}

/// A file in the table.
struct Entry {
    place: usize,
    number: Number,
    is_read: bool,
}

/// Files in the table; dropping opens the gate.
struct Entered {
    table: Arc<Table>,
    files: Vec<Entry>,
}

impl Entered {
    fn gate(&self) -> &Gate {
        &self.table.table().gate
    }

    fn wake(&self, place: usize) {
        let turn: *const AtomicU32 = &raw const self.gate().files[place].turn;
        // SAFETY: a word of the table, which stays mapped; the call only wakes.
        unsafe { libc::syscall(libc::SYS_futex, turn, libc::FUTEX_WAKE, i32::MAX) };
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.files.len(), Relaxed);
        self.table.table().bank.fetch_and(!SHUT, SeqCst);
        for entry in &self.files {
            if gate::took(self.gate(), entry.place) {
                self.wake(entry.place);
            }
            self.gate().files[entry.place].key.store(0, SeqCst);
        }
    }
}

/// Enters files, in the stop.
pub(crate) struct Keeping {
    entered: Entered,
    /// Files that somebody may write to who does not come by.
    barred: BTreeSet<Number>,
    next_piece: usize,
    kept_max: usize,
}

impl Keeping {
    /// None: who writes cannot be made to wait.
    pub(crate) fn new(recorded: &Recorded, maps: &Maps) -> Option<Self> {
        let table =
            recorded.gated().filter(|_| std::env::var_os(VARIABLE).is_none_or(|value| value != "0"))?;
        let entered = Entered { table, files: Vec::new() };
        let barred = maps.shared.union(recorded.outsiders()).copied().collect();
        Some(Self { entered, barred, next_piece: 0, kept_max: kept_max() })
    }

    /// All are entered.
    pub(crate) fn shut(self) -> Shut {
        let Self { entered, .. } = self;
        let strangers = entered.table.strangers();
        if !entered.files.is_empty() {
            entered.table.table().bank.fetch_or(SHUT, SeqCst);
        }
        let (seen, waits) = (entered.gate().wanted.load(SeqCst), entered.gate().waits.load(Relaxed));
        let places = entered.files.iter().map(|entry| entry.place);
        let tickets = places.zip(0..).collect();
        Shut { entered, strangers, tickets, seen, waits, outsiders: BTreeSet::new(), stop: Arc::default() }
    }
}

impl Keeper for Keeping {
    fn keep(&mut self, inode: &Inode, data: &[Extent]) -> Option<Kept> {
        let number = (inode.identity.dev, inode.identity.ino);
        let is_full = self.entered.files.len() >= AWAITED_MAX || KEPT.load(Relaxed) >= self.kept_max;
        if is_full || self.barred.contains(&number) {
            return None;
        }
        let key = gate::key(self.entered.table.table(), number.0, number.1)?;
        let (first, last) = (data.first()?, data.last()?);
        let range = (first.at, last.at + last.len);
        let bytes: u64 = data.iter().map(|extent| extent.len).sum();
        let in_pieces = bytes > 1 << PIECE_SHIFT;
        let place = gate::enter(self.entered.gate(), key, range, in_pieces.then_some(&mut self.next_piece))?;
        let piece_shift = in_pieces.then(|| self.entered.gate().files[place].shift.load(SeqCst).min(63));
        self.entered.files.push(Entry { place, number, is_read: false });
        KEPT.fetch_add(1, Relaxed);
        Some(Kept { ticket: self.entered.files.len() - 1, piece_shift })
    }
}

/// How many descriptors may be used for files that are kept.
fn kept_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a limit of our own.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (limit.rlim_cur.saturating_sub(DESCRIPTORS_SPARE) / 2) as usize
}

/// The gate is shut: the files of a cut stay as they are until they were read.
pub(crate) struct Shut {
    entered: Entered,
    /// At the cut.
    strangers: u32,
    /// Tickets by place.
    tickets: HashMap<usize, usize>,
    /// [`Gate::wanted`] when nobody was found waiting.
    seen: u32,
    waits: u32,
    outsiders: BTreeSet<Number>,
    /// Reading is called off.
    stop: Arc<AtomicBool>,
}

impl Shut {
    /// Everything was read. Could somebody have written before?
    fn verdict(self) -> Result<(), Void> {
        let Self { entered, strangers, outsiders, waits, .. } = self;
        let table = Arc::clone(&entered.table);
        drop(entered);
        let gate = &table.table().gate;
        if table.table().bank.load(SeqCst) & BROKEN != 0 {
            return Err(Void::Broken);
        }
        if witness::is_wanted() {
            let waited = gate.waits.load(Relaxed).wrapping_sub(waits);
            eprintln!("holod: files gate: {waited} writers waited");
        }
        if !outsiders.is_empty() {
            return Err(Void::Outsiders(outsiders));
        }
        // A program that is being started joins soon.
        let since = Instant::now();
        loop {
            if table.table().blind.load(SeqCst) != 0 {
                return Err(Void::Strangers);
            }
            if table.strangers() == strangers {
                return Ok(());
            }
            if since.elapsed() > JOIN_MAX {
                return Err(Void::Strangers);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Waiting for Shut {
    fn wanted(&mut self) -> Option<(usize, u64)> {
        let now = self.entered.gate().wanted.load(SeqCst);
        if now == self.seen {
            return None;
        }
        let gate = self.entered.gate();
        let is_wanted =
            |entry: &Entry| !entry.is_read && gate.files[entry.place].state.load(SeqCst) & state::WANTED != 0;
        let latest = self.tickets.get(&(gate.latest.load(SeqCst) as usize)).copied();
        let latest = latest.filter(|ticket| is_wanted(&self.entered.files[*ticket]));
        let found = latest.or_else(|| self.entered.files.iter().position(is_wanted));
        match found {
            Some(ticket) => Some((ticket, gate.files[self.entered.files[ticket].place].want.load(SeqCst))),
            None => {
                self.seen = now;
                None
            }
        }
    }

    fn took_piece(&mut self, ticket: usize, piece: u64) {
        let Some(place) = self.entered.files.get(ticket).map(|entry| entry.place) else { return };
        if gate::took_piece(self.entered.gate(), place, piece) {
            self.entered.wake(place);
        }
    }

    fn took(&mut self, ticket: usize, is_same: bool) {
        let Some(entry) = self.entered.files.get_mut(ticket) else { return };
        entry.is_read = true;
        let (place, number) = (entry.place, entry.number);
        if !is_same && self.entered.gate().files[place].passed.load(SeqCst) == 0 {
            self.outsiders.insert(number);
        }
        if gate::took(self.entered.gate(), place) {
            self.entered.wake(place);
        }
    }

    fn goes_on(&mut self) -> bool {
        let gate = self.entered.gate();
        gate.signs.fetch_add(1, SeqCst);
        self.entered.table.table().bank.load(SeqCst) & BROKEN == 0 && !self.stop.load(Relaxed)
    }
}

/// A thread reads what was awaited; dropping calls it off.
pub(crate) struct Reading {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Staged<Blob>, Void>>>,
}

impl Reading {
    /// The application runs again.
    pub(crate) fn start(mut staged: Staged<Blob>, mut shut: Shut) -> Self {
        let stop = Arc::clone(&shut.stop);
        let thread = std::thread::spawn(move || {
            if witness::is_wanted() {
                std::thread::sleep(CHECK_DELAY);
            }
            let read = staged.read_rest(&mut shut);
            let called_off = shut.stop.load(Relaxed);
            let verdict = shut.verdict();
            match (read, verdict) {
                (Err(_), _) if called_off => Err(Void::CalledOff),
                (_, Err(void)) => Err(void),
                (Err(cause), Ok(())) => Err(Void::Unread(cause)),
                (Ok(()), Ok(())) => Ok(staged),
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Waits until all was read.
    pub(crate) fn finish(mut self) -> Result<Staged<Blob>, Void> {
        let done = self.thread.take().and_then(|thread| thread.join().ok());
        done.unwrap_or(Err(Void::CalledOff))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
