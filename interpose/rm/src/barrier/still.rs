//! A process that is parked.

use super::{BarrierError, gone, name_of, tid_in};
use crate::face;
use crate::page::Page;
use crate::tree::{Seat, Stat, outer_tid};
use std::sync::Arc;

/// A process, all of whose threads are parked.
#[derive(Clone)]
pub struct Still {
    /// Its pid on this node.
    pub pid: i32,
    /// Its pid as it sees itself.
    pub inner: i32,
    /// The thread that it is looked at through, see [`crate::face`].
    pub face: i32,
    /// Its page.
    pub page: Arc<Page>,
    /// Slots of its threads, the thread-group leader's first if it lives.
    pub slots: Vec<usize>,
    /// It is stopped (job control), and is to be so when it is let go.
    pub stopped: bool,
    /// What was seen of it when all its threads had parked.
    pub seen: Option<Stat>,
}

impl Still {
    pub(super) fn of(seat: &Seat, page: &Arc<Page>) -> Self {
        let (page, slots) = (Arc::clone(page), Vec::new());
        Self { pid: seat.pid, inner: seat.inner, face: seat.pid, page, slots, stopped: false, seen: None }
    }

    /// Its first thread comes first; where that has ended, it is looked at through the one that does.
    pub(super) fn turn(&mut self) -> Result<(), BarrierError> {
        let tid = |index: &usize| tid_in(&self.page, *index);
        let Some(other) = self.slots.first().map(tid) else { return Ok(()) };
        if let Some(at) = self.slots.iter().position(|index| tid(index) == self.inner) {
            self.slots.swap(0, at);
            return Ok(());
        }
        let pid = self.pid;
        self.face = outer_tid(pid, other).map_err(|cause| gone(pid, cause))?;
        match face::open(self.face) {
            Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => {
                Err(BarrierError::Headless { pid, name: name_of(pid) })
            }
            _ => Ok(()),
        }
    }
}
