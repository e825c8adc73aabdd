//! The laws. They look at instances and stores and know nothing of the core's rules.

use holo_api::peer::EpochRef;

use crate::world::{Instance, World};

impl World {
    /// The first law.
    pub fn check(&mut self, node: usize) {
        let running = self.running();
        if running.len() > 1 {
            self.fail(format!("two active instances on {running:?}, the newest on n{node}"));
        }
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].instance == Instance::Running).collect()
    }

    /// The newest epoch that a majority holds, so that every successor must know it.
    pub fn guaranteed(&self) -> EpochRef {
        let held = |at: &EpochRef| self.nodes.iter().filter(|n| n.store.contains(at)).count();
        let all = self.nodes.iter().flat_map(|n| n.store.iter());
        all.filter(|at| held(at) > self.nodes.len() / 2).max().copied().unwrap_or_default()
    }

    /// Is there anything that could run?
    pub fn could_run(&self) -> bool {
        self.nodes.iter().any(|n| n.sealed.epoch > 0 || n.instance != Instance::None)
    }
}
