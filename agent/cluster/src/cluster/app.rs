//! One application: its core behind a lock, and the threads that carry out what the core decides.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use holo_api::peer::{AppEnvelope, AppMsg, EpochRef, Member};
use parking_lot::{Condvar, Mutex};

use super::{
    AppStatus, Shared, Switched, sender,
    sending::AllSending,
    workers::{Control, Long, Queue},
};
use crate::{
    clock::{now_ms, random_id},
    core::{Action, AppCore, Event, Found, RoleView},
    records::{Spans, Stored},
};

/// Events that wait while the record cannot be written; more are dropped (each is repeated by somebody).
const WAITING_MAX: usize = 64;

pub(super) struct App {
    pub(super) name: String,
    pub(super) run: u64,
    pub(super) members: Vec<String>,
    state: Mutex<State>,
    pub(super) control: Queue<Control>,
    pub(super) long: Queue<Long>,
    /// Newest epoch that each other node sealed, as told by the node.
    pub(super) replicas: Mutex<HashMap<String, EpochRef>>,
    pub(super) replicated: Condvar,
    /// What is on its way to which node.
    pub(super) sending: AllSending,
    /// One epoch is received at a time.
    pub(super) receiving: Mutex<()>,
    pub(super) gone: AtomicBool,
    /// The instance is being parked for its last epoch.
    pub(super) cutting: Mutex<bool>,
    pub(super) cut: Condvar,
    /// Counts the orders that park the instance: an order to resume that is older than the last is void.
    pub(super) parks: AtomicU64,
    pub(super) unfencing: Mutex<()>,
    /// Epochs that could not be put aside, and when to try again.
    pub(super) aside_again: Mutex<Option<(Instant, EpochRef)>>,
}

struct State {
    core: AppCore,
    spans: Spans,
    /// As they are on disk.
    saved: Spans,
    /// Newest epoch in the store when the application was launched or found: the next ones are of this run.
    found_epoch: u64,
    /// Not carried out yet: the record before them could not be written.
    pending: VecDeque<Action>,
    waiting: VecDeque<Event>,
    /// While what was prepared begins to run: what is sent only then, so that whoever hears of it finds it running.
    held: Option<Vec<(Member, AppMsg)>>,
    disk_fails: bool,
    switches: Vec<mpsc::Sender<Result<Switched, String>>>,
    switch_began: Option<Instant>,
    shown: Option<(RoleView, u64)>,
}

/// How an application comes to be known here.
pub(super) enum Origin {
    /// Launched here, after the highest incarnation known of the name.
    Launch { after: u64 },
    /// Announced by its owner.
    Adopt { run: u64 },
    /// Remembered.
    Recover(Stored),
}

