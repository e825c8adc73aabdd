//! Candidates and votes.

use holo_api::peer::{AppMsg, BeatState, EpochRef, Member, VoteKind, VoteReply, VoteRequest};

use super::{Action, AppCore, Role, Standby};

#[derive(Debug)]
pub(super) struct Candidate {
    /// Incarnation that it wants.
    pub(super) term: u64,
    pub(super) stage: Stage,
    /// Date of each member's vote or later grant, by our clock; 0: none.
    pub(super) votes: Vec<u64>,
    /// Votes needed, our own included.
    pub(super) needed: usize,
    /// Epoch that it starts from.
    pub(super) from: EpochRef,
    /// Gives up then, unless elected.
    pub(super) until_ms: u64,
    pub(super) failures: u32,
    pub(super) prepared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Asks whether there would be a majority; disturbs nobody.
    Canvass,
    /// Asks for promises.
    Voting(VoteKind),
    /// Elected: recreates the application.
    Preparing,
}

impl Candidate {
    pub(super) fn is_preparing(&self) -> bool {
        self.stage == Stage::Preparing
    }

    pub(super) fn add_vote(&mut self, from: Member, date: u64) {
        let slot = &mut self.votes[from as usize];
        *slot = date.max(*slot);
    }

    fn elected(&self) -> bool {
        self.votes.iter().filter(|d| **d > 0).count() >= self.needed
    }

    fn kind(&self) -> VoteKind {
        match self.stage {
            Stage::Canvass => VoteKind::Canvass,
            Stage::Voting(kind) => kind,
            Stage::Preparing => VoteKind::Timeout,
        }
    }
}

impl AppCore {
    /// Becomes a candidate with this many votes needed, for an incarnation so far above the last.
    pub(super) fn stand(&mut self, now_ms: u64, needed: usize, step: u64) {
        self.drop_switching();
        let Role::Standby(standby) = &self.role else { return };
        let mut votes = vec![0; self.members()];
        votes[self.me as usize] = now_ms;
        let candidate = Candidate {
            term: self.record.promised.max(self.record.incarnation) + step,
            stage: Stage::Canvass,
            votes,
            needed,
            from: self.sealed(),
            until_ms: now_ms + self.timing.lease_ms,
            failures: standby.failures,
            prepared: false,
        };
        let term = candidate.term;
        self.role = Role::Candidate(candidate);
        if needed == 1 {
            // Our own vote decides: no promise is needed before the commit point, so that an owner that is
            // heard again until then just goes on.
            return self.prepare(now_ms);
        }
        self.note(format!("the owner is silent: asks for incarnation {term}"));
        self.next_beat_ms = now_ms + self.timing.heartbeat_ms;
        self.ask(now_ms);
    }

    fn ask(&mut self, now_ms: u64) {
        let Role::Candidate(c) = &self.role else { return };
        let token = self.token(now_ms);
        let request = VoteRequest { term: c.term, kind: c.kind(), sealed: c.from, token };
        for to in self.others() {
            self.send(to, AppMsg::VoteRequest(request));
        }
    }

    pub(super) fn vote_for_self(&mut self, now_ms: u64, term: u64) {
        self.record.promised = term;
        self.record.promised_to = Some(self.me);
        self.persist();
        self.heard.granted_ms = now_ms;
        self.heard.vote_ms = now_ms;
    }

    fn prepare(&mut self, now_ms: u64) {
        let Role::Candidate(c) = &mut self.role else { return };
        c.stage = Stage::Preparing;
        let (term, from) = (c.term, c.from);
        self.next_beat_ms = now_ms;
        self.out.push(Action::Prepare { term, from });
        self.note(format!("takes over as incarnation {term} from epoch {}", from.epoch));
    }

    pub(super) fn on_vote_reply(&mut self, now_ms: u64, from: Member, reply: &VoteReply) {
        if reply.incarnation > self.record.incarnation {
            return self.superseded(now_ms, reply.incarnation, reply.owner, reply.base);
        }
        if reply.kind == VoteKind::Reclaim {
            return self.on_reclaim_reply(now_ms, from, reply);
        }
        let Some(date) = self.date(now_ms, reply.token) else { return };
        let Role::Candidate(c) = &mut self.role else { return };
        if c.is_preparing() || reply.kind != c.kind() || reply.term != c.term {
            return;
        }
        if !reply.granted {
            // A term that is used up: the next attempt must be above it.
            if reply.promised >= c.term && c.stage == Stage::Canvass {
                c.term = reply.promised + 1;
                c.votes.fill(0);
                c.votes[self.me as usize] = now_ms;
                self.ask(now_ms);
            }
            return;
        }
        c.add_vote(from, date);
        if !c.elected() {
            return;
        }
        match c.stage {
            Stage::Canvass => {
                c.stage = Stage::Voting(VoteKind::Timeout);
                c.votes.fill(0);
                c.votes[self.me as usize] = now_ms;
                let term = c.term;
                self.vote_for_self(now_ms, term);
                self.ask(now_ms);
            }
            Stage::Voting(_) if c.prepared => self.commit_if_ready(now_ms),
            Stage::Voting(_) => self.prepare(now_ms),
            Stage::Preparing => {}
        }
    }

