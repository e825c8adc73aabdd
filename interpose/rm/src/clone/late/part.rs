//! One process whose memory comes late: its pages, and the thread that fills them in.

use super::vault::put;
use super::{Pages, Range, Shared};
use crate::kinds::zones::PAGE;
use crate::track::userfaultfd::ioctl;
use holo_image::PageKey;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
/// Messages: four words, of which the first has the sort in its lowest byte, the others depend on it.
const MESSAGE_WORDS: usize = 4;
/// The third word is the address that somebody waits for.
const EVENT_PAGEFAULT: u8 = 0x12;
/// A child was forked; the second word is a userfaultfd of it.
const EVENT_FORK: u8 = 0x13;
/// Memory was moved; words: from, to, bytes.
const EVENT_REMAP: u8 = 0x14;
/// Memory is given back, and to be as if never touched; words: start, end.
const EVENT_REMOVE: u8 = 0x15;
/// Messages that are read at once.
const MESSAGES: usize = 16;
/// Pages that are read for one that somebody waits for: as many as are named at once.
const BLOCK_PAGES: usize = 16;
/// Blocks that are read at once at most while nobody waits.
const BLOCKS_AHEAD: usize = 16;
/// How often a thread with nothing left to fill looks whether all others are done.
const TICK_MS: i32 = 5;

/// One process.
pub(super) struct Part {
    index: u32,
    uffd: OwnedFd,
    pages: Pages,
    /// Blocks of pages that were filled in.
    done: Vec<bool>,
    wait: Duration,
}

/// What somebody did to the memory.
enum Event {
    Fault(u64),
    Fork(OwnedFd),
    Move { from: u64, to: u64, bytes: u64 },
    GiveBack(Range),
}

impl Event {
    fn of(words: &[u64]) -> Option<Self> {
        match words[0] as u8 {
            EVENT_PAGEFAULT => Some(Self::Fault(words[2] & !(PAGE - 1))),
            // SAFETY: a descriptor that the kernel has just made for us.
            EVENT_FORK => Some(Self::Fork(unsafe { OwnedFd::from_raw_fd(words[1] as RawFd) })),
            EVENT_REMAP => Some(Self::Move { from: words[1], to: words[2], bytes: words[3] }),
            EVENT_REMOVE => Some(Self::GiveBack((words[1], words[2]))),
            _ => None,
        }
    }
}

impl Part {
    pub(super) fn new(index: u32, uffd: OwnedFd, pages: Pages, wait: Duration) -> Self {
        let done = vec![false; pages.len().div_ceil(BLOCK_PAGES)];
        Self { index, uffd, pages, done, wait }
    }

