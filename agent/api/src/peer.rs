//! Messages between agents.
//!
//! Every node dials every other node. A connection starts with [`Hello`] from the one who dialled, answered by
//! [`Welcome`]; its [`Purpose`] fixes what follows:
//!
//! * **control**: the dialling side sends a [`Batch`], the other answers with one. Batches carry the failover
//!   messages of all applications ([`AppMsg`]), also as heartbeat of the node when empty.
//! * **transfer**: one epoch after the other of one application: [`Transfer::Offer`], answered with
//!   [`TransferReply::Piece`] (go on), `Sealed` (known already) or `Rejected`; the manifest in pieces; then for each [`TransferReply::NeedKeys`] the pages in pieces, until [`TransferReply::Sealed`] or
//!   [`TransferReply::Rejected`]. At most [`WINDOW`] pieces are unacknowledged. Before the first epoch what is stored for it:
//!   [`Transfer::Ahead`], answered with `NeedKeys` or `Rejected`; the pages in pieces, as many of them as the sender likes;
//!   [`Transfer::Done`], answered with `Piece`.
//! * **order**: one [`Order`], one [`OrderReply`].
//!
//! Node names in the messages are never believed: the sender is who its certificate says. Nodes inside an
//! application's messages are positions in its list of members, which both sides hold and compare.

use serde::{Deserialize, Serialize};

/// Version of this conversation; both sides must have the same.
pub const PROTOCOL: u16 = 1;
/// Longest node name.
pub const NODE_NAME_BYTES_MAX: usize = 32;
/// Longest application name.
pub const APP_NAME_BYTES_MAX: usize = 128;
/// Most nodes that one application may have.
pub const MEMBERS_MAX: usize = 9;
/// Most messages in one batch; more wait for the next one.
pub const BATCH_MSGS_MAX: usize = 1024;
/// Largest frame of a control or order connection.
pub const CONTROL_FRAME_BYTES_MAX: u64 = 4 << 20;
/// Largest frame of a transfer connection.
pub const TRANSFER_FRAME_BYTES_MAX: u64 = 8 << 20;
/// Largest manifest.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 30;
/// Largest block of options sent with an epoch.
pub const OPTIONS_BYTES_MAX: usize = 1 << 20;
/// Bytes of content in one piece, before the block that crosses it is added.
pub const PIECE_BYTES: usize = 1 << 20;
/// Largest single block behind a key.
pub const BLOCK_BYTES_MAX: usize = 4 << 20;
/// Most keys asked for at once.
pub const NEED_KEYS_MAX: usize = 65_536;
/// Most keys named by [`Transfer::Ahead`] (64 MiB of pages).
pub const AHEAD_KEYS_MAX: usize = 16_384;
/// Pieces that may be under way without an acknowledgement; a sender that has so many waits.
pub const WINDOW: u32 = 8;
/// Longest reason.
pub const REASON_BYTES_MAX: usize = 4096;

/// Largest incarnation, term or epoch that is accepted: none is ever reached, and one more cannot overflow.
pub const COUNT_MAX: u64 = 1 << 56;

/// Position of a node in an application's list of members.
pub type Member = u16;

/// Name of a block of content.
pub type Key = [u8; 32];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Heartbeats and failover.
    Control,
    /// Epochs of one application.
    Transfer,
    /// One order.
    Order,
}

/// First message of the side that dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Name; must be the certificate's.
    pub node: String,
    /// Version of the program.
    pub version: String,
    /// Random number of this run of the agent.
    pub boot: u64,
    /// What follows.
    pub purpose: Purpose,
}

/// Answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Name of the answering node.
    pub node: String,
    /// Version of the program.
    pub version: String,
    /// Random number of this run of the agent.
    pub boot: u64,
    /// Why the connection is refused, if it is.
    pub refused: Option<String>,
}

/// An epoch in the order of all epochs of a run: first by incarnation, then by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EpochRef {
    /// Incarnation that took it.
    pub incarnation: u64,
    /// Number; 0: none.
    pub epoch: u64,
}

/// When a message was sent, by the sender's own clock; answers repeat it and only the sender interprets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    /// Run of the sender's agent.
    pub boot: u64,
    /// Milliseconds of its clock.
    pub sent_ms: u64,
}

