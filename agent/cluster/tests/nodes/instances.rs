//! Instances in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use holo_cluster::ports::AppPort;

use crate::fake::Store;

#[derive(Clone, Default)]
pub struct Instance {
    pub running: bool,
    pub from: Option<u64>,
    pub fences: u32,
}

/// Instances; they outlive their agent.
#[derive(Default)]
pub struct Apps {
    pub live: Mutex<HashMap<String, Instance>>,
    prepared: Mutex<HashMap<String, u64>>,
    failing: Mutex<HashSet<String>>,
    from: Mutex<HashMap<String, u64>>,
    pub store: Mutex<Option<Arc<Store>>>,
}

impl Apps {
    pub fn running(&self, app: &str) -> bool {
        self.live.lock().unwrap().get(app).is_some_and(|i| i.running)
    }

    pub fn found_instance(&self, app: &str) -> bool {
        self.live.lock().unwrap().contains_key(app)
    }

    pub fn started_from(&self, app: &str) -> Option<u64> {
        self.live.lock().unwrap().get(app).and_then(|i| i.from)
    }

    pub fn fences(&self, app: &str) -> u32 {
        self.live.lock().unwrap().get(app).map_or(0, |i| i.fences)
    }

    pub fn fail_prepare(&self, app: &str, fail: bool) {
        let mut failing = self.failing.lock().unwrap();
        if fail {
            failing.insert(app.to_owned())
        } else {
            failing.remove(app)
        };
    }

    pub fn clear(&self, app: &str) {
        self.live.lock().unwrap().remove(app);
    }
}

pub struct Port(pub Arc<Apps>);

impl AppPort for Port {
    fn found(&self, app: &str) -> bool {
        self.0.found_instance(app)
    }

    fn lease(&self, _app: &str, _until_ms: Option<u64>) {}

    fn fence(&self, app: &str) {
        if let Some(i) = self.0.live.lock().unwrap().get_mut(app) {
            i.running = false;
            i.fences += 1;
        }
    }

    fn unfence(&self, app: &str) -> Result<(), String> {
        self.0.live.lock().unwrap().get_mut(app).map(|i| i.running = true).ok_or("no instance".to_owned())
    }

    fn stop_instance(&self, app: &str) {
        self.0.clear(app);
    }

    fn prepare(&self, app: &str, epoch: u64) -> Result<(), String> {
        if self.0.failing.lock().unwrap().contains(app) {
            return Err("told to fail".to_owned());
        }
        let store = self.0.store.lock().unwrap().clone().unwrap();
        assert_eq!(store.newest_of(app), epoch, "prepared from the newest");
        self.0.prepared.lock().unwrap().insert(app.to_owned(), epoch);
        Ok(())
    }

    fn abort_prepare(&self, app: &str) {
        self.0.prepared.lock().unwrap().remove(app);
    }

    fn activate(&self, app: &str, _incarnation: u64, epoch: u64) -> Result<(), String> {
        assert_eq!(self.0.prepared.lock().unwrap().remove(app), Some(epoch));
        self.0.from.lock().unwrap().insert(app.to_owned(), epoch);
        let instance = Instance { running: true, from: Some(epoch), fences: 0 };
        self.0.live.lock().unwrap().insert(app.to_owned(), instance);
        Ok(())
    }

    fn final_epoch(&self, app: &str) -> Result<u64, String> {
        if let Some(i) = self.0.live.lock().unwrap().get_mut(app) {
            i.running = false;
        }
        let store = self.0.store.lock().unwrap().clone().unwrap();
        let epoch = store.newest_of(app) + 1;
        store.make(app, epoch, 7);
        Ok(epoch)
    }
}
