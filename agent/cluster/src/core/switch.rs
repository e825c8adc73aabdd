//! Planned switches: the owner parks, hands its last epoch over, and only then lets the other run.
//!
//! ```text
//! old owner                                   new owner
//!   FinalEpoch: park, cut, replicate  ------>   (sealed)
//!   SwitchPrepare ------------------------->   Prepare: recreate, parked
//!                 <-------------------------   SwitchReady
//!   promise to the new owner, durable: commit point; never runs this incarnation again
//!   SwitchCommit -------------------------->   vote for itself, durable; Activate
//!                 <-------------------------   Beat(Active, next incarnation)
//!   StopInstance
//! ```
//!
//! Before the commit point either side may give up and the old owner runs on. After it, an old owner that hears
//! nothing stays parked and, `failover_ms` later, tries to reclaim.

use holo_api::peer::{AppMsg, Beat, BeatState, EpochRef, Member, Token, VoteKind, VoteRequest};

use super::{
    Action, AppCore, Role,
    election::{Candidate, Stage},
};

/// One attempt to hand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    /// The other side.
    pub(super) peer: Member,
    /// Incarnation to come.
    pub(super) term: u64,
    /// When the old owner began it, by its clock: its name.
    pub(super) order: Token,
}

/// At the old owner.
#[derive(Debug)]
pub(super) struct SwitchOut {
    pub(super) to: Member,
    stage: OutStage,
    until_ms: u64,
    again_ms: u64,
}

#[derive(Clone, Copy, Debug)]
enum OutStage {
    /// Takes and sends the last epoch.
    Cutting { number: u64 },
    /// The new owner recreates.
    Preparing { attempt: Attempt, sealed: EpochRef },
    /// Given away.
    Committed { attempt: Attempt, ready: Token },
}

/// At the new owner.
#[derive(Debug)]
pub(super) struct SwitchIn {
    attempt: Attempt,
    sealed: EpochRef,
    /// First time that we said to be ready.
    ready_ms: Option<u64>,
    until_ms: u64,
}

impl SwitchOut {
    pub(super) fn is_committed(&self, incarnation: u64) -> bool {
        matches!(self.stage, OutStage::Committed { attempt, .. } if attempt.term == incarnation)
    }

    fn is(&self, other: Attempt) -> bool {
        match self.stage {
            OutStage::Cutting { .. } => false,
            OutStage::Preparing { attempt, .. } | OutStage::Committed { attempt, .. } => attempt == other,
        }
    }
}

impl AppCore {
    pub(super) fn on_switch_to(&mut self, now_ms: u64, to: Member) {
        let refused = match &self.role {
            Role::Owner(_) if to == self.me => Some("it runs here already"),
            Role::Owner(_) if to as usize >= self.members() => Some("no such member"),
            Role::Owner(o) if o.switch.is_some() => Some("a switch is under way"),
            Role::Owner(o) if o.fenced => Some("the application is fenced: no contact with its nodes"),
            Role::Owner(o) if o.evidence[to as usize] + self.timing.lease_ms <= now_ms => {
                Some("the node does not answer")
            }
            Role::Owner(_) => None,
            Role::Standby(_) | Role::Candidate(_) | Role::Ended { .. } => Some("it does not run here"),
        };
        if let Some(why) = refused {
            self.out.push(Action::SwitchEnded(Err(why.to_owned())));
            return;
        }
        let until_ms = now_ms + self.timing.switch_ms_max;
        self.attempts += 1;
        let number = self.attempts;
        if let Role::Owner(owner) = &mut self.role {
            let stage = OutStage::Cutting { number };
            owner.switch = Some(SwitchOut { to, stage, until_ms, again_ms: now_ms });
        }
        self.next_beat_ms = now_ms;
        self.out.push(Action::FinalEpoch { to, attempt: number });
        let name = self.name(to).to_owned();
        self.note(format!("planned switch to {name}"));
    }

    pub(super) fn on_final_epoch(&mut self, now_ms: u64, cut: u64, outcome: Result<EpochRef, String>) {
        let order = self.token(now_ms);
        let Role::Owner(owner) = &mut self.role else { return };
        let term = owner.seen_promised.max(self.record.promised) + 1;
        let ours = |s: &&mut SwitchOut| matches!(s.stage, OutStage::Cutting { number } if number == cut);
        let Some(switch) = owner.switch.as_mut().filter(ours) else { return };
        match outcome {
            Ok(sealed) => {
                let attempt = Attempt { peer: switch.to, term, order };
                switch.stage = OutStage::Preparing { attempt, sealed };
                switch.again_ms = now_ms;
                self.held = sealed;
                self.tick_switch(now_ms);
            }
            Err(why) => self.end_switch(Err(why)),
        }
    }