/// What the sender of a beat does with the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BeatState {
    /// Runs it.
    Active,
    /// Holds its instance parked until its lease is granted again.
    Fenced,
    /// Holds it for a planned switch.
    Switching,
    /// Was elected and recreates it; nothing runs yet.
    Preparing,
    /// Was its owner, but no instance is left.
    Lost,
    /// Saw it end; nobody may run it.
    Ended,
}

/// An owner's (or elected candidate's) heartbeat for one application: asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Nodes of the application in the configured order.
    pub members: Vec<String>,
    /// Incarnation that the sender owns (or, preparing, was elected for).
    pub incarnation: u64,
    /// State.
    pub state: BeatState,
    /// A member that receives this may take over later; the sender needs its lease from now on.
    pub armed: bool,
    /// Newest epoch that the sender has.
    pub newest: EpochRef,
    /// Epoch that this incarnation started from.
    pub base: EpochRef,
    /// When it was sent.
    pub token: Token,
}

/// Answer to a [`Beat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The lease is granted from the token's time on.
    pub granted: bool,
    /// Newest incarnation that the answering node knows to have run.
    pub incarnation: u64,
    /// Its owner.
    pub owner: Option<Member>,
    /// Epoch that it started from, if known.
    pub base: Option<EpochRef>,
    /// Newest incarnation promised to a candidate.
    pub promised: u64,
    /// Newest epoch sealed at the answering node.
    pub sealed: EpochRef,
    /// Repeated.
    pub token: Token,
}

/// Why votes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VoteKind {
    /// The owner was not heard; a question without promise.
    Canvass,
    /// The owner was not heard.
    Timeout,
    /// The owner handed over.
    Handover,
    /// The owner itself, whose instance is parked, wants to go on.
    Reclaim,
}

/// Asks for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequest {
    /// Incarnation that the sender wants to own.
    pub term: u64,
    /// Why.
    pub kind: VoteKind,
    /// Epoch that it would start from.
    pub sealed: EpochRef,
    /// When it was sent.
    pub token: Token,
}

/// Answer to [`VoteRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// Repeated.
    pub term: u64,
    /// Repeated.
    pub kind: VoteKind,
    /// Promised (for [`VoteKind::Canvass`]: would be).
    pub granted: bool,
    /// Newest incarnation known to have run.
    pub incarnation: u64,
    /// Its owner.
    pub owner: Option<Member>,
    /// Epoch that it started from, if known.
    pub base: Option<EpochRef>,
    /// Newest incarnation promised.
    pub promised: u64,
    /// Repeated.
    pub token: Token,
}

/// A failover message about one application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppMsg {
    /// Heartbeat.
    Beat(Beat),
    /// Lease.
    Ack(Ack),
    /// Election.
    VoteRequest(VoteRequest),
    /// Election.
    VoteReply(VoteReply),
    /// Planned switch, old to new owner: recreate the application from this epoch, parked.
    SwitchPrepare {
        /// Incarnation to come.
        term: u64,
        /// The last epoch of the old owner.
        sealed: EpochRef,
        /// Names this attempt; the other messages repeat it.
        order: Token,
    },
    /// New to old: recreated.
    SwitchReady {
        /// Incarnation.
        term: u64,
        /// Attempt.
        order: Token,
        /// When it was sent (the new owner's clock).
        token: Token,
    },
    /// New to old: cannot or will not; the sender will make no use of this attempt any more.
    SwitchRefused {
        /// Incarnation.
        term: u64,
        /// Attempt.
        order: Token,
        /// Why.
        reason: String,
    },
    /// Old to new: run. The old owner never runs the application again under its incarnation.
    SwitchCommit {
        /// Incarnation.
        term: u64,
        /// Attempt.
        order: Token,
        /// The token of [`AppMsg::SwitchReady`], repeated.
        token: Token,
    },
    /// Old to new: forget the preparation.
    SwitchAbort {
        /// Attempt.
        order: Token,
    },
}

/// A message with the application that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppEnvelope {
    /// Application.
    pub app: String,
    /// Random number of this launch of the application; tells two uses of one name apart.
    pub run: u64,
    /// Message.
    pub msg: AppMsg,
}

impl EpochRef {
    fn is_sane(self) -> bool {
        self.incarnation <= COUNT_MAX && self.epoch <= COUNT_MAX
    }
}

