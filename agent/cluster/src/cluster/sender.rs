//! Brings epochs to one peer: always the newest; those in between are skipped when the peer is behind.

use std::{sync::Arc, thread, time::Duration};

use holo_api::peer::{
    AHEAD_KEYS_MAX, BLOCK_BYTES_MAX, EpochRef, Key, MANIFEST_BYTES_MAX, NEED_KEYS_MAX, OPTIONS_BYTES_MAX,
    PIECE_BYTES, Page, Purpose, TRANSFER_FRAME_BYTES_MAX, Transfer, TransferReply, WINDOW,
};

use super::{Shared, ahead::Early, app::App, sending::UnderWay};
use crate::{
    error::LinkError,
    link::{Connection, Patience},
    ports::{Ahead, EpochReader, StoreError},
};

/// Blocks that are read from the store at once.
const BLOCKS_AT_ONCE: usize = 128;
/// A connection without an epoch for so long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// Reads packed blocks.
type Blocks<'a> = dyn FnMut(&[Key]) -> Result<Vec<Vec<u8>>, StoreError> + 'a;

/// How an attempt to bring an epoch ended.
pub(super) enum Outcome {
    Sealed(EpochRef),
    /// Not taken; false: never will be.
    Rejected(String, bool),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("read epoch from the local store: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Limit(String),
    #[error("this node does not own the application any more")]
    NotOwner,
}

pub(super) fn start(shared: &Arc<Shared>, app: &Arc<App>, peer: &str) {
    let sender = Sender { shared: shared.clone(), app: app.clone(), peer: peer.to_owned() };
    let named = thread::Builder::new().name("holo-send".to_owned());
    named.spawn(move || sender.run()).expect("the system has threads left");
}

pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) app: Arc<App>,
    pub(super) peer: String,
}

/// What there is to bring.
enum Work {
    Epoch(EpochRef),
    /// What is stored for the first epoch.
    Ahead(Ahead),
}

impl Sender {
    fn run(self) {
        let mut connection: Option<Connection> = None;
        let mut hopeless = EpochRef::default();
        let mut trouble = String::new();
        let mut failures = 0u32;
        // A change of what the peer has was refused: it has another one, has forgotten it, or is too old to know changes.
        let mut whole = false;
        let mut early = Early::default();
        while !self.over() {
            if connection.is_none() {
                // The peer may have lost what it had.
                early.from = 0;
            }
            let patience = if connection.is_some() { IDLE } else { Duration::MAX };
            let at = match self.wait_work(hopeless, patience, &early) {
                Some(Work::Epoch(at)) => at,
                Some(Work::Ahead(stored)) => {
                    // Not by this thread, which the epoch is to find as fast as ever.
                    thread::scope(|scope| {
                        let (connection, early) = (&mut connection, &mut early);
                        scope.spawn(|| self.bring_ahead(connection, early, &stored));
                    });
                    continue;
                }
                None => {
                    connection = None;
                    continue;
                }
            };
            let fresh = connection.is_none();
            let outcome = self.bring(&mut connection, at, whole);
            let text = match outcome {
                Ok(Outcome::Sealed(at)) => {
                    (failures, whole) = (0, false);
                    trouble.clear();
                    self.app.sending.ended(&self.peer);
                    self.app.replicas.lock().insert(self.peer.clone(), at);
                    self.app.replicated.notify_all();
                    continue;
                }
                Ok(Outcome::Rejected(..)) if !whole => {
                    (connection, whole) = (None, true);
                    continue;
                }
                Ok(Outcome::Rejected(why, retry)) => {
                    if !retry {
                        hopeless = at;
                    }
                    format!("node {} does not take epoch {}: {why}", self.peer, at.epoch)
                }
                Err(SendError::NotOwner) => {
                    connection = None;
                    continue;
                }
                Err(SendError::Link(e)) => {
                    connection = None;
                    // The peer may just have closed an idle connection: dial again before making a fuss.
                    if !fresh {
                        continue;
                    }
                    e.to_string()
                }
                Err(e @ (SendError::Store(_) | SendError::Limit(_))) => {
                    connection = None;
                    hopeless = at;
                    format!("cannot send epoch {} to {}: {e}", at.epoch, self.peer)
                }
            };
            if text != trouble && !self.over() {
                self.shared.log(&format!("{}: {text}", self.app.name));
                trouble = text;
            }
            failures = (failures + 1).min(5);
            self.shared.sleep(Duration::from_millis(100 << failures));
        }
    }

