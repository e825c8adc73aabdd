//! Who runs an application: a pure state machine, one per application and node.
//!
//! [`AppCore::step`] takes what happened and the time and returns what must be done. It knows no sockets, no
//! threads, no clock and no disk, so that thousands of histories are simulated in a second (`tests/sim`).
//!
//! ```text
//!            launch                     lease runs out
//!   (none) ---------> Owner, running <------------------> Owner, fenced --- newer incarnation --> Standby
//!                       ^      |         lease granted          |
//!              Activate |      | commit of a planned switch     | reclaimed: a majority promises again
//!                       |      v                                v
//!   Standby --------> Candidate: canvass -> vote -> prepare   Owner, running, next incarnation
//!      ^  owner silent           |
//!      +-------------------------+  heard the owner again, no majority, preparation failed
//! ```
//!
//! # Why at most one node runs it
//!
//! Let W be a majority of the members, and T the votes that a take-over needs: T = W, except that with two
//! members the stand-by alone decides (T = 1) and the owner needs both (W = 2). Any W and any T members have one
//! in common, call it V.
//!
//! 1. A running owner holds *evidence* from W members (itself included), each not older than `lease_ms`:
//!    evidence from V, dated s, says that V will neither vote nor stand before it has counted `failover_ms`
//!    from a moment that is not before s. A granted beat is dated with its *sending* by the owner; V counts
//!    from its *receipt*, which is later.
//! 2. When evidence runs out the owner fences, done `fence_ms_max` and two ticks later at most, and
//!    [`Timing::validate`] makes that earlier than V's count even if all clocks drift against us.
//! 3. If V has voted before it was asked for a grant, it refuses the grant: the promise is newer.
//! 4. A promise is durable before it is sent, is given once per incarnation, and the promises of two winners
//!    of one incarnation would have a member in common. With two members only the one that does not own the
//!    last incarnation can win alone, and only after it was in contact with that owner in this run of its agent.
//! 5. A *refused connection* dates evidence too, but only while older evidence from the same member is still
//!    valid: that member had then not voted before its agent died, and its next run counts `failover_ms` from
//!    its start before it votes.
//! 6. An owner that restarts begins fenced and has no evidence. One that gave its promise to another (planned
//!    switch) never resumes its incarnation; it may *reclaim* the next one with W promises.
//!
//! Until the first stand-by was armed (it answers and holds an epoch) nobody can take over, so no lease is
//! needed: an application alone on its node never stops because of the network.

mod config;
mod election;
mod owner;
mod standby;
mod switch;
mod types;

use holo_api::peer::{AppMsg, BeatState, EpochRef, Member, Token};

pub use config::{Timing, TimingError};
pub use types::{Action, Event, Record, RoleView};

use election::Candidate;
use owner::Owner;
use standby::Standby;
use switch::Attempt;

/// More incarnations than an application reaches while its nodes do not hear each other.
const FORCED_STEP: u64 = 1 << 20;

/// The failover state of one application on one node.
#[derive(Debug)]
pub struct AppCore {
    timing: Timing,
    me: Member,
    boot: u64,
    record: Record,
    /// Newest epoch here; see [`AppCore::sealed`].
    held: EpochRef,
    role: Role,
    heard: Heard,
    next_beat_ms: u64,
    /// The base up to which [`Action::SetAside`] was asked for.
    aside: Option<EpochRef>,
    /// Counts planned switches.
    attempts: u64,
    out: Vec<Action>,
}

#[derive(Debug)]
enum Role {
    Owner(Owner),
    Standby(Standby),
    Candidate(Candidate),
    Ended { told: Vec<bool> },
}

/// What this run of the agent has promised by answering; never persisted.
#[derive(Debug)]
struct Heard {
    /// Last time that a lease was granted or a vote given; at first the start of the agent.
    granted_ms: u64,
    /// The same for votes and for grants to a candidate.
    vote_ms: u64,
    /// An owner armed us, in this run of the agent.
    eligible: bool,
    /// Epoch that we must hold before we stand, set at first contact.
    need_epoch: Option<u64>,
}

/// How the application is found when the agent starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No process of it lives here.
    Nothing,
    /// Its instance lives here.
    Instance,
}

