//! Receives epochs: a half-received one is invisible, a sealed one is acknowledged only if it still counts.

use std::sync::Arc;

use holo_api::peer::{
    AHEAD_KEYS_MAX, EpochRef, Key, MANIFEST_BYTES_MAX, NEED_KEYS_MAX, OPTIONS_BYTES_MAX, REASON_BYTES_MAX,
    TRANSFER_FRAME_BYTES_MAX, Transfer, TransferReply,
};

use super::{Shared, app::App};
use crate::{
    error::LinkError,
    link::Connection,
    ports::{EpochWriter, Offered, StoreError},
};

/// Why an epoch is not taken.
struct Refusal {
    reason: String,
    retry: bool,
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Refusal {
        Refusal { reason: e.why, retry: e.retry }
    }
}

fn refusal(reason: &str, retry: bool) -> Refusal {
    Refusal { reason: reason.to_owned(), retry }
}

/// How receiving failed.
enum Failure {
    /// The connection is of no use any more.
    Link(LinkError),
    /// The sender is told.
    Refused(Refusal),
}

impl From<LinkError> for Failure {
    fn from(e: LinkError) -> Failure {
        Failure::Link(e)
    }
}

impl<T: Into<Refusal>> From<T> for Failure {
    fn from(e: T) -> Failure {
        Failure::Refused(e.into())
    }
}

