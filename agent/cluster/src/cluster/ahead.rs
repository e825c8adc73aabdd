//! Brings a peer what is stored for the first epoch while that is being stored: the epoch then brings what is missing, no more.
//!
//! Nothing depends on it. What the peer keeps of it is found by the epoch if it is there; what is given up on either side in between
//! comes with the epoch.

use std::time::{Duration, Instant};

use holo_api::peer::{Key, Transfer};

use super::sender::{Outcome, Reply, SendError, Sender, Window};
use crate::{
    link::Connection,
    ports::{Ahead, StoreError},
};

/// After an attempt that failed; twice as long after each that the peer did not take: it does not know this, or has no room.
const PAUSE: Duration = Duration::from_secs(1);
const DOUBLED_MAX: u32 = 6;

/// How far it is with a peer.
#[derive(Default)]
pub(super) struct Early {
    /// Place of what is next.
    pub(super) from: u64,
    refused: u32,
    not_before: Option<Instant>,
}

impl Early {
    pub(super) fn is_due(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }
}

impl Sender {
    /// Brings some of it, or tries again later; in a thread of its own.
    pub(super) fn bring_ahead(&self, connection: &mut Option<Connection>, early: &mut Early, stored: &Ahead) {
        self.shared.ports.source.stand_back();
        // That it cannot be reached, the epoch will tell.
        let pause = PAUSE * (1 << early.refused.min(DOUBLED_MAX));
        early.not_before = Some(Instant::now() + pause);
        let Ok(open) = connection.take().map_or_else(|| self.dial(), Ok) else { return };
        let open = connection.insert(open);
        let mut is_known = false;
        match self.send_ahead(open, stored, &mut is_known) {
            Ok(None) => *early = Early { from: stored.end, ..Early::default() },
            outcome => {
                *connection = None;
                early.refused = if outcome.is_err() && is_known { 0 } else { early.refused + 1 };
            }
        }
    }

    /// Until all that the peer lacks is there, or an epoch is sealed. How it ended otherwise.
    fn send_ahead(
        &self,
        connection: &mut Connection,
        stored: &Ahead,
        is_known: &mut bool,
    ) -> Result<Option<Outcome>, SendError> {
        let (app, run, keys) = (self.app.name.clone(), self.app.run, stored.keys.clone());
        connection.send(&Transfer::Ahead { app, run, keys })?;
        let mut window = Window::default();
        let wanted = match window.next(connection)? {
            Reply::Need(keys) => keys,
            Reply::End(outcome) => return Ok(Some(outcome)),
        };
        *is_known = true;
        let mut offered = stored.keys.iter();
        if !wanted.iter().all(|key| offered.any(|one| one == key)) {
            return Err(connection.unexpected("a question for blocks that were not offered").into());
        }
        let under_way = self.app.sending.begin(&self.peer);
        under_way.wanted(wanted.len(), stored.all);
        let mut read = |keys: &[Key]| {
            if self.app.read(|core| core.sealed().epoch > 0) {
                return Err(StoreError { why: "an epoch is sealed".to_owned(), retry: false });
            }
            self.shared.ports.source.read_ahead(&self.app.name, keys)
        };
        match self.send_pages(connection, &mut read, (&mut window, &under_way), &wanted) {
            // What was given up, and what comes with the epoch, is not sent.
            Ok(None) | Err(SendError::Store(_)) => {}
            other => return other,
        }
        if let Some(end) = window.send(connection, &Transfer::Done)? {
            return Ok(Some(end));
        }
        window.drain(connection)
    }
}
