//! Calls that all kinds want of a process, made as one list at the beginning of a stop.
//!
//! To have a thread make calls costs two changes of the thread that runs, which is more than most calls do. The lists of all
//! processes run while the agent goes on with what needs no process, each in a window of the upper half of the scratch area of
//! its page; the lower half is free meanwhile. Processes of a page for which there is no window left are asked one after the
//! other, when their answers are wanted.

use crate::page::Page;
use crate::remote::Remote;
use holo_abi::control::{Call, SCRATCH_BYTES};
use std::io;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The first window.
const FIRST: usize = SCRATCH_BYTES / 2;
/// The window of those who come late.
const LATE: usize = SCRATCH_BYTES - WINDOW_BYTES;
/// Most that a process is asked for in this way.
const WINDOW_BYTES: usize = 32 << 10;

/// A list in the making.
pub struct Asking {
    /// Address of the window in the process, and offset of it in the scratch area.
    address: u64,
    at: usize,
    /// Bytes that the calls write to.
    room: usize,
    calls: Vec<Call>,
}

/// What a kind has asked for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    calls: Range<usize>,
    room: Range<usize>,
}

/// What the calls of a process gave.
#[derive(Debug)]
pub struct Answers {
    calls: Vec<Call>,
    room: Vec<u8>,
}

#[derive(Default)]
enum State {
    #[default]
    None,
    Late(Asking),
    Started(Asking),
}

/// What a process was asked for.
#[derive(Default)]
pub(crate) struct Asks {
    state: Mutex<State>,
    /// Or why there are none: whoever wants them is told.
    answers: OnceLock<Result<Answers, Failed>>,
}

/// An error as often as it is wanted.
struct Failed {
    number: Option<i32>,
    text: String,
}

impl Failed {
    fn of(cause: &io::Error) -> Self {
        Self { number: cause.raw_os_error(), text: cause.to_string() }
    }

    fn again(&self) -> io::Error {
        self.number.map_or_else(|| io::Error::other(self.text.clone()), io::Error::from_raw_os_error)
    }
}