/// The accepting side of a transfer connection.
pub(super) fn serve(shared: &Arc<Shared>, mut connection: Connection) -> Result<(), LinkError> {
    connection.set_patience(shared.transfer_patience)?;
    connection.set_frame_bytes_max(TRANSFER_FRAME_BYTES_MAX);
    while !shared.stopping() {
        let from = connection.peer().to_owned();
        let (at, outcome) = match connection.receive()? {
            Transfer::Offer { app, run, at, options, manifest_bytes } => {
                let (incarnation, epoch) = (at.incarnation, at.epoch);
                let offered = Offered { app, from, run, incarnation, epoch, options };
                let held = receive(shared, &mut connection, &offered, at, manifest_bytes);
                (at, held.map(TransferReply::Sealed))
            }
            Transfer::Ahead { app, run, keys } => {
                let taken = receive_ahead(shared, &mut connection, (&app, run, &from), &keys);
                (EpochRef::default(), taken.map(|()| TransferReply::Piece))
            }
            Transfer::Manifest(_) | Transfer::Pages(_) | Transfer::Done => {
                return Err(connection.unexpected("a piece without an offer"));
            }
        };
        match outcome {
            Ok(reply) => connection.send(&reply)?,
            Err(Failure::Link(e)) => return Err(e),
            Err(Failure::Refused(Refusal { mut reason, retry })) => {
                let mut end = reason.len().min(REASON_BYTES_MAX);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                reason.truncate(end);
                connection.send(&TransferReply::Rejected { at, reason, retry })?;
                // Pieces may be under way: only a new connection is in step again. The words first.
                let _ = connection.receive::<Transfer>();
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Returns the newest epoch held, at least the offered one.
fn receive(
    shared: &Arc<Shared>,
    connection: &mut Connection,
    offered: &Offered,
    at: EpochRef,
    manifest_bytes: u64,
) -> Result<EpochRef, Failure> {
    if offered.options.len() > OPTIONS_BYTES_MAX || manifest_bytes > MANIFEST_BYTES_MAX || at.epoch == 0 {
        return Err(refusal("outside of the limits", false).into());
    }
    let app = find(shared, (&offered.app, offered.run, &offered.from))?;
    let held = app.read(|core| core.sealed());
    if held == at {
        return Ok(held);
    }
    let Some(_one) = app.receiving.try_lock() else {
        return Err(refusal("another epoch of it is being received", true).into());
    };
    if !app.read(|core| core.accepts(at) && core.sealed() < at && !core.has_fork()) {
        return Err(refusal("this node does not follow that incarnation now", true).into());
    }
    connection.send(&TransferReply::Piece)?;
    let manifest = receive_manifest(connection, manifest_bytes)?;
    let mut writer = shared.ports.sink.begin(offered, &manifest)?;
    loop {
        let missing = writer.missing(NEED_KEYS_MAX)?;
        let done = missing.is_empty();
        if missing.len() > NEED_KEYS_MAX {
            return Err(refusal("the store asks for too much at once", false).into());
        }
        connection.send(&TransferReply::NeedKeys(missing.clone()))?;
        if done {
            break;
        }
        receive_pages(connection, writer.as_mut(), &missing)?;
    }
    match connection.receive()? {
        Transfer::Done => {}
        Transfer::Offer { .. } | Transfer::Manifest(_) | Transfer::Pages(_) | Transfer::Ahead { .. } => {
            return Err(connection.unexpected("something else than the end").into());
        }
    }
    seal(shared, &app, at, writer)
}

fn find(shared: &Arc<Shared>, (name, run, from): (&str, u64, &str)) -> Result<Arc<App>, Failure> {
    let app = shared.app(name).filter(|app| app.run == run);
    // The heartbeat that announces it may still be under way.
    let app = app.ok_or_else(|| refusal("not known here yet", true))?;
    let from = app.member(from);
    if from.is_none() || app.read(|core| core.record().owner) != from {
        return Err(refusal("the sender is not the owner that this node knows", true).into());
    }
    Ok(app)
}

fn receive_manifest(connection: &mut Connection, bytes: u64) -> Result<Vec<u8>, LinkError> {
    let mut manifest = Vec::new();
    while (manifest.len() as u64) < bytes {
        let Transfer::Manifest(piece) = connection.receive()? else {
            return Err(connection.unexpected("something else than its manifest"));
        };
        if piece.is_empty() || manifest.len() as u64 + piece.len() as u64 > bytes {
            return Err(connection.unexpected("a manifest of another length than offered"));
        }
        manifest.extend_from_slice(&piece);
        connection.send(&TransferReply::Piece)?;
    }
    Ok(manifest)
}

fn receive_pages(
    connection: &mut Connection,
    writer: &mut dyn EpochWriter,
    asked: &[Key],
) -> Result<(), Failure> {
    let mut rest = asked.iter();
    while rest.len() > 0 {
        let Transfer::Pages(pages) = connection.receive()? else {
            return Err(connection.unexpected("something else than the blocks asked for").into());
        };
        if pages.is_empty() {
            return Err(connection.unexpected("an empty piece").into());
        }
        for page in pages {
            if rest.next() != Some(&page.key) {
                return Err(connection.unexpected("a block that was not asked for").into());
            }
            writer.put(&page.key, &page.bytes)?;
        }
        connection.send(&TransferReply::Piece)?;
    }
    Ok(())
}

/// Takes what is stored for the first epoch of an application, as far as it is missing here.
fn receive_ahead(
    shared: &Arc<Shared>,
    connection: &mut Connection,
    of: (&str, u64, &str),
    keys: &[Key],
) -> Result<(), Failure> {
    if keys.len() > AHEAD_KEYS_MAX {
        return Err(refusal("outside of the limits", false).into());
    }
    let app = find(shared, of)?;
    if app.read(|core| core.sealed()) != EpochRef::default() {
        return Err(refusal("this node has epochs of it", false).into());
    }
    let sink = &shared.ports.sink;
    let missing = sink.lacking(&app.name, app.run, keys)?;
    let mut rest = missing.iter();
    connection.send(&TransferReply::NeedKeys(missing.clone()))?;
    loop {
        let pages = match connection.receive()? {
            Transfer::Pages(pages) => pages,
            Transfer::Done => return Ok(()),
            Transfer::Offer { .. } | Transfer::Manifest(_) | Transfer::Ahead { .. } => {
                return Err(connection.unexpected("something else than the blocks asked for").into());
            }
        };
        if pages.is_empty() || !pages.iter().all(|page| rest.next() == Some(&page.key)) {
            return Err(connection.unexpected("a block that was not asked for").into());
        }
        sink.put_ahead(&app.name, &pages)?;
        connection.send(&TransferReply::Piece)?;
    }
}

fn seal(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    at: EpochRef,
    writer: Box<dyn EpochWriter>,
) -> Result<EpochRef, Failure> {
    if !app.before_seal(shared, at) {
        return Err(refusal("this node does not follow that incarnation any more", true).into());
    }
    writer.seal()?;
    if !app.after_seal(shared, at) {
        // It may be started without this epoch: its owner must not believe it safe.
        return Err(refusal("a successor is being chosen without it", false).into());
    }
    Ok(at)
}