impl AppCore {
    /// A freshly launched application: `me` owns the next incarnation after `after`, the highest that this
    /// node knows of an earlier use of the name (0: none).
    /// The first step makes the record durable; nothing may run before.
    pub fn launch(
        timing: Timing,
        boot: u64,
        now_ms: u64,
        (run, after): (u64, u64),
        members: Vec<String>,
        me: Member,
    ) -> AppCore {
        let record = Record {
            run,
            members,
            incarnation: after + 1,
            owner: Some(me),
            base: Some(EpochRef::default()),
            promised: after + 1,
            promised_to: Some(me),
            guarded: false,
            ended: false,
        };
        let mut core = AppCore::bare(timing, boot, now_ms, me, record);
        core.out.push(Action::Persist(core.record.clone()));
        core.out.push(Action::Lease(None));
        core.role = Role::Owner(Owner::new(core.members()));
        core
    }

    /// An application that a peer owns and that was not known here.
    pub fn adopt(
        timing: Timing,
        boot: u64,
        now_ms: u64,
        run: u64,
        members: Vec<String>,
        me: Member,
    ) -> AppCore {
        let record = Record {
            run,
            members,
            incarnation: 0,
            owner: None,
            base: None,
            promised: 0,
            promised_to: None,
            guarded: false,
            ended: false,
        };
        let mut core = AppCore::bare(timing, boot, now_ms, me, record);
        core.out.push(Action::Persist(core.record.clone()));
        core
    }

    /// An application that this node remembers. `sealed` is the newest epoch that its store holds.
    pub fn recover(
        timing: Timing,
        boot: u64,
        now_ms: u64,
        record: Record,
        me: Member,
        sealed: EpochRef,
        found: Found,
    ) -> AppCore {
        let mut core = AppCore::bare(timing, boot, now_ms, me, record);
        core.held = sealed;
        let owned = core.record.owner == Some(me) && !core.record.ended;
        match found {
            Found::Instance if owned => core.recover_owner(),
            // A newer owner is known, or it was declared ended: this instance is of the past.
            Found::Instance => core.out.push(Action::StopInstance),
            Found::Nothing => {}
        }
        if core.record.ended {
            core.role = Role::Ended { told: vec![false; core.members()] };
        }
        core
    }

    fn bare(timing: Timing, boot: u64, now_ms: u64, me: Member, record: Record) -> AppCore {
        assert!((me as usize) < record.members.len(), "this node is one of the members");
        AppCore {
            timing,
            me,
            boot,
            record,
            held: EpochRef::default(),
            role: Role::Standby(Standby::default()),
            heard: Heard { granted_ms: now_ms, vote_ms: now_ms, eligible: false, need_epoch: None },
            next_beat_ms: now_ms,
            aside: None,
            attempts: 0,
            out: Vec::new(),
        }
    }

