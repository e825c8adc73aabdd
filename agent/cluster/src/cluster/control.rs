//! Heartbeats and failover messages: one dialled connection to each peer, apart from transfers.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use holo_api::peer::{AppEnvelope, AppMsg, BATCH_MSGS_MAX, Batch, Purpose};
use parking_lot::{Condvar, Mutex};

use super::{PeerConfig, Shared, app::App, app::Origin};
use crate::{
    clock::now_ms,
    core::Event,
    error::LinkError,
    link::{Connection, Patience},
    records::app_name_ok,
};

/// Messages that wait for a peer; of more, the oldest are dropped (each is repeated by its sender's core).
const OUTBOX_MSGS_MAX: usize = 4096;
/// Applications of other nodes that are kept here; announcements of more are ignored.
const APPS_MAX: usize = 256;

pub(super) struct Peer {
    pub(super) config: PeerConfig,
    outbox: Mutex<VecDeque<AppEnvelope>>,
    filled: Condvar,
    pub(super) seen: Mutex<Seen>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) up: bool,
    pub(super) heard_ms: Option<u64>,
    pub(super) draining: bool,
    pub(super) version: String,
    pub(super) trouble: Option<String>,
}

impl Peer {
    pub(super) fn new(config: PeerConfig) -> Peer {
        Peer {
            config,
            outbox: Mutex::new(VecDeque::new()),
            filled: Condvar::new(),
            seen: Mutex::new(Seen::default()),
        }
    }

    pub(super) fn push(&self, envelope: AppEnvelope) {
        let mut outbox = self.outbox.lock();
        if matches!(envelope.msg, AppMsg::Beat(_)) {
            // Only the newest beat counts.
            outbox.retain(|e| !(matches!(e.msg, AppMsg::Beat(_)) && e.app == envelope.app));
        }
        if outbox.len() >= OUTBOX_MSGS_MAX {
            outbox.pop_front();
        }
        outbox.push_back(envelope);
        self.filled.notify_one();
    }

    fn drain(&self) -> Vec<AppEnvelope> {
        let mut outbox = self.outbox.lock();
        let count = outbox.len().min(BATCH_MSGS_MAX);
        outbox.drain(..count).collect()
    }

    fn wait(&self, patience: Duration) -> Vec<AppEnvelope> {
        let mut outbox = self.outbox.lock();
        if outbox.is_empty() {
            self.filled.wait_for(&mut outbox, patience);
        }
        drop(outbox);
        self.drain()
    }

    pub(super) fn wake(&self) {
        self.filled.notify_all();
    }

    fn heard(&self, draining: bool) {
        let mut seen = self.seen.lock();
        seen.heard_ms = Some(now_ms());
        seen.draining = draining;
    }
}

pub(super) fn start(shared: &Arc<Shared>, peer: &Arc<Peer>) {
    let (shared, peer) = (shared.clone(), peer.clone());
    let named = thread::Builder::new().name("holo-heartbeat".to_owned());
    named.spawn(move || dial_loop(&shared, &peer)).expect("the system has threads left");
}

fn dial_loop(shared: &Arc<Shared>, peer: &Arc<Peer>) {
    let heartbeat_ms = shared.timing.heartbeat_ms;
    let mut backoff_ms = heartbeat_ms;
    while !shared.stopping() {
        let began_ms = now_ms();
        let outcome = dial_once(shared, peer);
        let was_up = std::mem::take(&mut peer.seen.lock().up);
        let Err(error) = outcome else { break };
        if matches!(error, LinkError::Refused { .. }) {
            refused(shared, &peer.config.name, began_ms);
        }
        let text = error.to_string();
        let news = peer.seen.lock().trouble.as_ref() != Some(&text);
        if news && !shared.stopping() {
            shared.log(&text);
        }
        peer.seen.lock().trouble = Some(text);
        // A refusing host answers at once and is asked at every heartbeat: each answer is evidence.
        let refusing = matches!(error, LinkError::Refused { .. });
        backoff_ms = match refusing || was_up {
            true => heartbeat_ms,
            false => (backoff_ms * 2).min(shared.timing.failover_ms),
        };
        shared.sleep(Duration::from_millis(backoff_ms));
    }
}

/// Dials and talks until the connection ends; `Ok` only when the cluster stops.
fn dial_once(shared: &Arc<Shared>, peer: &Arc<Peer>) -> Result<(), LinkError> {
    let timing = &shared.timing;
    let io = Duration::from_millis(timing.lease_ms.max(500));
    let patience = Patience { connect: Duration::from_millis(timing.failover_ms.max(1000)), io };
    let hello = shared.hello(Purpose::Control);
    let (name, address) = (&peer.config.name, &peer.config.address);
    let (mut connection, welcome) = Connection::dial(&shared.tls, name, address, &hello, patience)?;
    {
        let mut seen = peer.seen.lock();
        seen.up = true;
        seen.version = welcome.version;
        seen.trouble = None;
    }
    shared.log(&format!("connected to {name} at {address}"));
    let mut seq = 0;
    while !shared.stopping() {
        let msgs = peer.wait(Duration::from_millis(timing.heartbeat_ms));
        seq += 1;
        connection.send(&Batch { seq, draining: shared.draining.load(Ordering::Relaxed), msgs })?;
        let answer: Batch = connection.receive()?;
        if answer.seq != seq {
            return Err(connection.unexpected(format!("answer {} to batch {seq}", answer.seq)));
        }
        take(shared, peer, &connection, answer)?;
    }
    Ok(())
}

