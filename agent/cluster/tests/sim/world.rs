//! The virtual cluster: clocks that drift, a network that loses and delays, disks that keep, and instances.

use std::{cmp::Reverse, collections::BinaryHeap};

use holo_api::peer::{AppMsg, EpochRef, Member};
use holo_cluster::core::{Action, AppCore, Event, Record, Timing};

use crate::rng::Rng;

pub const PREPARE_MS_MAX: u64 = 150;

/// A safeguard that is taken away to see whether the checkers notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// Orders to fence are ignored.
    NoFence,
    /// Stand-bys wait less than a lease.
    EarlyStandby,
    /// Records are lost when an agent dies.
    Forgetful,
    /// Every unreachable host counts as refusing.
    RefusedAlways,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instance {
    None,
    Parked,
    Running,
}

pub struct Node {
    pub core: Option<AppCore>,
    pub host_up: bool,
    pub boot: u64,
    /// Counts lives of the host, so that what was under way dies with it.
    pub life: u64,
    /// Real to own clock: offset and rate in millionths.
    pub offset_ms: u64,
    pub rate_ppm: u64,
    pub disk: Option<Record>,
    pub sealed: EpochRef,
    /// Everything in the store, in the order of sealing.
    pub store: Vec<EpochRef>,
    pub instance: Instance,
    /// Orders to the instance; an overtaken one has no effect.
    pub orders: u64,
    pub prepared: Option<u64>,
    /// What a guard outside of the agent knows.
    pub guard_ms: Option<u64>,
}

pub enum What {
    Tick { node: usize, boot: u64 },
    Deliver { to: usize, from: usize, msg: AppMsg },
    Instance { node: usize, life: u64, order: u64, becomes: Instance },
    Prepared { node: usize, boot: u64, term: u64 },
    Refused { node: usize, boot: u64, peer: usize, attempt_ms: u64 },
    Probe { node: usize, boot: u64 },
    Epoch { node: usize, life: u64 },
    Replica { to: usize, at: EpochRef },
    Final { node: usize, boot: u64, to: usize, attempt: u64 },
    FinalDone { node: usize, boot: u64, attempt: u64, outcome: Result<EpochRef, String> },
    Guard { node: usize, life: u64, boot: u64 },
}

#[derive(Default)]
pub struct Stats {
    pub takeovers: u64,
    pub switches: u64,
    pub fences: u64,
    pub reclaims: u64,
}

pub struct World {
    pub rng: Rng,
    pub timing: Timing,
    pub verdict: Result<(), String>,
    pub stats: Stats,
    pub loss_percent: u64,
    pub delay_ms_max: u64,
    pub bad_luck_percent: u64,
    pub standby_timing: Timing,
    pub mutation: Mutation,
    pub now_us: u64,
    pub count: u64,
    pub nodes: Vec<Node>,
    pub cut: Vec<Vec<bool>>,
    pub queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub pending: std::collections::HashMap<u64, What>,
    pub log: Vec<String>,
}

impl World {
    pub fn new(seed: u64, mutation: Mutation) -> World {
        let mut rng = Rng::new(seed);
        let nodes = [2, 2, 3, 3, 4, 5][rng.range(0, 5) as usize];
        let (loss, delay) = (rng.range(0, 20), rng.range(1, 60));
        let mut world = World::build(rng, nodes, mutation);
        world.loss_percent = loss;
        world.delay_ms_max = delay;
        world.bad_luck_percent = 10;
        world
    }

    pub fn calm(seed: u64, nodes: usize) -> World {
        World::build(Rng::new(seed), nodes, Mutation::None)
    }