impl App {
    /// Starts its threads. The record is durable when this returns, or will be before anything is done.
    pub(super) fn start(
        shared: &Arc<Shared>,
        name: &str,
        members: Vec<String>,
        origin: Origin,
    ) -> Option<Arc<App>> {
        let me = members.iter().position(|m| m == shared.node())? as Member;
        let (timing, boot, now) = (shared.timing, shared.boot, now_ms());
        let newest = shared.ports.sink.newest(name);
        let (core, spans, run) = match origin {
            Origin::Launch { after } => {
                let run = random_id();
                let core = AppCore::launch(timing, boot, now, (run, after), members.clone(), me);
                (core, Spans::default(), run)
            }
            Origin::Adopt { run } => {
                let core = AppCore::adopt(timing, boot, now, run, members.clone(), me);
                // Epochs of another run under this name are of no use here.
                if newest > 0
                    && let Err(e) = shared.ports.sink.set_aside(name, 0)
                {
                    shared.log(&format!("{name}: cannot put aside epochs of an earlier run: {e}"));
                    return None;
                }
                (core, Spans::default(), run)
            }
            Origin::Recover(stored) => {
                let found = if shared.ports.apps.found(name) { Found::Instance } else { Found::Nothing };
                let run = stored.record.run;
                let at = stored.spans.find(newest);
                let core = AppCore::recover(timing, boot, now, stored.record, me, at, found);
                (core, stored.spans, run)
            }
        };
        let state = State {
            core,
            saved: spans.clone(),
            spans,
            found_epoch: newest,
            pending: VecDeque::new(),
            waiting: VecDeque::new(),
            held: None,
            disk_fails: false,
            switches: Vec::new(),
            switch_began: None,
            shown: None,
        };
        let app = Arc::new(App {
            name: name.to_owned(),
            run,
            members,
            state: Mutex::new(state),
            control: Queue::new(),
            long: Queue::new(),
            replicas: Mutex::new(HashMap::new()),
            replicated: Condvar::new(),
            sending: AllSending::default(),
            receiving: Mutex::new(()),
            gone: AtomicBool::new(false),
            cutting: Mutex::new(false),
            cut: Condvar::new(),
            parks: AtomicU64::new(0),
            unfencing: Mutex::new(()),
            aside_again: Mutex::new(None),
        });
        app.step(shared, Event::Tick);
        let spawn = |what: &str, body: fn(&Arc<App>, &Arc<Shared>)| {
            let (app, shared) = (app.clone(), shared.clone());
            let named = thread::Builder::new().name(format!("holo-{what}"));
            named.spawn(move || body(&app, &shared)).expect("the system has threads left");
        };
        spawn("tick", App::tick_loop);
        spawn("instance", App::control_loop);
        spawn("restore", App::long_loop);
        for peer in app.members.iter().filter(|m| *m != shared.node()) {
            sender::start(shared, &app, peer);
        }
        Some(app)
    }

    pub(super) fn end(&self) {
        self.gone.store(true, Ordering::SeqCst);
        self.control.filled.notify_all();
        self.long.filled.notify_all();
        self.replicated.notify_all();
        self.cut.notify_all();
    }