impl AppEnvelope {
    /// Checks everything that can be checked without knowing the application. Messages that fail are dropped.
    pub fn is_sane(&self) -> bool {
        let count = |n: u64| n <= COUNT_MAX;
        let name = |n: &str| !n.is_empty() && n.len() <= NODE_NAME_BYTES_MAX;
        let base = |b: Option<EpochRef>| b.is_none_or(EpochRef::is_sane);
        let app = !self.app.is_empty() && self.app.len() <= APP_NAME_BYTES_MAX;
        app && match &self.msg {
            AppMsg::Beat(b) => {
                let members = (1..=MEMBERS_MAX).contains(&b.members.len());
                let names = b.members.iter().all(|m| name(m));
                members && names && count(b.incarnation) && b.newest.is_sane() && b.base.is_sane()
            }
            AppMsg::Ack(a) => count(a.incarnation) && count(a.promised) && base(a.base) && a.sealed.is_sane(),
            AppMsg::VoteRequest(v) => count(v.term) && v.sealed.is_sane(),
            AppMsg::VoteReply(v) => {
                count(v.term) && count(v.incarnation) && count(v.promised) && base(v.base)
            }
            AppMsg::SwitchPrepare { term, sealed, .. } => count(*term) && sealed.is_sane(),
            AppMsg::SwitchReady { term, .. } | AppMsg::SwitchCommit { term, .. } => count(*term),
            AppMsg::SwitchRefused { term, reason, .. } => count(*term) && reason.len() <= REASON_BYTES_MAX,
            AppMsg::SwitchAbort { .. } => true,
        }
    }
}

/// A control frame: heartbeat of the node and what there is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Counts the dialling side's frames; repeated in the answer.
    pub seq: u64,
    /// The sender wants no new applications.
    pub draining: bool,
    /// Messages in order.
    pub msgs: Vec<AppEnvelope>,
}

/// Transfer of epochs, sender's side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    /// Starts an epoch.
    Offer {
        /// Application.
        app: String,
        /// Launch of it.
        run: u64,
        /// Epoch; replaces every epoch of a lower incarnation with this number or a higher one.
        at: EpochRef,
        /// Options of the application, opaque here.
        #[serde(with = "holo_image::wire::bytes")]
        options: Vec<u8>,
        /// Bytes of the manifest that follows.
        manifest_bytes: u64,
    },
    /// A piece of the manifest.
    Manifest(#[serde(with = "holo_image::wire::bytes")] Vec<u8>),
    /// A piece of what was asked for, in the order of the question. Each key with its bytes, packed by
    /// the sender's store (compressed; the receiver's store verifies them against the key).
    Pages(Vec<Page>),
    /// Nothing more is missing; behind [`Transfer::Ahead`]: no more is sent.
    Done,
    /// Names what is stored for an epoch that is not sealed yet. Nodes that do not know it end the connection.
    Ahead {
        /// Application.
        app: String,
        /// Launch of it.
        run: u64,
        /// Blocks.
        keys: Vec<Key>,
    },
}

/// A block of content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Name.
    pub key: Key,
    /// Packed bytes.
    #[serde(with = "holo_image::wire::bytes")]
    pub bytes: Vec<u8>,
}

/// Transfer of epochs, receiver's side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferReply {
    /// One piece was stored: one more may come.
    Piece,
    /// These are missing; empty: none any more.
    NeedKeys(Vec<Key>),
    /// Complete, validated and durable.
    Sealed(EpochRef),
    /// Not taken; the connection stays usable.
    Rejected {
        /// Epoch.
        at: EpochRef,
        /// Why.
        reason: String,
        /// Trying the same epoch again may help.
        retry: bool,
    },
}

/// An operator's order, passed on to the node that can carry it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Switch an application that runs at the receiver.
    Switch {
        /// Application.
        app: String,
        /// Node; none: the first stand-by that can.
        to: Option<String>,
    },
    /// Move everything away from the receiver.
    Drain,
    /// What runs at the receiver?
    Describe {
        /// Application.
        app: String,
    },
}

/// Answer to an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderReply {
    /// Still at work (sent at least every second).
    Working,
    /// Done: node and epoch that it runs from.
    Switched {
        /// Node.
        node: String,
        /// Epoch.
        epoch: u64,
        /// From the old owner's park to the commit, microseconds.
        pause_us: u64,
    },
    /// Everything was moved: the applications.
    Drained(Vec<String>),
    /// Not done.
    Failed(String),
    /// What runs here.
    Described {
        /// Its pid, 0: it does not run here.
        real_pid: u32,
        /// What could not be kept when it was recreated.
        remarks: Vec<String>,
    },
}
