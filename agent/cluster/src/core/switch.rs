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
    Cutting,
    /// The new owner recreates.
    Preparing { term: u64, sealed: EpochRef },
    /// Given away.
    Committed { term: u64, ready: Token },
}

/// At the new owner.
#[derive(Debug)]
pub(super) struct SwitchIn {
    from: Member,
    term: u64,
    sealed: EpochRef,
    /// The order's date at the old owner.
    ordered: Token,
    /// First time that we said to be ready.
    ready_ms: Option<u64>,
    until_ms: u64,
}

impl SwitchOut {
    pub(super) fn is_committed(&self, incarnation: u64) -> bool {
        matches!(self.stage, OutStage::Committed { term, .. } if term == incarnation)
    }
}

impl AppCore {
    pub(super) fn on_switch_to(&mut self, now_ms: u64, to: Member) {
        let refuse = |why: &str| Some(Action::SwitchEnded(Err(why.to_owned())));
        let refused = match &self.role {
            Role::Owner(_) if to == self.me => refuse("it runs here already"),
            Role::Owner(_) if to as usize >= self.members() => refuse("no such member"),
            Role::Owner(o) if o.switch.is_some() => refuse("a switch is under way"),
            Role::Owner(o) if o.fenced => refuse("the application is fenced: no contact with its nodes"),
            Role::Owner(o) if o.evidence[to as usize] + self.timing.lease_ms <= now_ms => {
                refuse("the node does not answer")
            }
            Role::Owner(_) => None,
            Role::Standby(_) | Role::Candidate(_) | Role::Ended { .. } => refuse("it does not run here"),
        };
        if let Some(refused) = refused {
            self.out.push(refused);
            return;
        }
        let until_ms = now_ms + self.timing.switch_ms_max;
        if let Role::Owner(owner) = &mut self.role {
            owner.switch = Some(SwitchOut { to, stage: OutStage::Cutting, until_ms, again_ms: now_ms });
        }
        self.next_beat_ms = now_ms;
        self.out.push(Action::FinalEpoch { to });
        let name = self.name(to).to_owned();
        self.note(format!("planned switch to {name}"));
    }

    pub(super) fn on_final_epoch(&mut self, now_ms: u64, outcome: Result<EpochRef, String>) {
        let highest = match &self.role {
            Role::Owner(o) => o.seen_promised.max(self.record.promised),
            Role::Standby(_) | Role::Candidate(_) | Role::Ended { .. } => return,
        };
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(switch) = owner.switch.as_mut().filter(|s| matches!(s.stage, OutStage::Cutting)) else {
            return;
        };
        match outcome {
            Ok(sealed) => {
                switch.stage = OutStage::Preparing { term: highest + 1, sealed };
                switch.again_ms = now_ms;
                self.held = sealed;
                self.tick_switch(now_ms);
            }
            Err(why) => self.end_switch(Err(why)),
        }
    }

