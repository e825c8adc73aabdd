//! The owner: beats, evidence, lease, fence, reclaim.

use holo_api::peer::{
    Ack, AppMsg, Beat, BeatState, EpochRef, Member, Token, VoteKind, VoteReply, VoteRequest,
};

use super::{Action, AppCore, Record, Role, RoleView, Standby, switch::SwitchOut};

#[derive(Debug)]
pub(super) struct Owner {
    /// The instance is parked because the lease ran out (or was given away).
    pub(super) fenced: bool,
    /// Date of the newest evidence of each member; 0: none.
    pub(super) evidence: Vec<u64>,
    /// Since then beats say that the stand-bys are armed: newer evidence of a member shows that it knows.
    pub(super) armed_ms: u64,
    pub(super) peer_sealed: Vec<EpochRef>,
    pub(super) switch: Option<SwitchOut>,
    /// Newest incarnation that anybody said to have promised.
    pub(super) seen_promised: u64,
    reclaim: Option<Reclaim>,
}

#[derive(Debug)]
struct Reclaim {
    term: u64,
    votes: Vec<u64>,
    again_ms: u64,
}

impl Owner {
    pub(super) fn new(members: usize) -> Owner {
        Owner {
            fenced: false,
            evidence: vec![0; members],
            armed_ms: 1,
            peer_sealed: vec![EpochRef::default(); members],
            switch: None,
            seen_promised: 0,
            reclaim: None,
        }
    }

    pub(super) fn view(&self, record: &Record) -> RoleView {
        match &self.switch {
            Some(switch) => RoleView::Switching { to: switch.to },
            None if self.fenced && record.promised > record.incarnation => {
                RoleView::Fenced { why: "promised to another node" }
            }
            None if self.fenced => RoleView::Fenced { why: "the lease ran out" },
            None => RoleView::Active { lease_until_ms: None },
        }
    }
}

impl AppCore {
    pub(super) fn recover_owner(&mut self) {
        let mut owner = Owner::new(self.members());
        // Nobody was armed and nothing promised: nobody can have taken over while the agent was dead.
        let free = !self.record.guarded && self.record.promised == self.record.incarnation;
        owner.fenced = !free;
        self.role = Role::Owner(owner);
        if free {
            self.out.push(Action::Lease(None));
            // It may have been parked for a switch when the agent died.
            self.out.push(Action::Unfence);
        } else {
            self.note("the agent restarted: parked until the lease is granted again");
            self.out.push(Action::Fence);
        }
    }

