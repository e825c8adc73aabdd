//! What the story does to the world.

use holo_api::peer::Member;
use holo_cluster::core::{AppCore, Event, Found};

use crate::world::{Instance, Mutation, What, World};

impl World {
    pub fn order_switch(&mut self, owner: usize, to: usize) {
        if to < self.nodes.len() {
            self.step(owner, Event::SwitchTo(to as Member));
        }
    }

    pub fn cut(&mut self, a: usize, b: usize, both: bool) {
        if a != b {
            self.log(format!("cut n{a} -> n{b} (both: {both})"));
            self.cut[a][b] = true;
            self.cut[b][a] |= both;
        }
    }

    pub fn heal(&mut self) {
        self.log("heal".to_owned());
        self.cut.iter_mut().for_each(|row| row.fill(false));
    }

    /// The agent dies; the instance lives on until its guard parks it.
    pub fn crash_agent(&mut self, node: usize) {
        if !self.agent_runs(node) {
            return;
        }
        self.log(format!("crash agent n{node}"));
        let clock = self.clock(node);
        let n = &mut self.nodes[node];
        n.core = None;
        n.prepared = None;
        n.boot += 1;
        let (life, boot) = (n.life, n.boot);
        if self.mutation == Mutation::Forgetful
            && let Some(disk) = &mut n.disk
        {
            disk.guarded = false;
        }
        if let Some(until) = n.guard_ms {
            let wait_ms = until.saturating_sub(clock) * 1_000_000 / n.rate_ppm;
            let late = self.rng.range(0, self.timing.fence_ms_max * 1_000);
            self.at(wait_ms * 1_000 + late, What::Guard { node, life, boot });
        }
    }

    pub fn crash_host(&mut self, node: usize) {
        self.log(format!("crash host n{node}"));
        self.crash_agent(node);
        let n = &mut self.nodes[node];
        n.host_up = false;
        n.life += 1;
        n.instance = Instance::None;
    }

    pub fn boot(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.host_up = true;
        n.boot += 1;
        let boot = n.boot;
        self.at(1_000, What::Tick { node, boot });
        self.at(2_000, What::Probe { node, boot });
    }

    pub fn restart(&mut self, node: usize) {
        if self.agent_runs(node) {
            return;
        }
        self.boot(node);
        let clock = self.clock(node);
        let timing = if node == 0 { self.timing } else { self.standby_timing };
        let n = &mut self.nodes[node];
        let found = if n.instance == Instance::None { Found::Nothing } else { Found::Instance };
        if let Some(record) = n.disk.clone() {
            let core = AppCore::recover(timing, n.boot, clock, record, node as Member, n.sealed, found);
            n.core = Some(core);
        }
        let life = n.life;
        self.log(format!("restart n{node}"));
        self.step(node, Event::Tick);
        self.at(100_000, What::Epoch { node, life });
    }
}