/// The accepting side of a control connection.
pub(super) fn serve(shared: &Arc<Shared>, mut connection: Connection) -> Result<(), LinkError> {
    let name = connection.peer().to_owned();
    let Some(peer) = shared.peers.get(&name).cloned() else {
        return Err(connection.unexpected("a control connection without being configured here"));
    };
    connection.set_patience(Duration::from_millis(3 * shared.timing.failover_ms.max(1000)))?;
    while !shared.stopping() {
        let batch: Batch = connection.receive()?;
        let seq = batch.seq;
        take(shared, &peer, &connection, batch)?;
        let draining = shared.draining.load(Ordering::Relaxed);
        connection.send(&Batch { seq, draining, msgs: peer.drain() })?;
    }
    Ok(())
}

fn take(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    connection: &Connection,
    batch: Batch,
) -> Result<(), LinkError> {
    if batch.msgs.len() > BATCH_MSGS_MAX {
        return Err(connection.unexpected(format!("a batch of {} messages", batch.msgs.len())));
    }
    peer.heard(batch.draining);
    for envelope in batch.msgs {
        if !envelope.is_sane() || !app_name_ok(&envelope.app) {
            return Err(connection.unexpected("a message with values that no node uses"));
        }
        deliver(shared, &peer.config.name, envelope);
    }
    Ok(())
}

/// No agent listens at this peer.
fn refused(shared: &Arc<Shared>, node: &str, attempt_ms: u64) {
    for app in shared.apps() {
        if let Some(peer) = app.member(node) {
            app.step(shared, Event::PeerRefused { peer, attempt_ms });
        }
    }
}

fn deliver(shared: &Arc<Shared>, from: &str, envelope: AppEnvelope) {
    let AppEnvelope { app: name, run, msg } = envelope;
    let known = shared.app(&name);
    let app = match known {
        Some(app) if app.run == run => Some(app),
        Some(_) | None => match &msg {
            AppMsg::Beat(beat) => adopt(shared, from, &name, run, &beat.members, known),
            AppMsg::Ack(_)
            | AppMsg::VoteRequest(_)
            | AppMsg::VoteReply(_)
            | AppMsg::SwitchPrepare { .. }
            | AppMsg::SwitchReady { .. }
            | AppMsg::SwitchRefused { .. }
            | AppMsg::SwitchCommit { .. }
            | AppMsg::SwitchAbort { .. } => None,
        },
    };
    let Some(app) = app else { return };
    let same = match &msg {
        AppMsg::Beat(beat) => beat.members == app.members,
        AppMsg::Ack(_)
        | AppMsg::VoteRequest(_)
        | AppMsg::VoteReply(_)
        | AppMsg::SwitchPrepare { .. }
        | AppMsg::SwitchReady { .. }
        | AppMsg::SwitchRefused { .. }
        | AppMsg::SwitchCommit { .. }
        | AppMsg::SwitchAbort { .. } => true,
    };
    if let Some(member) = app.member(from).filter(|_| same) {
        app.step(shared, Event::Message { from: member, msg });
    }
}

/// An application that a peer announces: becomes a stand-by here, if the name is free.
fn adopt(
    shared: &Arc<Shared>,
    from: &str,
    name: &str,
    run: u64,
    members: &[String],
    known: Option<Arc<App>>,
) -> Option<Arc<App>> {
    let unique = members.iter().enumerate().all(|(i, m)| !members[..i].contains(m));
    let ours = members.iter().any(|m| m == shared.node()) && members.iter().any(|m| m == from);
    if !unique || !ours || run == 0 {
        return None;
    }
    // Two connections may announce it at once.
    let mut apps = shared.apps.write();
    let current = apps.get(name).cloned();
    match (&current, &known) {
        (Some(app), _) if app.run == run => return current,
        (Some(app), Some(known)) if Arc::ptr_eq(app, known) => {
            let owner = app.member(from);
            if !app.read(|core| core.is_replaceable_by(owner)) {
                shared.log_once(
                    name,
                    &format!("{name}: node {from} announces another application of this name"),
                );
                return None;
            }
            app.end();
        }
        (Some(_), _) => return None,
        (None, _) if apps.len() >= APPS_MAX || shared.draining.load(Ordering::Relaxed) => {
            shared.log_once(name, &format!("{name}: not taken as a stand-by (draining, or too many)"));
            return None;
        }
        (None, _) => {}
    }
    let app = App::start(shared, name, members.to_vec(), Origin::Adopt { run })?;
    shared.log(&format!("{name}: stand-by for node {from}"));
    apps.insert(name.to_owned(), app.clone());
    Some(app)
}