    fn over(&self) -> bool {
        self.app.is_gone() || self.shared.stopping()
    }

    /// The newest epoch that the peer does not hold, once there is one, before the first one what is stored for it; `None` after
    /// `patience`.
    fn wait_work(&self, hopeless: EpochRef, patience: Duration, early: &Early) -> Option<Work> {
        let step = Duration::from_millis(200);
        let mut waited = Duration::ZERO;
        while !self.over() && waited < patience {
            let member = self.app.member(&self.peer)?;
            let (owner, newest, told) =
                self.app.read(|core| (core.is_owner(), core.sealed(), core.sealed_at(member)));
            if owner
                && newest.epoch == 0
                && early.is_due()
                && let Some(stored) =
                    self.shared.ports.source.ahead(&self.app.name, early.from, AHEAD_KEYS_MAX)
            {
                return Some(Work::Ahead(stored));
            }
            let mut replicas = self.app.replicas.lock();
            if owner && told > replicas.get(&self.peer).copied().unwrap_or_default() {
                replicas.insert(self.peer.clone(), told);
                self.app.replicated.notify_all();
            }
            let held = replicas.get(&self.peer).copied().unwrap_or_default();
            if owner && newest.epoch > 0 && newest > held && newest != hopeless {
                return Some(Work::Epoch(newest));
            }
            self.app.replicated.wait_for(&mut replicas, step);
            waited += step;
        }
        None
    }

    fn bring(
        &self,
        connection: &mut Option<Connection>,
        at: EpochRef,
        whole: bool,
    ) -> Result<Outcome, SendError> {
        let mut reader = self.shared.ports.source.open(&self.app.name, at.epoch)?;
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.dial()?),
        };
        let held = self.app.replicas.lock().get(&self.peer).map_or(0, |held| held.epoch);
        self.transfer(connection, reader.as_mut(), at, if whole { 0 } else { held })
    }

    pub(super) fn dial(&self) -> Result<Connection, LinkError> {
        let shared = &self.shared;
        let patience = Patience { connect: Duration::from_secs(5), io: shared.transfer_patience };
        let Some(peer) = shared.peers.get(&self.peer) else {
            let (node, why) = (self.peer.clone(), "not configured on this node".to_owned());
            return Err(LinkError::Address { node, address: "?".to_owned(), why });
        };
        let hello = shared.hello(Purpose::Transfer);
        let (mut connection, _) =
            Connection::dial(&shared.tls, &self.peer, &peer.config.address, &hello, patience)?;
        connection.set_frame_bytes_max(TRANSFER_FRAME_BYTES_MAX);
        Ok(connection)
    }

    fn transfer(
        &self,
        connection: &mut Connection,
        reader: &mut dyn EpochReader,
        at: EpochRef,
        held: u64,
    ) -> Result<Outcome, SendError> {
        let (options, manifest) = (reader.options()?, reader.manifest(held)?);
        if options.len() > OPTIONS_BYTES_MAX || manifest.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(SendError::Limit("its options or manifest are too large".to_owned()));
        }
        let manifest_bytes = manifest.len() as u64;
        let (app, run) = (self.app.name.clone(), self.app.run);
        connection.send(&Transfer::Offer { app, run, at, options, manifest_bytes })?;
        match connection.receive()? {
            TransferReply::Piece => {}
            TransferReply::Sealed(held) if held >= at => return Ok(Outcome::Sealed(held)),
            TransferReply::Rejected { reason, retry, .. } => return Ok(Outcome::Rejected(reason, retry)),
            TransferReply::Sealed(_) | TransferReply::NeedKeys(_) => {
                return Err(connection.unexpected("a wrong answer to an offer").into());
            }
        }
        let under_way = self.app.sending.begin(&self.peer);
        let mut all = None;
        let mut window = Window::default();
        for piece in manifest.chunks(PIECE_BYTES) {
            if let Some(end) = window.send(connection, &Transfer::Manifest(piece.to_vec()))? {
                return Ok(end);
            }
        }
        loop {
            let keys = match window.next(connection)? {
                Reply::Need(keys) => keys,
                Reply::End(outcome) => return Ok(outcome),
            };
            if keys.is_empty() {
                connection.send(&Transfer::Done)?;
                return match window.next(connection)? {
                    Reply::End(outcome) => Ok(outcome),
                    Reply::Need(_) => Err(connection.unexpected("a question after the end").into()),
                };
            }
            // Of a change not all need be known; it is all that is asked for, mostly.
            let all = *all.get_or_insert_with(|| {
                if held == 0 && keys.len() == NEED_KEYS_MAX { reader.blocks() } else { 0 }
            });
            under_way.wanted(keys.len(), if keys.len() < NEED_KEYS_MAX { 0 } else { all });
            let mut read = |keys: &[Key]| reader.read(keys);
            if let Some(end) = self.send_pages(connection, &mut read, (&mut window, &under_way), &keys)? {
                return Ok(end);
            }
        }
    }

    pub(super) fn send_pages(
        &self,
        connection: &mut Connection,
        read: &mut Blocks<'_>,
        (window, under_way): (&mut Window, &UnderWay<'_>),
        keys: &[Key],
    ) -> Result<Option<Outcome>, SendError> {
        let (mut pages, mut bytes) = (Vec::new(), 0);
        for part in keys.chunks(BLOCKS_AT_ONCE) {
            for (key, block) in part.iter().zip(read(part)?) {
                if block.len() > BLOCK_BYTES_MAX {
                    return Err(SendError::Limit(format!("a block of {} bytes is too large", block.len())));
                }
                bytes += block.len() + size_of::<Page>();
                pages.push(Page { key: *key, bytes: block });
                if bytes < PIECE_BYTES {
                    continue;
                }
                bytes = 0;
                under_way.sent(pages.len());
                if let Some(end) = self.send_piece(connection, window, std::mem::take(&mut pages))? {
                    return Ok(Some(end));
                }
            }
        }
        under_way.sent(pages.len());
        if pages.is_empty() { Ok(None) } else { self.send_piece(connection, window, pages) }
    }

    fn send_piece(
        &self,
        connection: &mut Connection,
        window: &mut Window,
        pages: Vec<Page>,
    ) -> Result<Option<Outcome>, SendError> {
        if self.over() || !self.app.read(|core| core.is_owner()) {
            return Err(SendError::NotOwner);
        }
        window.send(connection, &Transfer::Pages(pages))
    }
}