    pub(super) fn tick_switch(&mut self, now_ms: u64) {
        let token = self.token(now_ms);
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
            OutStage::Cutting => {}
            OutStage::Preparing { term, sealed } => {
                self.send(to, AppMsg::SwitchPrepare { term, sealed, token });
            }
            OutStage::Committed { term, ready } => {
                self.send(to, AppMsg::SwitchCommit { term, token: ready });
            }
        }
    }

    pub(super) fn on_switch_ready(&mut self, now_ms: u64, from: Member, term: u64, ready: Token) {
        let until_ms = now_ms + self.timing.failover_ms;
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(switch) = owner.switch.as_mut().filter(|s| s.to == from) else { return };
        let first = match switch.stage {
            OutStage::Preparing { term: ours, .. } if ours == term => true,
            OutStage::Committed { term: ours, .. } if ours == term => false,
            OutStage::Cutting | OutStage::Preparing { .. } | OutStage::Committed { .. } => return,
        };
        // A later "ready" must not stretch the promise: it is dated with the one that we committed on.
        if first {
            switch.stage = OutStage::Committed { term, ready };
            switch.until_ms = until_ms;
            // From here on the instance is parked for good, unless the incarnation is reclaimed.
            owner.fenced = true;
            self.record.promised = term;
            self.record.promised_to = Some(from);
            self.heard.granted_ms = now_ms;
            self.heard.vote_ms = now_ms;
            self.persist();
            self.out.push(Action::Fence);
            self.send(from, AppMsg::SwitchCommit { term, token: ready });
        }
    }

    pub(super) fn on_switch_refused(&mut self, now_ms: u64, from: Member, term: u64, reason: String) {
        let Role::Owner(owner) = &self.role else { return };
        let Some(switch) = owner.switch.as_ref().filter(|s| s.to == from) else { return };
        match switch.stage {
            OutStage::Preparing { term: ours, .. } if ours == term => self.end_switch(Err(reason)),
            OutStage::Committed { term: ours, .. } if ours == term => {
                // Void at the only node that could have used the promise.
                self.heard.granted_ms = now_ms.saturating_sub(self.timing.failover_ms);
                self.end_switch(Err(reason));
            }
            OutStage::Cutting | OutStage::Preparing { .. } | OutStage::Committed { .. } => {}
        }
    }

    /// Ends a switch that was ordered here, if one is under way.
    pub(super) fn end_switch(&mut self, outcome: Result<Member, String>) {
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(switch) = owner.switch.take() else { return };
        let fenced = owner.fenced;
        if outcome.is_err() {
            match switch.stage {
                OutStage::Preparing { term, .. } => self.send(switch.to, AppMsg::SwitchAbort { term }),
                OutStage::Cutting | OutStage::Committed { .. } => {}
            }
            if !fenced {
                self.out.push(Action::Unfence);
            }
        }
        self.next_beat_ms = 0;
        self.out.push(Action::SwitchEnded(outcome));
    }

    pub(super) fn on_switch_prepare(
        &mut self,
        now_ms: u64,
        from: Member,
        term: u64,
        sealed: EpochRef,
        token: Token,
    ) {
        let until_ms = now_ms + 2 * self.timing.switch_ms_max;
        let fits = self.record.owner == Some(from) && term > self.record.promised && self.sealed() >= sealed;
        let current = match &mut self.role {
            Role::Standby(standby) => standby.switching.as_mut(),
            Role::Owner(_) | Role::Candidate(_) | Role::Ended { .. } => {
                return self.refuse_switch(from, term, "not a stand-by");
            }
        };
        if let Some(current) = current
            && current.from == from
            && current.term == term
            && current.ordered.boot == token.boot
        {
            if current.ready_ms.is_some() {
                let token = self.token(now_ms);
                self.send(from, AppMsg::SwitchReady { term, token });
            }
            return;
        }
        if !fits {
            return self.refuse_switch(from, term, "does not hold that epoch, or promised otherwise");
        }
        self.drop_switching();
        if let Role::Standby(standby) = &mut self.role {
            let switching = SwitchIn { from, term, sealed, ordered: token, ready_ms: None, until_ms };
            standby.switching = Some(switching);
        }
        self.out.push(Action::Prepare { term, from: sealed });
    }

    fn refuse_switch(&mut self, to: Member, term: u64, why: &str) {
        self.send(to, AppMsg::SwitchRefused { term, reason: why.to_owned() });
    }

    pub(super) fn on_switch_prepared(&mut self, now_ms: u64, term: u64, outcome: Result<(), String>) {
        let token = self.token(now_ms);
        let Role::Standby(standby) = &mut self.role else { return };
        let Some(switching) = standby.switching.as_mut().filter(|s| s.term == term) else { return };
        let from = switching.from;
        match outcome {
            Ok(()) => {
                switching.ready_ms = Some(now_ms);
                self.send(from, AppMsg::SwitchReady { term, token });
            }
            Err(why) => {
                standby.switching = None;
                self.refuse_switch(from, term, &why);
            }
        }
    }

    pub(super) fn on_switch_commit(&mut self, now_ms: u64, from: Member, term: u64, ready: Token) {
        if self.record.incarnation >= term {
            return;
        }
        let date = self.date(now_ms, ready);
        let switching = match &self.role {
            Role::Standby(standby) => standby.switching.as_ref(),
            Role::Owner(_) | Role::Candidate(_) | Role::Ended { .. } => None,
        };
        let usable = switching
            .filter(|s| s.from == from && s.term == term && s.ready_ms.is_some_and(|r| date >= Some(r)));
        let (Some(switching), Some(date)) = (usable, date) else {
            // A candidate that already collects votes for it is no reason to call it void.
            if !matches!(&self.role, Role::Candidate(c) if c.term == term) {
                self.refuse_switch(from, term, "the preparation is gone");
            }
            return;
        };
        let mut votes = vec![0; self.members()];
        votes[self.me as usize] = now_ms;
        votes[from as usize] = date;
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
            for to in self.others().filter(|m| *m != from) {
                self.send(to, AppMsg::VoteRequest(request));
            }
        }
    }

    pub(super) fn on_switch_abort(&mut self, from: Member, term: u64) {
        let Role::Standby(standby) = &self.role else { return };
        if standby.switching.as_ref().is_some_and(|s| s.from == from && s.term == term) {
            self.drop_switching();
        }
    }

    /// A later beat of the old owner that speaks of no switch: it has given up (or restarted).
    pub(super) fn cancel_switching(&mut self, from: Member, beat: &Beat) {
        let Role::Standby(standby) = &self.role else { return };
        let Some(s) = &standby.switching else { return };
        let later = beat.token.boot != s.ordered.boot || beat.token.sent_ms > s.ordered.sent_ms;
        if s.from != from || (beat.state != BeatState::Switching && later) {
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