    /// The one entry: `now_ms` is a monotonic clock that never stops (suspended time counts).
    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        // First of all: evidence that has run out must not be saved by what is only read now.
        self.expire(now_ms);
        match event {
            Event::Tick => {}
            Event::Message { from, msg } => self.on_message(now_ms, from, msg),
            Event::PeerRefused { peer, attempt_ms } => self.on_refused(now_ms, peer, attempt_ms),
            Event::Sealed(at) => {
                self.held = at;
                self.aside = None;
            }
            Event::Prepared { term, outcome } => self.on_prepared(now_ms, term, outcome),
            Event::FinalEpoch { attempt, outcome } => self.on_final_epoch(now_ms, attempt, outcome),
            Event::SwitchTo(to) => self.on_switch_to(now_ms, to),
            Event::Claim { force } => self.on_claim(now_ms, force),
            Event::Ended => self.on_ended(),
            Event::InstanceLost => self.on_instance_lost(),
        }
        self.tick(now_ms);
        std::mem::take(&mut self.out)
    }

    fn on_message(&mut self, now_ms: u64, from: Member, msg: AppMsg) {
        if from == self.me || from as usize >= self.members() {
            return;
        }
        match msg {
            AppMsg::Beat(beat) => self.on_beat(now_ms, from, &beat),
            AppMsg::Ack(ack) => self.on_ack(now_ms, from, &ack),
            AppMsg::VoteRequest(request) => self.on_vote_request(now_ms, from, &request),
            AppMsg::VoteReply(reply) => self.on_vote_reply(now_ms, from, &reply),
            AppMsg::SwitchPrepare { term, sealed, order } => {
                self.on_switch_prepare(now_ms, Attempt { peer: from, term, order }, sealed);
            }
            AppMsg::SwitchReady { term, order, token } => {
                self.on_switch_ready(now_ms, Attempt { peer: from, term, order }, token);
            }
            AppMsg::SwitchRefused { term, order, reason } => {
                self.on_switch_refused(now_ms, Attempt { peer: from, term, order }, reason);
            }
            AppMsg::SwitchCommit { term, order, token } => {
                self.on_switch_commit(now_ms, Attempt { peer: from, term, order }, token);
            }
            AppMsg::SwitchAbort { order } => self.on_switch_abort(from, order),
        }
    }

    fn tick(&mut self, now_ms: u64) {
        if let Some(base) = self.record.base
            && self.is_fork(self.held)
            && self.aside != Some(base)
            && self.record.owner != Some(self.me)
        {
            self.aside = Some(base);
            self.out.push(Action::SetAside { base });
        }
        match &self.role {
            Role::Owner(_) => self.tick_owner(now_ms),
            Role::Standby(_) => self.tick_standby(now_ms),
            Role::Candidate(_) => self.tick_candidate(now_ms),
            Role::Ended { .. } => self.tick_ended(now_ms),
        }
    }

    /// Taken by an older incarnation after the epoch that its successor started from (or nobody told which).
    fn is_fork(&self, at: EpochRef) -> bool {
        at.incarnation < self.record.incarnation && self.record.base.is_none_or(|base| at > base)
    }

    fn on_ended(&mut self) {
        if matches!(self.role, Role::Owner(_)) || self.record.owner == Some(self.me) {
            self.abort_candidacy();
            self.end_switch(Err("the application ended".to_owned()));
            self.become_ended();
        }
    }

    fn become_ended(&mut self) {
        self.record.ended = true;
        self.persist();
        self.role = Role::Ended { told: vec![false; self.members()] };
        self.next_beat_ms = 0;
        self.note("the application ended");
    }

    /// Tells until everybody knows; seldom, since nothing hurries.
    fn tick_ended(&mut self, now_ms: u64) {
        let Role::Ended { told } = &self.role else { return };
        if self.record.owner != Some(self.me) || now_ms < self.next_beat_ms {
            return;
        }
        let missing: Vec<Member> = self.others().filter(|m| !told[*m as usize]).collect();
        self.next_beat_ms = now_ms + self.timing.failover_ms;
        for to in missing {
            self.send_beat(now_ms, to, BeatState::Ended, self.record.incarnation);
        }
    }

    fn on_instance_lost(&mut self) {
        if matches!(self.role, Role::Owner(_)) {
            self.end_switch(Err("the instance is gone".to_owned()));
            self.role = Role::Standby(Standby::default());
            self.note("the instance is gone; waiting for a successor");
        }
    }

    /// Between the last incarnation known and one that the operator forces. Another node may run the application against
    /// his word, as an incarnation that was reached by steps of one: it must not be the same one, or neither would give way
    /// when they hear each other.
    fn forced_step(&self) -> u64 {
        FORCED_STEP + u64::from(self.me)
    }

    fn members(&self) -> usize {
        self.record.members.len()
    }

    fn others(&self) -> impl Iterator<Item = Member> + use<> {
        let me = self.me;
        (0..self.record.members.len() as Member).filter(move |m| *m != me)
    }

    /// Members whose evidence a running owner needs, itself included (W).
    fn majority(&self) -> usize {
        self.members() / 2 + 1
    }

    /// Votes that a take-over by a stand-by needs, its own included (T).
    fn votes_needed(&self) -> usize {
        if self.members() == 2 { 1 } else { self.majority() }
    }

    /// Until when evidence of these dates (0: none) from the others makes a majority with us.
    fn lease_until(&self, evidence: &[u64]) -> u64 {
        let mut dates: Vec<u64> = self.others().map(|m| evidence[m as usize]).collect();
        dates.sort_unstable_by(|a, b| b.cmp(a));
        match self.majority().checked_sub(2).map(|i| dates[i]) {
            None => u64::MAX,
            Some(0) => 0,
            Some(date) => date + self.timing.lease_ms,
        }
    }

    fn token(&self, now_ms: u64) -> Token {
        Token { boot: self.boot, sent_ms: now_ms }
    }

    /// The date in an answer, if it answers this run of the agent.
    fn date(&self, now_ms: u64, token: Token) -> Option<u64> {
        (token.boot == self.boot && token.sent_ms <= now_ms).then_some(token.sent_ms)
    }

    fn persist(&mut self) {
        self.out.push(Action::Persist(self.record.clone()));
    }

    fn note(&mut self, text: impl Into<String>) {
        self.out.push(Action::Note(text.into()));
    }

    fn send(&mut self, to: Member, msg: AppMsg) {
        self.out.push(Action::Send { to, msg });
    }

    fn name(&self, member: Member) -> &str {
        self.record.members.get(member as usize).map_or("?", String::as_str)
    }

    /// May an epoch of a peer be acknowledged? Not once this node has taken part in choosing what a successor
    /// starts from: it would be lost, and its owner would believe it safe. Ask again after the epoch is durable.
    pub fn accepts(&self, at: EpochRef) -> bool {
        let current = at.incarnation >= self.record.promised.max(self.record.incarnation);
        matches!(self.role, Role::Standby(_)) && self.record.owner != Some(self.me) && current
    }

    /// Does the store still hold epochs of a line that the cluster left?
    pub fn has_fork(&self) -> bool {
        self.is_fork(self.held)
    }

    /// Does this node own the application's instance, running or parked?
    pub fn is_owner(&self) -> bool {
        matches!(self.role, Role::Owner(_))
    }

    /// (Owner) Does this member know that it is to take over when we fall silent?
    pub fn is_armed(&self, member: Member) -> bool {
        match &self.role {
            Role::Owner(owner) => {
                let heard = owner.evidence.get(usize::from(member));
                self.record.guarded && heard.is_some_and(|date| *date >= owner.armed_ms)
            }
            Role::Standby(_) | Role::Candidate(_) | Role::Ended { .. } => false,
        }
    }

    /// Was a new use of the name's earlier life forgotten here, so that its record may be replaced?
    pub fn is_replaceable_by(&self, owner: Option<Member>) -> bool {
        match &self.role {
            Role::Ended { .. } => true,
            // The owner itself begins anew: its old instance is gone.
            Role::Standby(_) => {
                self.record.owner.is_none() || (owner.is_some() && self.record.owner == owner)
            }
            Role::Owner(_) | Role::Candidate(_) => false,
        }
    }

    /// What is remembered.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// This node's position among the members.
    pub fn me(&self) -> Member {
        self.me
    }

    /// What a candidate must at least start from to get our vote. What is about to be put aside stands for the
    /// epoch where it forked: this node held that one, too.
    fn demanded(&self) -> EpochRef {
        match self.record.base {
            Some(base) if self.is_fork(self.held) => base,
            Some(_) | None => self.held,
        }
    }

    /// Newest epoch here that a successor may start from: not one of a line that the cluster has left.
    pub fn sealed(&self) -> EpochRef {
        if self.is_fork(self.held) { EpochRef::default() } else { self.held }
    }

    /// Newest epoch that each member said to hold; only an owner knows. What it will put aside does not count.
    pub fn sealed_at(&self, member: Member) -> EpochRef {
        match &self.role {
            Role::Owner(owner) => {
                let held = owner.peer_sealed[member as usize];
                if self.is_fork(held) { EpochRef::default() } else { held }
            }
            Role::Standby(_) | Role::Candidate(_) | Role::Ended { .. } => EpochRef::default(),
        }
    }

    /// For display.
    pub fn view(&self) -> RoleView {
        match &self.role {
            Role::Owner(owner) => owner.view(&self.record),
            Role::Standby(_) => RoleView::Standby { eligible: self.heard.eligible },
            Role::Candidate(c) => RoleView::Candidate { term: c.term, preparing: c.is_preparing() },
            Role::Ended { .. } => RoleView::Ended,
        }
    }
}
