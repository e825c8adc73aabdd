//! The stand-by: grants leases, keeps count of the silence.

use holo_api::peer::{Beat, BeatState, Member};

use super::{Action, AppCore, Role, switch::SwitchIn};

#[derive(Debug, Default)]
pub(super) struct Standby {
    /// The owner is about to hand over to us.
    pub(super) switching: Option<SwitchIn>,
    /// Not a candidate before then.
    pub(super) retry_ms: u64,
    /// Preparations that failed one after the other.
    pub(super) failures: u32,
    /// The operator wants it here.
    pub(super) claim: Option<Claim>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) force: bool,
    pub(super) until_ms: u64,
}

impl AppCore {
    pub(super) fn on_beat(&mut self, now_ms: u64, from: Member, beat: &Beat) {
        if beat.state == BeatState::Preparing {
            return self.on_preparing(now_ms, from, beat);
        }
        let stale = beat.incarnation < self.record.incarnation;
        let rival = beat.incarnation == self.record.incarnation
            && self.record.owner.is_some_and(|owner| owner != from);
        if stale || rival {
            return self.ack(from, false, beat.token);
        }
        if beat.incarnation > self.record.incarnation {
            self.superseded(now_ms, beat.incarnation, Some(from), Some(beat.base));
        } else if self.record.owner.is_none() || self.record.base.is_none() {
            self.record.owner = Some(from);
            self.record.base = Some(beat.base);
            self.persist();
        }
        if beat.state == BeatState::Ended {
            return self.on_beat_ended(from, beat);
        }
        if matches!(self.role, Role::Ended { .. }) {
            return self.ack(from, false, beat.token);
        }
        self.cancel_switching(from, beat);
        self.contact(beat);
        let granted = self.record.promised <= beat.incarnation && beat.state != BeatState::Lost;
        if granted {
            // Before its commit point a take-over gives way to an owner that is heard again.
            self.abort_candidacy();
            self.heard.granted_ms = now_ms;
        }
        self.ack(from, granted, beat.token);
    }

    fn on_beat_ended(&mut self, from: Member, beat: &Beat) {
        self.abort_candidacy();
        if !self.record.ended {
            self.become_ended();
        }
        self.ack(from, false, beat.token);
    }

    /// What an owner's beat says about our right to follow it.
    fn contact(&mut self, beat: &Beat) {
        if self.heard.need_epoch.is_none() {
            let need = beat.newest.epoch.saturating_sub(self.timing.stale_epochs_max);
            self.heard.need_epoch = Some(need);
        }
        if beat.armed && !self.heard.eligible {
            self.heard.eligible = true;
            let owner = self.record.owner.map(|o| self.name(o).to_owned()).unwrap_or_default();
            self.note(format!("armed: will take over if {owner} falls silent"));
        }
    }

    /// A node that we promised this incarnation to recreates the application: that counts as hearing an owner.
    fn on_preparing(&mut self, now_ms: u64, from: Member, beat: &Beat) {
        let promised = self.record.promised == beat.incarnation && self.record.promised_to == Some(from);
        let granted =
            promised && beat.incarnation > self.record.incarnation && matches!(self.role, Role::Standby(_));
        if granted {
            self.heard.granted_ms = now_ms;
            self.heard.vote_ms = now_ms;
        }
        self.ack(from, granted, beat.token);
    }

    pub(super) fn on_claim(&mut self, now_ms: u64, force: bool) {
        match &mut self.role {
            Role::Owner(_) if force => self.force_owner(),
            Role::Standby(standby) => {
                let until_ms = now_ms + 4 * self.timing.failover_ms;
                standby.claim = Some(Claim { force, until_ms });
                standby.retry_ms = 0;
            }
            // What has ended is launched anew, as another run.
            Role::Ended { .. } | Role::Owner(_) | Role::Candidate(_) => {}
        }
    }

    pub(super) fn tick_standby(&mut self, now_ms: u64) {
        self.tick_switching(now_ms);
        let lost = self.record.owner == Some(self.me);
        if lost && now_ms >= self.next_beat_ms {
            self.next_beat_ms = now_ms + self.timing.heartbeat_ms;
            for to in self.others() {
                self.send_beat(now_ms, to, BeatState::Lost, self.record.incarnation);
            }
        }
        let Role::Standby(standby) = &mut self.role else { return };
        standby.claim = standby.claim.filter(|c| now_ms < c.until_ms);
        let (claim, retry_ms) = (standby.claim, standby.retry_ms);
        if standby.switching.is_some() && claim.is_none() && !self.silent(now_ms) {
            return;
        }
        if now_ms < retry_ms || self.sealed().epoch == 0 {
            return;
        }
        let alone = self.members() == 1;
        match claim {
            Some(claim) if claim.force => self.stand(now_ms, 1, self.forced_step()),
            Some(_) if alone => self.stand(now_ms, 1, 1),
            Some(_) if self.silent(now_ms) => self.stand(now_ms, self.majority(), 1),
            Some(_) => {}
            None if alone || self.record.ended || !self.silent(now_ms) => {}
            None if lost => self.stand(now_ms, self.majority(), 1),
            None if self.heard.eligible && self.caught_up() => self.stand(now_ms, self.votes_needed(), 1),
            None => {}
        }
    }

    fn caught_up(&self) -> bool {
        self.heard.need_epoch.is_none_or(|need| self.sealed().epoch >= need)
    }

    /// Long enough without a grant or vote; members later in the order wait a little longer, so that they do
    /// not stand against one another.
    fn silent(&self, now_ms: u64) -> bool {
        let place =
            if self.record.owner == Some(self.me) { self.members() as u64 } else { u64::from(self.me) };
        let patience = if self.members() == 2 && self.record.owner != Some(self.me) { 0 } else { place };
        now_ms >= self.heard.granted_ms + self.timing.failover_ms + patience * self.timing.heartbeat_ms
    }

    pub(super) fn drop_switching(&mut self) {
        if let Role::Standby(standby) = &mut self.role
            && standby.switching.take().is_some()
        {
            self.out.push(Action::AbortPrepare);
        }
    }
}