    /// A thread for the one that `part` makes.
    pub(super) fn begin(
        part: impl FnOnce() -> Self + Send + 'static,
        shared: &Arc<Shared>,
    ) -> JoinHandle<()> {
        shared.open.fetch_add(1, SeqCst);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let mut part = part();
            let mut open = true;
            let mut children = Vec::new();
            let filled = part.fill(&shared, &mut open, &mut children);
            if let Err(cause) = filled
                // It has ended, or has become another program.
                && cause.raw_os_error() != Some(libc::ESRCH)
            {
                shared.fail(format!(
                    "process {} of the image: memory cannot be filled in: {cause}",
                    part.index
                ));
            }
            if open {
                shared.open.fetch_sub(1, SeqCst);
            }
            children.into_iter().for_each(|child: JoinHandle<()>| drop(child.join()));
        })
    }

    /// Fills all pages, those first that are waited for, then waits for the other processes.
    fn fill(
        &mut self,
        shared: &Arc<Shared>,
        open: &mut bool,
        children: &mut Vec<JoinHandle<()>>,
    ) -> io::Result<()> {
        let (mut next, mut at_once) = (0, 1);
        let mut waiting: Vec<u64> = Vec::new();
        let mut buffer: Vec<holo_image::Page> = vec![[0; PAGE as usize]; BLOCK_PAGES * BLOCKS_AHEAD];
        let begun = Instant::now();
        while !shared.is_over() {
            // The restore itself goes first.
            let ahead = *open && !shared.growing.load(SeqCst) && begun.elapsed() >= self.wait;
            for event in self.events(if ahead { 0 } else { TICK_MS })? {
                match event {
                    Event::Fault(at) => {
                        waiting.push(at);
                        // More may follow soon: they wait for what is read then.
                        at_once = 1;
                    }
                    // It has all that its parent had; closed, nothing is watched any more.
                    Event::Fork(uffd) if !*open => drop(uffd),
                    Event::Fork(uffd) => {
                        // Not kept, it is lost only if the agent is, too.
                        let _ = put(&shared.vault.0, &[(self.index, uffd.try_clone()?)]);
                        let child = Self::new(self.index, uffd, self.pages.clone(), Duration::ZERO);
                        children.push(Self::begin(move || child, shared));
                    }
                    Event::Move { from, to, bytes } => {
                        self.moved(from, to, bytes);
                        next = 0;
                    }
                    Event::GiveBack((start, end)) => {
                        let within = |at: &u64| (start..end).contains(at);
                        let gone = self.pages.iter_mut().filter(|(at, _)| within(at));
                        gone.for_each(|(_, key)| *key = PageKey::ZERO);
                    }
                }
            }
            while let Some(at) = waiting.pop() {
                if !unless_events(self.answer(shared, at, &mut buffer))? {
                    waiting.push(at);
                    break;
                }
            }
            next += self.done[next..].iter().take_while(|done| **done).count();
            if next == self.done.len() {
                if std::mem::take(open) {
                    shared.open.fetch_sub(1, SeqCst);
                }
            } else if ahead {
                let end = (next + at_once).min(self.done.len());
                at_once = (at_once * 2).min(BLOCKS_AHEAD);
                let end = (next..end).find(|block| self.done[*block]).unwrap_or(end);
                unless_events(self.fill_blocks(shared, next, end, &mut buffer))?;
            }
        }
        Ok(())
    }

    /// Somebody waits for the page at `at`.
    fn answer(&mut self, shared: &Shared, at: u64, buffer: &mut [holo_image::Page]) -> io::Result<()> {
        let found = self.pages.binary_search_by_key(&at, |(at, _)| *at);
        match found.map(|index| (self.pages[index].1, index / BLOCK_PAGES)) {
            Ok((key, block)) if !key.is_zero() => self.fill_blocks(shared, block, block + 1, buffer),
            _ => self.zero(at),
        }
    }

    /// Memory was moved, with what is missing of it.
    fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        let there = |at: u64| at.wrapping_sub(to) < bytes;
        // What was at that place before is gone.
        self.pages.retain(|(at, _)| !there(*at));
        for (at, _) in self.pages.iter_mut().filter(|(at, _)| at.wrapping_sub(from) < bytes) {
            *at = *at - from + to;
        }
        self.pages.sort_unstable_by_key(|(at, _)| *at);
        // What is there already stays.
        self.done = vec![false; self.pages.len().div_ceil(BLOCK_PAGES)];
    }

    fn events(&self, timeout_ms: i32) -> io::Result<Vec<Event>> {
        let mut entry = libc::pollfd { fd: self.uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry.
        if unsafe { libc::poll(&raw mut entry, 1, timeout_ms) } <= 0 {
            return Ok(Vec::new());
        }
        let mut words = [0u64; MESSAGE_WORDS * MESSAGES];
        // SAFETY: as many bytes as there is room for.
        let got =
            unsafe { libc::read(self.uffd.as_raw_fd(), words.as_mut_ptr().cast(), size_of_val(&words)) };
        if got < 0 {
            return match io::Error::last_os_error() {
                cause if matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(Vec::new()),
                cause => Err(cause),
            };
        }
        let messages = words.chunks_exact(MESSAGE_WORDS).take(got as usize / (MESSAGE_WORDS * 8));
        Ok(messages.filter_map(Event::of).collect())
    }

    fn fill_blocks(
        &mut self,
        shared: &Shared,
        from: usize,
        to: usize,
        buffer: &mut [holo_image::Page],
    ) -> io::Result<()> {
        let pages = &self.pages[from * BLOCK_PAGES..(to * BLOCK_PAGES).min(self.pages.len())];
        let buffer = &mut buffer[..pages.len()];
        let mut wanted: Vec<_> = pages.iter().map(|(_, key)| *key).zip(buffer.iter_mut()).collect();
        shared.image.read_pages_into(&mut wanted).map_err(io::Error::other)?;
        let mut first = 0;
        while first < pages.len() {
            let follows = |index: usize| pages[index].0 == pages[index - 1].0 + PAGE;
            let end = (first + 1..pages.len()).find(|index| !follows(*index)).unwrap_or(pages.len());
            self.copy(pages[first].0, buffer[first..end].as_flattened())?;
            first = end;
        }
        self.done[from..to].fill(true);
        Ok(())
    }

    /// Fills in pages from `at` on that are missing there; not what is gone.
    fn copy(&self, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
        // What is one zone goes at once.
        let mut step = bytes.len();
        while !bytes.is_empty() {
            step = step.min(bytes.len());
            let mut words = [at, bytes.as_ptr() as u64, step as u64, 0, 0];
            let ret = ioctl(&self.uffd, UFFDIO_COPY, &mut words);
            let copied = words[4].cast_signed();
            let passed = match ret {
                Ok(()) => step,
                Err(_) if copied > 0 => copied as usize,
                Err(cause) => match cause.raw_os_error() {
                    Some(libc::ENOENT) if step > PAGE as usize => {
                        step = PAGE as usize;
                        0
                    }
                    // There already, or no memory of that kind any more.
                    Some(libc::EEXIST | libc::ENOENT) => {
                        let _ = ioctl(&self.uffd, UFFDIO_WAKE, &mut [at, PAGE]);
                        PAGE as usize
                    }
                    _ => return Err(cause),
                },
            };
            at += passed as u64;
            bytes = &bytes[passed..];
        }
        Ok(())
    }

    fn zero(&self, at: u64) -> io::Result<()> {
        match ioctl(&self.uffd, UFFDIO_ZEROPAGE, &mut [at, PAGE, 0, 0]) {
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => {
                ioctl(&self.uffd, UFFDIO_WAKE, &mut [at, PAGE])
            }
            other => other,
        }
    }
}

/// False: nothing is filled in before events were heard of.
fn unless_events(ret: io::Result<()>) -> io::Result<bool> {
    match ret {
        Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        ret => ret.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{key, names};
    use super::*;
    use crate::kinds::increment::listed;

    // Goal: pages go where memory was moved to, and what was there is gone. Method: places before and after.
    #[test]
    fn pages_move_with_their_memory() {
        let uffd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut part = Part::new(0, uffd, listed(&names(0..64)), Duration::ZERO);
        part.done.fill(true);
        part.moved(8 * PAGE, 40 * PAGE, 16 * PAGE);
        let kept = (0..8).chain(24..40).map(|page| (page * PAGE, key(page)));
        let moved = (8..24).map(|page| ((page + 32) * PAGE, key(page)));
        let rest = (56..64).map(|page| (page * PAGE, key(page)));
        assert_eq!(part.pages, kept.chain(moved).chain(rest).collect::<Vec<_>>());
        assert_eq!(part.done, vec![false; 3], "{} pages are looked at again", part.pages.len());
    }
}