/// Pieces under way: the receiver's acknowledgements are the only credit, so that a slow one slows us.
#[derive(Default)]
pub(super) struct Window {
    unacknowledged: u32,
}

pub(super) enum Reply {
    Need(Vec<Key>),
    End(Outcome),
}

impl Window {
    pub(super) fn send(
        &mut self,
        connection: &mut Connection,
        piece: &Transfer,
    ) -> Result<Option<Outcome>, SendError> {
        while self.unacknowledged >= WINDOW {
            match self.read(connection)? {
                None => {}
                Some(Reply::End(outcome)) => return Ok(Some(outcome)),
                Some(Reply::Need(_)) => return Err(connection.unexpected("a question too early").into()),
            }
        }
        connection.send(piece)?;
        self.unacknowledged += 1;
        Ok(None)
    }

    /// Until nothing is under way.
    pub(super) fn drain(&mut self, connection: &mut Connection) -> Result<Option<Outcome>, SendError> {
        while self.unacknowledged > 0 {
            match self.read(connection)? {
                None => {}
                Some(Reply::End(outcome)) => return Ok(Some(outcome)),
                Some(Reply::Need(_)) => return Err(connection.unexpected("a question after the end").into()),
            }
        }
        Ok(None)
    }

    pub(super) fn next(&mut self, connection: &mut Connection) -> Result<Reply, SendError> {
        loop {
            if let Some(reply) = self.read(connection)? {
                return Ok(reply);
            }
        }
    }

    fn read(&mut self, connection: &mut Connection) -> Result<Option<Reply>, SendError> {
        match connection.receive()? {
            TransferReply::Piece => {
                let left = self.unacknowledged.checked_sub(1);
                self.unacknowledged =
                    left.ok_or_else(|| connection.unexpected("too many acknowledgements"))?;
                Ok(None)
            }
            TransferReply::NeedKeys(keys) if keys.len() > NEED_KEYS_MAX => {
                Err(connection.unexpected(format!("a question for {} keys", keys.len())).into())
            }
            TransferReply::NeedKeys(keys) => Ok(Some(Reply::Need(keys))),
            TransferReply::Sealed(at) => Ok(Some(Reply::End(Outcome::Sealed(at)))),
            TransferReply::Rejected { reason, retry, .. } => {
                Ok(Some(Reply::End(Outcome::Rejected(reason, retry))))
            }
        }
    }
}

const _: () = assert!(PIECE_BYTES as u64 + BLOCK_BYTES_MAX as u64 + 65_536 < TRANSFER_FRAME_BYTES_MAX);
