//! What goes into the failover core and what comes out of it.

use holo_api::peer::{AppMsg, EpochRef, Member};
use serde::{Deserialize, Serialize};

/// What a node must remember of an application across its own death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Random number of the launch.
    pub run: u64,
    /// Nodes in the configured order.
    pub members: Vec<String>,
    /// Newest incarnation known to run or to have run; 0: none.
    pub incarnation: u64,
    /// Its owner.
    pub owner: Option<Member>,
    /// Epoch that it started from, if known.
    pub base: Option<EpochRef>,
    /// Newest incarnation promised to a candidate.
    pub promised: u64,
    /// To whom.
    pub promised_to: Option<Member>,
    /// Under this incarnation a stand-by may take over: the owner needs its lease.
    pub guarded: bool,
    /// The application ended; nobody may run it.
    pub ended: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A message arrived.
    Message {
        /// Sender, by its certificate.
        from: Member,
        /// Message.
        msg: AppMsg,
    },
    /// The peer's host refused a connection: no agent listens there.
    PeerRefused {
        /// Peer.
        peer: Member,
        /// When the attempt *began*.
        attempt_ms: u64,
    },
    /// This node holds a new newest epoch, complete and durable.
    Sealed(EpochRef),
    /// [`Action::Prepare`] ended.
    Prepared {
        /// Its incarnation.
        term: u64,
        /// How.
        outcome: Result<(), String>,
    },
    /// [`Action::FinalEpoch`] ended: the application is parked and the new owner holds this last epoch.
    FinalEpoch {
        /// Repeated from the action: of two switches in a row the second must not believe the first's epoch.
        attempt: u64,
        /// How.
        outcome: Result<EpochRef, String>,
    },
    /// Order: switch to a member.
    SwitchTo(Member),
    /// Order: run the application here. With `force` the operator vouches that no other node runs it.
    Claim {
        /// Ask nobody.
        force: bool,
    },
    /// The application ended by itself or on order.
    Ended,
    /// The instance is gone though nobody ended it.
    InstanceLost,
}

/// What must be done, in this order. The core has already changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make this durable before anything that follows is done.
    Persist(Record),
    /// Send.
    Send {
        /// To.
        to: Member,
        /// Message.
        msg: AppMsg,
    },
    /// The instance may run until then; `None`: without limit. For a guard that outlives the agent.
    Lease(Option<u64>),
    /// Park the instance now; it must not run [`super::Timing::fence_ms_max`] later, whatever it takes.
    Fence,
    /// Let the parked instance run again.
    Unfence,
    /// End the instance for good, keep its epochs.
    StopInstance,
    /// Recreate the application from an epoch, parked.
    Prepare {
        /// For this incarnation.
        term: u64,
        /// From.
        from: EpochRef,
    },
    /// Forget what [`Action::Prepare`] made.
    AbortPrepare,
    /// Let what was prepared run: it is the active instance now.
    Activate {
        /// As.
        incarnation: u64,
        /// Started from.
        from: EpochRef,
    },
    /// The cluster went on from `base`: put aside, durably, what older incarnations sealed here after it, and
    /// tell the newest epoch that is left with [`Event::Sealed`].
    SetAside {
        /// Where the line that counts left ours.
        base: EpochRef,
    },
    /// Park the application, take its last epoch, bring it to that member; answer with [`Event::FinalEpoch`].
    FinalEpoch {
        /// New owner.
        to: Member,
        /// To be repeated in the answer.
        attempt: u64,
    },
    /// A switch that was ordered here ended.
    SwitchEnded(Result<Member, String>),
    /// Something for the log.
    Note(String),
}

/// What a node does with an application, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleView {
    /// Runs it; with the end of the lease, if one is needed.
    Active {
        /// Own clock.
        lease_until_ms: Option<u64>,
    },
    /// Holds it parked.
    Fenced {
        /// Why.
        why: &'static str,
    },
    /// Hands it over.
    Switching {
        /// To.
        to: Member,
    },
    /// Keeps its epochs.
    Standby {
        /// Will take over when the owner falls silent.
        eligible: bool,
    },
    /// Wants to run it.
    Candidate {
        /// As.
        term: u64,
        /// Elected; recreates it.
        preparing: bool,
    },
    /// It ended.
    Ended,
}