    pub(super) fn on_prepared(&mut self, now_ms: u64, term: u64, outcome: Result<(), String>) {
        match &mut self.role {
            Role::Candidate(c) if c.term == term && c.is_preparing() => match outcome {
                Ok(()) => {
                    c.prepared = true;
                    self.commit_if_ready(now_ms);
                }
                Err(why) => {
                    let failures = c.failures + 1;
                    let wait_ms = (self.timing.failover_ms << failures.min(5)).min(30_000);
                    let retry_ms = now_ms + wait_ms;
                    self.note(format!("cannot take over: {why}"));
                    self.role = Role::Standby(Standby { retry_ms, failures, ..Standby::default() });
                }
            },
            Role::Standby(_) => self.on_switch_prepared(now_ms, term, outcome),
            Role::Candidate(_) | Role::Owner(_) | Role::Ended { .. } => {}
        }
    }

    /// The commit point of a take-over.
    pub(super) fn commit_if_ready(&mut self, now_ms: u64) {
        let Role::Candidate(c) = &self.role else { return };
        if !c.prepared || !c.elected() {
            return;
        }
        // With a majority behind it, the new owner is under a lease from its first instruction on. A lone
        // survivor of two needs none: the other one can do nothing before we have been in contact with it.
        let guarded = c.needed > 1 && self.members() > 2;
        if guarded && now_ms >= self.lease_until(&c.votes) {
            return;
        }
        let (term, from, votes) = (c.term, c.from, c.votes.clone());
        self.activate(term, from, votes, guarded);
    }

    pub(super) fn tick_candidate(&mut self, now_ms: u64) {
        self.commit_if_ready(now_ms);
        let Role::Candidate(c) = &self.role else { return };
        let term = c.term;
        // Elected with a majority but without contact to it: others will be elected.
        let forgotten =
            c.needed > 1 && now_ms >= self.lease_until(&c.votes).saturating_add(self.timing.failover_ms);
        let over = if c.is_preparing() { forgotten } else { now_ms >= c.until_ms };
        if over {
            self.note(format!("gives up incarnation {term}: no majority"));
            self.abort_candidacy();
            let retry_ms = now_ms + self.timing.failover_ms / 2 + self.jitter_ms(now_ms);
            if let Role::Standby(standby) = &mut self.role {
                standby.retry_ms = retry_ms;
            }
            return;
        }
        if now_ms < self.next_beat_ms {
            return;
        }
        let preparing = c.is_preparing();
        self.next_beat_ms = now_ms + self.timing.heartbeat_ms;
        if !preparing {
            // A message may be lost, and a voter with a slower clock may not have waited long enough yet.
            self.ask(now_ms);
        } else {
            for to in self.others() {
                self.send_beat(now_ms, to, BeatState::Preparing, term);
            }
        }
    }

    /// Different on every node and at every time, so that candidates do not meet again and again.
    fn jitter_ms(&self, now_ms: u64) -> u64 {
        let mixed = (self.boot ^ now_ms).wrapping_add(u64::from(self.me)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) % self.timing.failover_ms
    }

    /// Back to stand-by from any stage before the commit point.
    pub(super) fn abort_candidacy(&mut self) {
        if let Role::Candidate(c) = &self.role {
            let failures = c.failures;
            if c.is_preparing() || c.prepared {
                self.out.push(Action::AbortPrepare);
            }
            self.role = Role::Standby(Standby { failures, ..Standby::default() });
        }
    }

    pub(super) fn on_vote_request(&mut self, now_ms: u64, from: Member, request: &VoteRequest) {
        let granted = self.would_vote(now_ms, from, request);
        if let Role::Owner(owner) = &mut self.role
            && request.kind != VoteKind::Canvass
        {
            owner.seen_promised = owner.seen_promised.max(request.term);
        }
        if granted && request.kind != VoteKind::Canvass {
            self.abort_candidacy();
            self.drop_switching();
            self.record.promised = request.term;
            self.record.promised_to = Some(from);
            self.persist();
            self.heard.granted_ms = now_ms;
            self.heard.vote_ms = now_ms;
            // Of two members the other one now owns what is to come, without us having been in contact.
            if self.members() == 2 {
                self.heard.eligible = false;
            }
        }
        let reply = VoteReply {
            term: request.term,
            kind: request.kind,
            granted,
            incarnation: self.record.incarnation,
            owner: self.record.owner,
            base: self.record.base,
            promised: self.record.promised,
            token: request.token,
        };
        self.send(from, AppMsg::VoteReply(reply));
    }

    fn would_vote(&self, now_ms: u64, from: Member, request: &VoteRequest) -> bool {
        match &self.role {
            Role::Standby(_) => {}
            Role::Candidate(c) if c.stage == Stage::Canvass => {
                // Of two that ask at the same time the better one must win, or both may lose.
                let better = c.from > request.sealed || (c.from == request.sealed && self.me < from);
                if request.kind == VoteKind::Canvass && better {
                    return false;
                }
            }
            Role::Owner(_) | Role::Candidate(_) | Role::Ended { .. } => return false,
        }
        let again = request.term == self.record.promised && self.record.promised_to == Some(from);
        if request.term <= self.record.incarnation || (request.term <= self.record.promised && !again) {
            return false;
        }
        let failover_ms = self.timing.failover_ms;
        let waited = again || now_ms >= self.heard.granted_ms + failover_ms;
        match request.kind {
            VoteKind::Canvass | VoteKind::Timeout => waited && request.sealed >= self.demanded(),
            // The owner itself has stopped and agreed; but only if nobody can have been elected in between.
            VoteKind::Handover => request.term == self.record.incarnation + 1 || waited,
            // The owner that we know; but not while a candidate that we voted for may be about to run.
            VoteKind::Reclaim => {
                let free = again || now_ms >= self.heard.vote_ms + failover_ms;
                self.record.owner == Some(from) && free
            }
        }
    }
}