    fn build(mut rng: Rng, count: usize, mutation: Mutation) -> World {
        let mut timing = Timing {
            heartbeat_ms: 100,
            lease_ms: 400,
            failover_ms: 10_000,
            fence_ms_max: 60,
            tick_ms: 40,
            drift_ppm: 50_000,
            switch_ms_max: 3_000,
            ..Timing::default()
        };
        // As tight as the configuration allows.
        timing.failover_ms = timing.failover_ms_least();
        timing.validate().unwrap();
        let mut standby_timing = timing;
        if mutation == Mutation::EarlyStandby {
            standby_timing.failover_ms = timing.lease_ms / 2;
        }
        let nodes = (0..count)
            .map(|_| Node {
                core: None,
                host_up: true,
                boot: 0,
                life: 0,
                offset_ms: rng.range(1_000, 1_000_000),
                rate_ppm: rng.range(950_000, 1_050_000),
                disk: None,
                sealed: EpochRef::default(),
                store: Vec::new(),
                instance: Instance::None,
                orders: 0,
                prepared: None,
                guard_ms: None,
            })
            .collect();
        let mut world = World {
            rng,
            timing,
            verdict: Ok(()),
            stats: Stats::default(),
            loss_percent: 0,
            delay_ms_max: 5,
            bad_luck_percent: 0,
            standby_timing,
            mutation,
            now_us: 0,
            count: 0,
            nodes,
            cut: vec![vec![false; count]; count],
            queue: BinaryHeap::new(),
            pending: std::collections::HashMap::new(),
            log: Vec::new(),
        };
        for node in 0..count {
            world.boot(node);
        }
        let members = (0..count).map(|n| format!("n{n}")).collect();
        let clock = world.clock(0);
        let first = &mut world.nodes[0];
        first.core = Some(AppCore::launch(timing, first.boot, clock, (7, 0), members, 0));
        first.instance = Instance::Running;
        world.step(0, Event::Tick);
        world.at(5_000, What::Epoch { node: 0, life: 0 });
        world
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub fn clock(&self, node: usize) -> u64 {
        let n = &self.nodes[node];
        n.offset_ms + self.now_us / 1_000 * n.rate_ppm / 1_000_000
    }

    pub fn at(&mut self, in_us: u64, what: What) {
        self.count += 1;
        self.queue.push(Reverse((self.now_us + in_us, self.count)));
        self.pending.insert(self.count, what);
    }

    pub fn run_ms(&mut self, ms: u64) {
        let end = self.now_us + ms * 1_000;
        while self.verdict.is_ok() {
            match self.queue.peek() {
                Some(Reverse((at, _))) if *at <= end => {}
                Some(_) | None => break,
            }
            let Some(Reverse((at, id))) = self.queue.pop() else { break };
            self.now_us = at;
            if let Some(what) = self.pending.remove(&id) {
                self.happen(what);
            }
        }
        self.now_us = end;
    }

    fn alive(&self, node: usize, boot: u64) -> bool {
        self.nodes[node].core.is_some() && self.nodes[node].boot == boot
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Tick { node, boot } => {
                if self.nodes[node].boot == boot && self.nodes[node].host_up {
                    if self.nodes[node].core.is_some() {
                        self.step(node, Event::Tick);
                    }
                    let pause = self.rng.range(1_000, self.timing.tick_ms * 950);
                    self.at(pause, What::Tick { node, boot });
                }
            }
            What::Deliver { to, from, msg } => self.deliver(to, from, msg),
            What::Instance { node, life, order, becomes } => {
                let n = &mut self.nodes[node];
                if n.life == life && n.orders == order && n.instance != Instance::None {
                    n.instance = becomes;
                    self.check(node);
                }
            }
            What::Prepared { node, boot, term } => {
                if self.alive(node, boot) {
                    let outcome = if self.rng.chance(self.bad_luck_percent) {
                        Err("bad luck".to_owned())
                    } else {
                        Ok(())
                    };
                    self.nodes[node].prepared = outcome.is_ok().then_some(term);
                    self.step(node, Event::Prepared { term, outcome });
                }
            }
            What::Probe { node, boot } => self.probe(node, boot),
            What::Refused { node, boot, peer, attempt_ms } => {
                if self.alive(node, boot) {
                    self.step(node, Event::PeerRefused { peer: peer as Member, attempt_ms });
                }
            }
            What::Epoch { node, life } => self.epoch(node, life),
            What::Replica { to, at } => self.replica(to, at),
            What::Final { node, boot, to, attempt } => self.final_epoch(node, boot, to, attempt),
            What::FinalDone { node, boot, attempt, outcome } => {
                if self.alive(node, boot) {
                    self.step(node, Event::FinalEpoch { attempt, outcome });
                }
            }
            What::Guard { node, life, boot } => {
                let n = &mut self.nodes[node];
                if n.life == life && n.boot == boot && n.core.is_none() && n.instance == Instance::Running {
                    n.instance = Instance::Parked;
                }
            }
        }
    }