    pub(super) fn tick_switch(&mut self, now_ms: u64) {
        let pause_ms = 2 * self.timing.heartbeat_ms;
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(switch) = &mut owner.switch else { return };
        if now_ms >= switch.until_ms {
            return self.end_switch(Err("no answer in time".to_owned()));
        }
        if now_ms < switch.again_ms {
            return;
        }
        switch.again_ms = now_ms + pause_ms;
        let to = switch.to;
        match switch.stage {
            OutStage::Cutting { .. } => {}
            OutStage::Preparing { attempt: Attempt { term, order, .. }, sealed } => {
                self.send(to, AppMsg::SwitchPrepare { term, sealed, order });
            }
            OutStage::Committed { attempt: Attempt { term, order, .. }, ready } => {
                self.send(to, AppMsg::SwitchCommit { term, order, token: ready });
            }
        }
    }

    /// The commit point of a planned switch.
    pub(super) fn on_switch_ready(&mut self, now_ms: u64, attempt: Attempt, ready: Token) {
        let until_ms = now_ms + self.timing.failover_ms;
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(switch) = owner.switch.as_mut().filter(|s| s.is(attempt)) else { return };
        match switch.stage {
            OutStage::Preparing { .. } => {}
            // A later "ready" must not stretch the promise: it is dated with the one that we committed on.
            OutStage::Cutting { .. } | OutStage::Committed { .. } => return,
        }
        switch.stage = OutStage::Committed { attempt, ready };
        switch.until_ms = until_ms;
        // From here on the instance is parked for good, unless a later incarnation is reclaimed.
        owner.fenced = true;
        let Attempt { peer, term, order } = attempt;
        self.record.promised = term;
        self.record.promised_to = Some(peer);
        self.heard.granted_ms = now_ms;
        self.heard.vote_ms = now_ms;
        self.persist();
        self.out.push(Action::Fence);
        self.send(peer, AppMsg::SwitchCommit { term, order, token: ready });
    }

    pub(super) fn on_switch_refused(&mut self, now_ms: u64, attempt: Attempt, reason: String) {
        let Role::Owner(owner) = &self.role else { return };
        let Some(switch) = owner.switch.as_ref().filter(|s| s.is(attempt)) else { return };
        if switch.is_committed(attempt.term) {
            // Void at the only node that could have used the promise: no need to wait before reclaiming.
            self.heard.granted_ms = now_ms.saturating_sub(self.timing.failover_ms);
        }
        self.end_switch(Err(reason));
    }

    /// Ends a switch that was ordered here, if one is under way.
    pub(super) fn end_switch(&mut self, outcome: Result<Member, String>) {
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(switch) = owner.switch.take() else { return };
        let fenced = owner.fenced;
        if outcome.is_err() {
            match switch.stage {
                OutStage::Preparing { attempt, .. } => {
                    self.send(switch.to, AppMsg::SwitchAbort { order: attempt.order });
                }
                OutStage::Cutting { .. } | OutStage::Committed { .. } => {}
            }
            if !fenced {
                self.out.push(Action::Unfence);
            }
        }
        self.next_beat_ms = 0;
        self.out.push(Action::SwitchEnded(outcome));
    }

    pub(super) fn on_switch_prepare(&mut self, now_ms: u64, attempt: Attempt, sealed: EpochRef) {
        let Attempt { peer, term, order } = attempt;
        let used = self.record.promised == term && self.record.promised_to == Some(self.me);
        if self.record.incarnation >= term || used {
            // An echo of an attempt that went on; "refused" would be a lie.
            return;
        }
        let fits = self.record.owner == Some(peer) && term > self.record.promised && self.sealed() >= sealed;
        let Role::Standby(standby) = &mut self.role else {
            return self.refuse_switch(attempt, "not a stand-by");
        };
        if let Some(current) = standby.switching.as_ref().filter(|s| s.attempt == attempt) {
            if current.ready_ms.is_some() {
                let token = self.token(now_ms);
                self.send(peer, AppMsg::SwitchReady { term, order, token });
            }
            return;
        }
        if !fits {
            return self.refuse_switch(attempt, "does not hold that epoch, or promised otherwise");
        }
        self.drop_switching();
        let until_ms = now_ms + 2 * self.timing.switch_ms_max;
        if let Role::Standby(standby) = &mut self.role {
            standby.switching = Some(SwitchIn { attempt, sealed, ready_ms: None, until_ms });
        }
        self.out.push(Action::Prepare { term, from: sealed });
    }