    /// Fences when the evidence has run out.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let Role::Owner(owner) = &self.role else { return };
        if owner.fenced || !self.record.guarded || now_ms < self.lease_until(&owner.evidence) {
            return;
        }
        if let Role::Owner(owner) = &mut self.role {
            owner.fenced = true;
        }
        self.out.push(Action::Fence);
        self.note("the lease ran out: parked");
        self.end_switch(Err("the lease ran out".to_owned()));
    }

    pub(super) fn tick_owner(&mut self, now_ms: u64) {
        self.arm(now_ms);
        self.tick_switch(now_ms);
        self.reclaim(now_ms);
        self.unfence(now_ms);
        if now_ms < self.next_beat_ms {
            return;
        }
        let Role::Owner(owner) = &self.role else { return };
        let state = match (&owner.switch, owner.fenced) {
            (Some(_), _) => BeatState::Switching,
            (None, true) => BeatState::Fenced,
            (None, false) => BeatState::Active,
        };
        self.next_beat_ms = now_ms + self.timing.heartbeat_ms;
        for to in self.others() {
            self.send_beat(now_ms, to, state, self.record.incarnation);
        }
    }

    pub(super) fn send_beat(&mut self, now_ms: u64, to: Member, state: BeatState, incarnation: u64) {
        let beat = Beat {
            members: self.record.members.clone(),
            incarnation,
            state,
            armed: self.record.guarded,
            newest: self.sealed(),
            base: self.record.base.unwrap_or_default(),
            token: self.token(now_ms),
        };
        self.send(to, AppMsg::Beat(beat));
    }

    /// From the moment that a majority answers and somebody holds an epoch, others may take over.
    fn arm(&mut self, now_ms: u64) {
        let Role::Owner(owner) = &self.role else { return };
        let until = self.lease_until(&owner.evidence);
        let protected = owner.peer_sealed.iter().any(|s| s.epoch > 0 && !self.is_fork(*s));
        if self.record.guarded || owner.fenced || self.members() < 2 || until <= now_ms || !protected {
            return;
        }
        self.record.guarded = true;
        if let Role::Owner(owner) = &mut self.role {
            owner.armed_ms = now_ms;
        }
        // The record first: an agent that forgot that it had armed somebody would run without a lease.
        self.persist();
        self.out.push(Action::Lease(Some(until)));
        self.next_beat_ms = now_ms;
        self.note("a stand-by is armed: the owner needs its lease from now on");
    }

    pub(super) fn on_ack(&mut self, now_ms: u64, from: Member, ack: &Ack) {
        let Some(date) = self.date(now_ms, ack.token) else { return };
        if ack.incarnation > self.record.incarnation {
            return self.superseded(now_ms, ack.incarnation, ack.owner, ack.base);
        }
        match &mut self.role {
            Role::Owner(owner) => {
                owner.peer_sealed[from as usize] = ack.sealed;
                owner.seen_promised = owner.seen_promised.max(ack.promised);
                if ack.granted {
                    self.add_evidence(from, date);
                }
            }
            Role::Candidate(candidate) if ack.granted => candidate.add_vote(from, date),
            Role::Ended { told } => told[from as usize] = true,
            Role::Candidate(_) | Role::Standby(_) => {}
        }
    }

    /// A refused connection dates evidence only while older evidence of that member is valid: see the module.
    pub(super) fn on_refused(&mut self, now_ms: u64, peer: Member, attempt_ms: u64) {
        if !self.timing.trust_refused || attempt_ms > now_ms {
            return;
        }
        let lease_ms = self.timing.lease_ms;
        let valid = |dates: &[u64]| {
            dates.get(peer as usize).is_some_and(|d| *d > 0 && now_ms < d + lease_ms && attempt_ms > *d)
        };
        match &mut self.role {
            Role::Owner(owner) if valid(&owner.evidence) => self.add_evidence(peer, attempt_ms),
            Role::Candidate(c) if c.is_preparing() && valid(&c.votes) => c.add_vote(peer, attempt_ms),
            Role::Owner(_) | Role::Candidate(_) | Role::Standby(_) | Role::Ended { .. } => {}
        }
    }

    fn add_evidence(&mut self, from: Member, date: u64) {
        let Role::Owner(owner) = &self.role else { return };
        let before = self.lease_until(&owner.evidence);
        if let Role::Owner(owner) = &mut self.role {
            let slot = &mut owner.evidence[from as usize];
            *slot = date.max(*slot);
        }
        let Role::Owner(owner) = &self.role else { return };
        let until = self.lease_until(&owner.evidence);
        if self.record.guarded && !owner.fenced && until > before {
            self.out.push(Action::Lease(Some(until)));
        }
    }

    fn unfence(&mut self, now_ms: u64) {
        let Role::Owner(owner) = &self.role else { return };
        let until = self.lease_until(&owner.evidence);
        if !owner.fenced || owner.switch.is_some() || self.record.promised != self.record.incarnation {
            return;
        }
        if now_ms >= until {
            return;
        }
        if let Role::Owner(owner) = &mut self.role {
            owner.fenced = false;
            owner.reclaim = None;
        }
        self.out.push(Action::Lease(Some(until)));
        self.out.push(Action::Unfence);
        self.note("the lease is granted again: the application runs on");
    }

    /// Somebody owns a newer incarnation: ours is over, for good.
    pub(super) fn superseded(
        &mut self,
        now_ms: u64,
        incarnation: u64,
        owner: Option<Member>,
        base: Option<EpochRef>,
    ) {
        let switched = match &self.role {
            Role::Owner(o) => o.switch.as_ref().filter(|s| s.is_committed(incarnation)).map(|s| s.to),
            Role::Standby(_) | Role::Candidate(_) | Role::Ended { .. } => None,
        };
        if matches!(self.role, Role::Owner(_)) {
            // Before the record: stopping is right whatever happens to the disk.
            self.out.push(Action::StopInstance);
        }
        self.record.incarnation = incarnation;
        self.record.owner = owner.filter(|o| *o != self.me);
        self.record.base = base;
        self.record.promised = self.record.promised.max(incarnation);
        self.record.guarded = false;
        self.record.ended = false;
        self.persist();
        match switched {
            Some(to) => self.end_switch(Ok(to)),
            None => self.end_switch(Err("another node owns a newer incarnation".to_owned())),
        }
        self.abort_candidacy();
        self.heard.granted_ms = now_ms;
        self.heard.eligible = false;
        self.heard.need_epoch = None;
        self.role = Role::Standby(Standby::default());
        self.note(format!("incarnation {incarnation} runs elsewhere"));
    }

    /// A fenced owner whose incarnation cannot go on (somebody promised a newer one) asks for a newer one.
    fn reclaim(&mut self, now_ms: u64) {
        let Role::Owner(owner) = &self.role else { return };
        let highest = owner.seen_promised.max(self.record.promised);
        let given = self.record.promised_to != Some(self.me);
        let wait = given && now_ms < self.heard.granted_ms + self.timing.failover_ms;
        if !owner.fenced || owner.switch.is_some() || highest == self.record.incarnation || wait {
            return;
        }
        let ours = self.record.promised_to == Some(self.me) && self.record.promised == highest;
        let current = owner.reclaim.as_ref().filter(|r| ours && r.term == highest);
        if current.is_some_and(|r| now_ms < r.again_ms) {
            return;
        }
        let repeated = current.is_some();
        let term = if repeated { highest } else { highest + 1 };
        if term != highest {
            self.record.promised = term;
            self.record.promised_to = Some(self.me);
            self.persist();
        }
        let token = self.token(now_ms);
        // Once more soon, since a message may be lost; then seldom: a voter that grants again and again could
        // not vote for anybody else.
        let pause_ms = match repeated {
            false => 2 * self.timing.heartbeat_ms,
            true => 2 * self.timing.failover_ms,
        };
        let again_ms = now_ms + pause_ms;
        let members = self.members();
        if let Role::Owner(owner) = &mut self.role {
            let mut votes = owner.reclaim.take().filter(|r| r.term == term).map(|r| r.votes);
            let votes = votes.get_or_insert_with(|| vec![0; members]).clone();
            owner.reclaim = Some(Reclaim { term, votes, again_ms });
        }
        let request = VoteRequest { term, kind: VoteKind::Reclaim, sealed: self.sealed(), token };
        for to in self.others() {
            self.send(to, AppMsg::VoteRequest(request));
        }
    }

    pub(super) fn on_reclaim_reply(&mut self, now_ms: u64, from: Member, reply: &VoteReply) {
        let Some(date) = self.date(now_ms, reply.token) else { return };
        let needed = self.majority() - 1;
        let Role::Owner(owner) = &mut self.role else { return };
        owner.seen_promised = owner.seen_promised.max(reply.promised);
        let used_up = !reply.granted && reply.promised >= reply.term;
        if used_up && owner.reclaim.as_ref().is_some_and(|r| r.term == reply.term) {
            // Promised to somebody else there: the next attempt must be above it.
            owner.seen_promised = owner.seen_promised.max(reply.promised + 1);
        }
        let Some(reclaim) = owner.reclaim.as_mut().filter(|r| r.term == reply.term && reply.granted) else {
            return;
        };
        reclaim.votes[from as usize] = date.max(reclaim.votes[from as usize]);
        if reclaim.votes.iter().filter(|d| **d > 0).count() < needed {
            return;
        }
        let (term, votes) = (reclaim.term, reclaim.votes.clone());
        owner.reclaim = None;
        // Evidence of the old incarnation says nothing about promises to the new one.
        owner.evidence = votes;
        // The same instance goes on: what it sealed last is what the new line starts from.
        self.record.base = Some(self.held);
        self.record.incarnation = term;
        self.record.guarded = true;
        self.persist();
        self.note(format!("reclaimed as incarnation {term}"));
        self.unfence(now_ms);
    }

    /// The operator vouches that nobody else runs it.
    pub(super) fn force_owner(&mut self) {
        let Role::Owner(owner) = &mut self.role else { return };
        if !owner.fenced || owner.switch.is_some() {
            return;
        }
        owner.fenced = false;
        owner.reclaim = None;
        let seen = owner.seen_promised;
        owner.evidence.fill(0);
        let term = seen.max(self.record.promised) + self.forced_step();
        self.record.incarnation = term;
        self.record.promised = term;
        self.record.promised_to = Some(self.me);
        self.record.base = Some(self.held);
        self.record.guarded = false;
        self.persist();
        self.out.push(Action::Lease(None));
        self.out.push(Action::Unfence);
        self.note(format!("forced by the operator: incarnation {term}"));
    }

    /// Becomes the running owner of `term`, from what was prepared.
    pub(super) fn activate(&mut self, term: u64, from: EpochRef, evidence: Vec<u64>, guarded: bool) {
        let mut owner = Owner::new(self.members());
        owner.armed_ms = evidence.iter().max().map_or(1, |newest| newest + 1);
        owner.evidence = evidence;
        self.record.incarnation = term;
        self.record.owner = Some(self.me);
        self.record.promised = term;
        self.record.promised_to = Some(self.me);
        self.record.base = Some(from);
        self.held = from;
        self.record.guarded = guarded;
        self.record.ended = false;
        self.persist();
        self.heard.eligible = false;
        let until = guarded.then(|| self.lease_until(&owner.evidence));
        self.out.push(Action::Lease(until));
        self.out.push(Action::Activate { incarnation: term, from });
        self.role = Role::Owner(owner);
        self.next_beat_ms = 0;
        self.note(format!("runs it as incarnation {term} from epoch {}", from.epoch));
    }

    pub(super) fn ack(&mut self, to: Member, granted: bool, token: Token) {
        let ack = Ack {
            granted,
            incarnation: self.record.incarnation,
            owner: self.record.owner,
            base: self.record.base,
            promised: self.record.promised,
            sealed: self.sealed(),
            token,
        };
        self.send(to, AppMsg::Ack(ack));
    }
}