    fn deliver(&mut self, to: usize, from: usize, msg: AppMsg) {
        let up = self.nodes[to].host_up && self.nodes[to].boot > 0;
        if !up || (self.nodes[to].core.is_none() && !self.agent_runs(to)) {
            return;
        }
        if self.nodes[to].core.is_none() {
            let AppMsg::Beat(beat) = &msg else { return };
            let (clock, members) = (self.clock(to), beat.members.clone());
            let timing = self.standby_timing;
            let n = &mut self.nodes[to];
            n.core = Some(AppCore::adopt(timing, n.boot, clock, 7, members, to as Member));
        }
        self.step(to, Event::Message { from: from as Member, msg });
    }

    /// An agent without an application: it booted and was not crashed since.
    pub fn agent_runs(&self, node: usize) -> bool {
        self.nodes[node].boot % 2 == 1
    }

    pub fn step(&mut self, node: usize, event: Event) {
        let clock = self.clock(node);
        let Some(core) = self.nodes[node].core.as_mut() else { return };
        let actions = core.step(clock, event);
        for action in actions {
            self.act(node, action);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        let (boot, life) = (self.nodes[node].boot, self.nodes[node].life);
        let fence_us = self.rng.range(0, self.timing.fence_ms_max * 1_000);
        if !matches!(action, Action::Send { .. } | Action::Lease(_)) {
            self.log(format!("n{node}@{}: {action:?}", self.clock(node)));
        }
        match action {
            Action::Persist(record) => {
                if record.incarnation > 1
                    && self.nodes[node].disk.as_ref().is_some_and(|old| {
                        old.owner == Some(node as Member)
                            && record.owner == old.owner
                            && record.incarnation > old.incarnation
                            && self.nodes[node].prepared.is_none()
                    })
                {
                    self.stats.reclaims += 1;
                }
                self.nodes[node].disk = Some(record);
            }
            Action::Send { to, msg } => self.send(node, to as usize, msg),
            Action::Lease(until) => self.nodes[node].guard_ms = until,
            Action::Fence => {
                self.stats.fences += 1;
                if self.mutation != Mutation::NoFence {
                    self.order(node, life, fence_us, Instance::Parked);
                }
            }
            Action::Unfence => {
                let pause = self.rng.range(0, 20_000);
                self.order(node, life, pause, Instance::Running);
            }
            Action::StopInstance => {
                self.nodes[node].orders += 1;
                self.nodes[node].instance = Instance::None;
            }
            Action::Prepare { term, .. } => {
                let pause = self.rng.range(10_000, PREPARE_MS_MAX * 1_000);
                self.at(pause, What::Prepared { node, boot, term });
            }
            Action::AbortPrepare => self.nodes[node].prepared = None,
            Action::Activate { incarnation, from } => self.activate(node, incarnation, from),
            Action::SetAside { base } => {
                let n = &mut self.nodes[node];
                n.store.retain(|at| *at <= base);
                n.sealed = n.store.iter().max().copied().unwrap_or_default();
                let left = n.sealed;
                self.step(node, Event::Sealed(left));
            }
            Action::FinalEpoch { to, attempt } => {
                self.order(node, life, fence_us, Instance::Parked);
                self.at(fence_us, What::Final { node, boot, to: to as usize, attempt });
            }
            Action::SwitchEnded(outcome) => self.stats.switches += u64::from(outcome.is_ok()),
            Action::Note(_) => {}
        }
    }

    fn order(&mut self, node: usize, life: u64, in_us: u64, becomes: Instance) {
        self.nodes[node].orders += 1;
        let order = self.nodes[node].orders;
        self.at(in_us, What::Instance { node, life, order, becomes });
    }

    fn activate(&mut self, node: usize, incarnation: u64, from: EpochRef) {
        if self.nodes[node].prepared != Some(incarnation) {
            self.fail(format!("n{node} activates {incarnation} without having prepared it"));
        }
        let guaranteed = self.guaranteed();
        if from < guaranteed {
            self.fail(format!("n{node} starts from {from:?} though {guaranteed:?} was sealed"));
        }
        self.stats.takeovers += 1;
        let n = &mut self.nodes[node];
        n.prepared = None;
        n.orders += 1;
        n.instance = Instance::Running;
        n.sealed = from;
        n.store.retain(|at| *at <= from);
        let life = n.life;
        self.check(node);
        self.at(100_000, What::Epoch { node, life });
    }

    fn send(&mut self, from: usize, to: usize, msg: AppMsg) {
        if self.cut[from][to] || self.rng.chance(self.loss_percent) {
            return;
        }
        let delay = self.rng.range(50, self.delay_ms_max * 1_000);
        // Sometimes very late: as by a connection that broke and was replaced.
        let delay = if self.rng.chance(1) { delay + self.rng.range(0, 2_000_000) } else { delay };
        if self.rng.chance(2) {
            let again = delay + self.rng.range(0, 1_000_000);
            self.at(again, What::Deliver { to, from, msg: msg.clone() });
        }
        self.at(delay, What::Deliver { to, from, msg });
    }

    fn probe(&mut self, node: usize, boot: u64) {
        if self.nodes[node].boot != boot || !self.nodes[node].host_up {
            return;
        }
        let attempt_ms = self.clock(node);
        for peer in 0..self.nodes.len() {
            let reachable = !self.cut[node][peer] && !self.cut[peer][node] && self.nodes[peer].host_up;
            let refuses = reachable && !self.agent_runs(peer);
            if peer != node && (refuses || (self.mutation == Mutation::RefusedAlways && !reachable)) {
                let delay = self.rng.range(50, self.delay_ms_max * 1_000);
                self.at(delay, What::Refused { node, boot, peer, attempt_ms });
            }
        }
        let pause = self.timing.heartbeat_ms * 1_000;
        self.at(pause, What::Probe { node, boot });
    }

    fn epoch(&mut self, node: usize, life: u64) {
        if self.nodes[node].life != life || self.nodes[node].instance == Instance::None {
            return;
        }
        if self.nodes[node].instance == Instance::Running
            && let Some(core) = &self.nodes[node].core
        {
            let incarnation = core.record().incarnation;
            let at = EpochRef { incarnation, epoch: self.nodes[node].sealed.epoch + 1 };
            self.seal(node, at);
            for to in 0..self.nodes.len() {
                if to != node && !self.cut[node][to] && !self.rng.chance(self.loss_percent) {
                    let delay = self.rng.range(1_000, 300_000);
                    self.at(delay, What::Replica { to, at });
                }
            }
        }
        self.at(250_000, What::Epoch { node, life });
    }

    fn seal(&mut self, node: usize, at: EpochRef) {
        let n = &mut self.nodes[node];
        n.store.retain(|old| old.epoch < at.epoch);
        n.store.push(at);
        n.sealed = at;
        self.step(node, Event::Sealed(at));
    }

    fn replica(&mut self, to: usize, at: EpochRef) {
        let Some(core) = &self.nodes[to].core else { return };
        if at > self.nodes[to].sealed && core.accepts(at) {
            self.seal(to, at);
        }
    }

    fn final_epoch(&mut self, node: usize, boot: u64, to: usize, attempt: u64) {
        if !self.alive(node, boot) || self.nodes[node].instance == Instance::None {
            return;
        }
        let Some(core) = &self.nodes[node].core else { return };
        let at =
            EpochRef { incarnation: core.record().incarnation, epoch: self.nodes[node].sealed.epoch + 1 };
        self.seal(node, at);
        let reachable = !self.cut[node][to] && !self.cut[to][node] && self.nodes[to].core.is_some();
        if reachable {
            self.replica(to, at);
        }
        let sealed = reachable && self.nodes[to].sealed == at;
        let outcome = if sealed { Ok(at) } else { Err("not replicated".to_owned()) };
        let delay = self.rng.range(5_000, 200_000);
        self.at(delay, What::FinalDone { node, boot, attempt, outcome });
    }

    pub fn log(&mut self, line: String) {
        if std::env::var_os("HOLO_SIM_SEED").is_some() {
            self.log.push(format!("{:>9} {line}", self.now_us));
        }
    }

    pub fn print_log(&self) {
        for line in &self.log {
            println!("{line}");
        }
    }

    pub fn fail(&mut self, why: String) {
        if self.verdict.is_ok() {
            self.verdict = Err(format!("at {} us: {why}", self.now_us));
        }
    }
}