    /// To be sent only if this attempt can never be used here any more.
    fn refuse_switch(&mut self, attempt: Attempt, why: &str) {
        let Attempt { peer, term, order } = attempt;
        self.send(peer, AppMsg::SwitchRefused { term, order, reason: why.to_owned() });
    }

    pub(super) fn on_switch_prepared(&mut self, now_ms: u64, term: u64, outcome: Result<(), String>) {
        let token = self.token(now_ms);
        let Role::Standby(standby) = &mut self.role else { return };
        let Some(switching) = standby.switching.as_mut().filter(|s| s.attempt.term == term) else { return };
        let attempt = switching.attempt;
        match outcome {
            Ok(()) => {
                switching.ready_ms = Some(now_ms);
                self.send(attempt.peer, AppMsg::SwitchReady { term, order: attempt.order, token });
            }
            Err(why) => {
                standby.switching = None;
                self.refuse_switch(attempt, &why);
            }
        }
    }

    pub(super) fn on_switch_commit(&mut self, now_ms: u64, attempt: Attempt, ready: Token) {
        let Attempt { peer, term, .. } = attempt;
        // Used already, or about to be: an echo.
        if self.record.incarnation >= term || matches!(&self.role, Role::Candidate(c) if c.term == term) {
            return;
        }
        let date = self.date(now_ms, ready);
        let switching = match &self.role {
            Role::Standby(standby) => standby.switching.as_ref(),
            Role::Owner(_) | Role::Candidate(_) | Role::Ended { .. } => None,
        };
        let current = switching.filter(|s| s.attempt == attempt);
        let usable = current.filter(|s| s.ready_ms.is_some_and(|ready| date >= Some(ready)));
        let (Some(switching), Some(date)) = (usable, date) else {
            if current.is_some() {
                self.drop_switching();
            }
            return self.refuse_switch(attempt, "the preparation is gone");
        };
        let mut votes = vec![0; self.members()];
        votes[self.me as usize] = now_ms;
        votes[peer as usize] = date;
        let sealed = switching.sealed;
        self.vote_for_self(now_ms, term);
        self.role = Role::Candidate(Candidate {
            term,
            stage: Stage::Voting(VoteKind::Handover),
            votes,
            needed: self.votes_needed(),
            from: sealed,
            until_ms: now_ms + self.timing.lease_ms,
            failures: 0,
            prepared: true,
        });
        self.commit_if_ready(now_ms);
        if matches!(self.role, Role::Candidate(_)) {
            let token = self.token(now_ms);
            let request = VoteRequest { term, kind: VoteKind::Handover, sealed, token };
            for to in self.others().filter(|m| *m != peer) {
                self.send(to, AppMsg::VoteRequest(request));
            }
        }
    }

    pub(super) fn on_switch_abort(&mut self, from: Member, order: Token) {
        let Role::Standby(standby) = &self.role else { return };
        if standby.switching.as_ref().is_some_and(|s| s.attempt.peer == from && s.attempt.order == order) {
            self.drop_switching();
        }
    }

    /// A later beat of the old owner that speaks of no switch: it has given up (or restarted).
    pub(super) fn cancel_switching(&mut self, from: Member, beat: &Beat) {
        let Role::Standby(standby) = &self.role else { return };
        let Some(s) = &standby.switching else { return };
        let order = s.attempt.order;
        let later = beat.token.boot != order.boot || beat.token.sent_ms > order.sent_ms;
        if s.attempt.peer != from || (beat.state != BeatState::Switching && later) {
            self.drop_switching();
        }
    }

    pub(super) fn tick_switching(&mut self, now_ms: u64) {
        let Role::Standby(standby) = &self.role else { return };
        if standby.switching.as_ref().is_some_and(|s| now_ms >= s.until_ms) {
            self.drop_switching();
        }
    }
}