    /// Is everything that the core wanted durable so?
    pub(super) fn is_durable(&self) -> bool {
        self.state.lock().pending.is_empty()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    pub(super) fn member(&self, node: &str) -> Option<Member> {
        self.members.iter().position(|m| m == node).map(|i| i as Member)
    }

    /// Reads the core.
    pub(super) fn read<T>(&self, f: impl FnOnce(&AppCore) -> T) -> T {
        f(&self.state.lock().core)
    }

    /// Tells the core what happened and does what it says.
    pub(super) fn step(&self, shared: &Shared, event: Event) {
        let mut state = self.state.lock();
        self.step_locked(shared, &mut state, event);
    }

    fn step_locked(&self, shared: &Shared, state: &mut State, event: Event) {
        if !self.carry_out(shared, state) {
            let repeated = matches!(event, Event::Tick | Event::Message { .. } | Event::PeerRefused { .. });
            if !repeated && state.waiting.len() < WAITING_MAX {
                state.waiting.push_back(event);
            }
            return;
        }
        let waiting = std::mem::take(&mut state.waiting);
        for event in waiting.into_iter().chain([event]) {
            let actions = state.core.step(now_ms(), event);
            state.pending.extend(actions);
        }
        self.carry_out(shared, state);
        let view = match state.core.view() {
            RoleView::Active { .. } => RoleView::Active { lease_until_ms: None },
            other @ (RoleView::Fenced { .. }
            | RoleView::Switching { .. }
            | RoleView::Standby { .. }
            | RoleView::Candidate { .. }
            | RoleView::Ended) => other,
        };
        let shown = Some((view, state.core.record().incarnation));
        if state.shown != shown {
            state.shown = shown;
            self.control.push(Control::Changed);
        }
    }

    /// False if a record could not be written: nothing behind it may happen yet.
    fn carry_out(&self, shared: &Shared, state: &mut State) -> bool {
        while let Some(action) = state.pending.pop_front() {
            match action {
                Action::Persist(record) => {
                    if record.owner == Some(state.core.me()) && record.incarnation > state.spans.newest() {
                        // In the same write as the incarnation: whatever this instance seals from now on is its.
                        let base = record.base.unwrap_or_default().epoch;
                        let last = if base == 0 { state.found_epoch } else { base };
                        state.spans.add(EpochRef { incarnation: record.incarnation, epoch: last + 1 });
                    }
                    let stored = Stored { record, spans: state.spans.clone() };
                    if let Err(e) = shared.records.write(&self.name, &stored) {
                        if !std::mem::replace(&mut state.disk_fails, true) {
                            shared.log(&format!("{}: waits until its record can be written: {e}", self.name));
                        }
                        state.pending.push_front(Action::Persist(stored.record));
                        return false;
                    }
                    state.disk_fails = false;
                    state.saved = stored.spans;
                }
                Action::Send { to, msg } => match &mut state.held {
                    // More are dropped: each is repeated by its sender's core.
                    Some(held) if held.len() < WAITING_MAX => held.push((to, msg)),
                    Some(_) => {}
                    None => self.send(shared, to, msg),
                },
                Action::Lease(until) => self.order_lease(until),
                Action::Fence => {
                    self.parks.fetch_add(1, Ordering::SeqCst);
                    self.control.push(Control::Fence);
                }
                Action::Unfence => {
                    self.control.push(Control::Unfence { parks: self.parks.load(Ordering::SeqCst) });
                }
                Action::StopInstance => {
                    self.parks.fetch_add(1, Ordering::SeqCst);
                    self.control.push(Control::Stop);
                }
                Action::Activate { incarnation, from } => {
                    state.held = Some(Vec::new());
                    self.control.push(Control::Activate { incarnation, from });
                }
                Action::Prepare { term, from } => self.long.push(Long::Prepare { term, from }),
                Action::AbortPrepare => self.long.push(Long::AbortPrepare),
                Action::SetAside { base } => self.long.push(Long::SetAside { base }),
                Action::FinalEpoch { to, attempt } => {
                    state.switch_began = Some(Instant::now());
                    self.parks.fetch_add(1, Ordering::SeqCst);
                    *self.cutting.lock() = true;
                    self.long.push(Long::FinalEpoch { to, attempt });
                }
                Action::SwitchEnded(outcome) => self.switch_ended(state, outcome),
                Action::Note(text) => shared.log(&format!("{}: {text}", self.name)),
            }
        }
        true
    }

    fn send(&self, shared: &Shared, to: Member, msg: AppMsg) {
        let envelope = AppEnvelope { app: self.name.clone(), run: self.run, msg };
        if let Some(name) = self.members.get(to as usize) {
            shared.send(name, envelope);
        }
    }

    /// What was prepared runs, or will not.
    pub(super) fn activated(&self, shared: &Shared) {
        let held = self.state.lock().held.take();
        for (to, msg) in held.into_iter().flatten() {
            self.send(shared, to, msg);
        }
    }

    fn order_lease(&self, until: Option<u64>) {
        let mut items = self.control.items.lock();
        match items.back_mut() {
            // Only the newest counts; a slow port must not make a queue grow.
            Some(Control::Lease(old)) => *old = until,
            Some(_) | None => items.push_back(Control::Lease(until)),
        }
        self.control.filled.notify_one();
    }

    fn switch_ended(&self, state: &mut State, outcome: Result<Member, String>) {
        let pause_us = state.switch_began.take().map_or(0, |t| t.elapsed().as_micros() as u64);
        let epoch = state.core.record().base.unwrap_or_default().epoch;
        let outcome = outcome.map(|to| Switched {
            node: self.members.get(to as usize).cloned().unwrap_or_default(),
            epoch,
            pause_us,
        });
        for waiter in state.switches.drain(..) {
            let _ = waiter.send(outcome.clone());
        }
    }

    /// Orders a planned switch; the answer comes through the channel.
    pub(super) fn order_switch(
        &self,
        shared: &Shared,
        to: Member,
    ) -> Result<mpsc::Receiver<Result<Switched, String>>, String> {
        let mut state = self.state.lock();
        if !state.switches.is_empty() {
            return Err("a switch is under way".to_owned());
        }
        let (sender, receiver) = mpsc::channel();
        state.switches.push(sender);
        self.step_locked(shared, &mut state, Event::SwitchTo(to));
        Ok(receiver)
    }

    /// The agent sealed an epoch of the instance here.
    pub(super) fn announce(&self, shared: &Shared, epoch: u64) -> Option<EpochRef> {
        let mut state = self.state.lock();
        if !state.core.is_owner() {
            return None;
        }
        let at = EpochRef { incarnation: state.core.record().incarnation, epoch };
        self.note_span(shared, &mut state, at);
        self.step_locked(shared, &mut state, Event::Sealed(at));
        drop(state);
        self.replicated.notify_all();
        Some(at)
    }

    fn note_span(&self, shared: &Shared, state: &mut State, at: EpochRef) -> bool {
        state.spans.add(at);
        if state.spans == state.saved {
            return true;
        }
        let stored = Stored { record: state.core.record().clone(), spans: state.spans.clone() };
        // An unwritten record must not be overtaken: its contents may be promised already.
        let written = state.pending.is_empty() && shared.records.write(&self.name, &stored).is_ok();
        if written {
            state.saved = stored.spans;
        } else {
            shared.log(&format!("{}: cannot note the incarnation of epoch {}", self.name, at.epoch));
        }
        written
    }

    /// After others were put aside.
    pub(super) fn newest_is(&self, shared: &Shared, epoch: u64) {
        let mut state = self.state.lock();
        let at = state.spans.find(epoch);
        self.step_locked(shared, &mut state, Event::Sealed(at));
    }

    /// May this epoch of a peer be sealed? Notes whose it is.
    pub(super) fn before_seal(&self, shared: &Shared, at: EpochRef) -> bool {
        let mut state = self.state.lock();
        // Of a run that another one has taken the place of, nothing more is sealed.
        !self.is_gone() && state.core.accepts(at) && self.note_span(shared, &mut state, at)
    }

    /// It is durable now: may it be acknowledged?
    pub(super) fn after_seal(&self, shared: &Shared, at: EpochRef) -> bool {
        let mut state = self.state.lock();
        let accepted = state.core.accepts(at);
        if accepted {
            self.step_locked(shared, &mut state, Event::Sealed(at));
        }
        accepted
    }

    /// Waits until `node` holds an epoch at least as new as `at`.
    pub(super) fn wait_replica(&self, node: &str, at: EpochRef, patience: Duration) -> Option<EpochRef> {
        let end = Instant::now() + patience;
        let mut replicas = self.replicas.lock();
        loop {
            if let Some(held) = replicas.get(node).filter(|held| **held >= at) {
                return Some(*held);
            }
            if self.is_gone() || self.replicated.wait_until(&mut replicas, end).timed_out() {
                return None;
            }
        }
    }

    pub(super) fn status(&self, shared: &Shared) -> AppStatus {
        let replicas = self.replicas.lock().clone();
        let state = self.state.lock();
        let core = &state.core;
        let record = core.record();
        let mut sealed_at: Vec<(String, u64)> = Vec::new();
        if core.is_owner() {
            for (i, node) in self.members.iter().enumerate().filter(|(_, n)| *n != shared.node()) {
                let told = core.sealed_at(i as Member);
                let held = replicas.get(node).copied().unwrap_or_default().max(told);
                sealed_at.push((node.clone(), held.epoch));
            }
        }
        AppStatus {
            name: self.name.clone(),
            role: core.view(),
            members: self.members.clone(),
            owner: record.owner.and_then(|o| self.members.get(o as usize)).cloned(),
            incarnation: record.incarnation,
            guarded: record.guarded,
            epoch: core.sealed().epoch,
            sealed_at,
            sending: self.sending.look(),
        }
    }
}