/// Where the next list of a page goes.
pub struct Windows {
    next: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Windows {
    /// A list for a process of the page.
    #[must_use]
    pub fn open(&self, page: &Page) -> Asking {
        let at = if self.next + WINDOW_BYTES <= LATE { self.next } else { LATE };
        Asking { address: page.scratch_address(at), at, room: 0, calls: Vec::new() }
    }

    /// The process makes the calls of its list from now on, or when its answers are wanted.
    pub fn start(&mut self, remote: &Remote, asking: Asking) {
        let state = if asking.at == LATE {
            State::Late(asking)
        } else {
            self.next = (asking.at + asking.bytes()).next_multiple_of(64);
            remote.start_at(asking.list(&remote.page), asking.calls.len());
            State::Started(asking)
        };
        *remote.asks.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Asking {
    /// Adds calls, which write to so many bytes at the address that `calls` is given. None: there is no room.
    pub fn add(&mut self, bytes: usize, calls: impl FnOnce(u64) -> Vec<Call>) -> Option<Asked> {
        let room = self.room..(self.room + bytes).next_multiple_of(8);
        let mut more = calls(self.address + room.start as u64);
        let needs = room.end.next_multiple_of(64) + (self.calls.len() + more.len()) * size_of::<Call>();
        if needs > WINDOW_BYTES {
            return None;
        }
        let first = self.calls.len();
        self.calls.append(&mut more);
        self.room = room.end;
        Some(Asked { calls: first..self.calls.len(), room: room.start..room.start + bytes })
    }

    fn bytes(&self) -> usize {
        self.room.next_multiple_of(64) + self.calls.len() * size_of::<Call>()
    }

    /// Puts the list into the page; its address in the process.
    fn list(&self, page: &Page) -> u64 {
        let bytes = std::mem::size_of_val(self.calls.as_slice());
        // SAFETY: plain words.
        let words = unsafe { std::slice::from_raw_parts(self.calls.as_ptr().cast::<u8>(), bytes) };
        page.put(self.at + self.room.next_multiple_of(64), words)
    }

    /// What the page has, when the calls are made.
    fn answers(mut self, page: &Page) -> Answers {
        let list = page.take(self.at + self.room.next_multiple_of(64), self.calls.len() * size_of::<Call>());
        let rets = list.chunks_exact(size_of::<Call>()).map(|call| {
            let at = std::mem::offset_of!(Call, ret);
            i64::from_ne_bytes(call[at..at + 8].try_into().unwrap_or_default())
        });
        self.calls.iter_mut().zip(rets).for_each(|(call, ret)| call.ret = ret);
        Answers { room: page.take(self.at, self.room), calls: self.calls }
    }
}

impl Asks {
    /// Waits until a list that was started is done.
    pub(crate) fn settle(&self, remote: &Remote) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let asking = match std::mem::take(&mut *state) {
            State::Started(asking) => asking,
            other @ (State::None | State::Late(_)) => {
                *state = other;
                return Ok(());
            }
        };
        self.keep(remote.finish_list(), asking, &remote.page)
    }

    /// What came of a list is known from now on.
    fn keep(&self, done: io::Result<()>, asking: Asking, page: &Page) -> io::Result<()> {
        let _ = self.answers.set(match &done {
            Ok(()) => Ok(asking.answers(page)),
            Err(cause) => Err(Failed::of(cause)),
        });
        done
    }

    /// The answers, waited or asked for if they are not there yet.
    pub(crate) fn answers(&self, remote: &Remote) -> io::Result<&Answers> {
        self.settle(remote)?;
        let late = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::take(&mut *state) {
                State::Late(asking) => Some(asking),
                State::None | State::Started(_) => None,
            }
        };
        if let Some(asking) = late {
            let _hands = remote.page.hands();
            let done = remote.run_at(asking.list(&remote.page), asking.calls.len());
            self.keep(done, asking, &remote.page)?;
        }
        let answers = self.answers.get().ok_or_else(|| io::Error::other("the process was not asked"))?;
        answers.as_ref().map_err(Failed::again)
    }
}

impl Answers {
    /// Those to what a kind has asked: its calls, and what they wrote.
    ///
    /// # Errors
    /// It asked for nothing.
    pub fn of(&self, asked: &Asked) -> io::Result<(&[Call], &[u8])> {
        let calls = self.calls.get(asked.calls.clone()).filter(|calls| !calls.is_empty());
        calls.zip(self.room.get(asked.room.clone())).ok_or_else(|| io::Error::other("nothing was asked"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::remote::call;

    // Goal: each kind gets its own calls and bytes, windows do not touch, and what has no room is refused. Method: lists of
    // several kinds in a page, answered by hand.
    #[test]
    fn answers_by_kind() {
        let page = Page::create().unwrap();
        let mut windows = Windows::default();
        let mut seen = FIRST;
        for round in 0..40u64 {
            let mut asking = windows.open(&page);
            let at = asking.at;
            let one = asking.add(13, |at| vec![call(1, &[at])]).unwrap();
            let other = asking.add(2000, |at| vec![call(2, &[at]), call(3, &[at + 8])]).unwrap();
            assert!(asking.add(WINDOW_BYTES, |_| vec![]).is_none());
            assert!(asking.add(0, |_| vec![call(4, &[]); WINDOW_BYTES / 64]).is_none());
            if at == LATE {
                assert!(windows.next + WINDOW_BYTES > LATE);
                continue;
            }
            assert!(at >= seen && at + asking.bytes() <= LATE);
            seen = at + asking.bytes();
            windows.next = seen.next_multiple_of(64);
            assert_eq!(asking.calls[1].args[0], page.scratch_address(at) + 16);
            asking.list(&page);
            for (index, ret) in [5i64, -6, 7].into_iter().enumerate() {
                let place = at + asking.room.next_multiple_of(64) + index * 64 + 56;
                page.put(place, &(ret * round as i64).to_ne_bytes());
            }
            page.put(at, &[1; 13]);
            page.put(at + 16, &[2; 2000]);
            let answers = asking.answers(&page);
            let (calls, bytes) = answers.of(&one).unwrap();
            assert_eq!((calls.len(), calls[0].ret, bytes), (1, 5 * round as i64, [1; 13].as_slice()));
            let (calls, bytes) = answers.of(&other).unwrap();
            assert_eq!((calls.len(), calls[1].ret, bytes), (2, 7 * round as i64, [2; 2000].as_slice()));
            assert!(answers.of(&Asked::default()).is_err());
        }
    }
}
