//! The cluster's orders to the applications of this node.

use crate::app::{App, Failure};
use crate::apps::Apps;
use crate::restore::{self, Ready};
use holo_api::local::{ErrorKind, RestoreInfo};
use holo_cluster::core::RoleView;
use holo_cluster::ports::AppPort;
use holo_cluster::{AppStatus, Described};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// Between two signs of life to what waits to run.
const BEAT: Duration = Duration::from_secs(1);

/// What is known of an application beside its state.
#[derive(Default)]
struct Extra {
    /// Its lease; none: without limit.
    lease: Option<u64>,
    /// Recreated, waits to run.
    ready: Option<Arc<Mutex<Option<Ready>>>>,
    /// Descriptors for what is recreated next: `holo restore --attach` waits for it.
    stdio: Vec<OwnedFd>,
    /// What became of the last order to recreate it or to run it.
    last: Option<Result<RestoreInfo, Failure>>,
    /// Said already that there is no room to guard it.
    unguarded: bool,
}

/// The applications of this node, as the cluster sees them.
pub(super) struct Instances {
    apps: Arc<Apps>,
    /// What a park is given before the instance is stopped instead: half of what a fence may take.
    patience: Duration,
    extras: Mutex<HashMap<String, Extra>>,
}

fn text(failure: Failure) -> String {
    failure.message
}

impl Instances {
    pub(super) fn new(apps: &Arc<Apps>, fence_ms_max: u64) -> Self {
        let patience = Duration::from_millis((fence_ms_max / 2).max(1));
        Self { apps: Arc::clone(apps), patience, extras: Mutex::default() }
    }

    fn extra<T>(&self, app: &str, change: impl FnOnce(&mut Extra) -> T) -> T {
        change(self.extras.lock().entry(app.to_owned()).or_default())
    }

    fn app(&self, app: &str) -> Result<Arc<App>, String> {
        self.apps.get(app).map_err(text)
    }

    /// Descriptors for the next instance of an application, and nothing known of the one before.
    pub(super) fn expect(&self, app: &str, stdio: Vec<OwnedFd>) {
        self.extra(app, |extra| {
            extra.stdio = stdio;
            extra.last = None;
        });
    }

    /// What became of the last order to recreate it or to run it.
    pub(super) fn outcome(&self, app: &str) -> Option<Result<RestoreInfo, Failure>> {
        self.extra(app, |extra| extra.last.clone())
    }

    fn forget_stdio(&self, app: &str) {
        self.extra(app, |extra| extra.stdio.clear());
    }

    /// Tells what guards it how long it may run.
    fn guard(&self, app: &App) {
        let Some(instance) = app.living() else { return };
        let lease = self.extra(&app.name, |extra| extra.lease);
        if !self.apps.guard.lease(&instance, lease)
            && !self.extra(&app.name, |e| std::mem::replace(&mut e.unguarded, true))
        {
            eprintln!(
                "holod: {}: no room to guard it: if this agent dies alone, its lease is not held",
                app.name
            );
        }
    }
}

/// Keeps what waits to run waiting, until it is gone.
fn keep_waiting(ready: Weak<Mutex<Option<Ready>>>) {
    thread::spawn(move || {
        while let Some(ready) = ready.upgrade() {
            match &*ready.lock() {
                Some(ready) => ready.keep_alive(),
                None => return,
            }
            drop(ready);
            thread::sleep(BEAT);
        }
    });
}

impl AppPort for Instances {
    fn found(&self, app: &str) -> bool {
        self.apps.get(app).is_ok_and(|app| app.living().is_some())
    }

    fn lease(&self, app: &str, until_ms: Option<u64>) {
        self.extra(app, |extra| extra.lease = until_ms);
        if let Ok(app) = self.apps.get(app) {
            self.guard(&app);
        }
    }

    fn fence(&self, app: &str) {
        if let Ok(app) = self.apps.get(app) {
            app.put_fence(self.patience);
        }
    }

    fn unfence(&self, app: &str) -> Result<(), String> {
        let app = self.app(app)?;
        if app.living().is_none() {
            return Err("its process is gone".into());
        }
        app.lift_fence();
        Ok(())
    }

    fn stop_instance(&self, app: &str) {
        let Ok(app) = self.apps.get(app) else { return };
        if let Err(failure) = app.kill() {
            eprintln!("holod: {failure}");
        }
    }

    fn prepare(&self, app: &str, epoch: u64) -> Result<(), String> {
        self.abort_prepare(app);
        let found = self.app(app)?;
        let stdio = self.extra(app, |extra| std::mem::take(&mut extra.stdio));
        let made = restore::ready(&found, Some(epoch), None, &stdio, false);
        self.extra(app, |extra| match made {
            Ok(ready) => {
                let ready = Arc::new(Mutex::new(Some(ready)));
                keep_waiting(Arc::downgrade(&ready));
                extra.ready = Some(ready);
                Ok(())
            }
            Err(failure) => {
                // It may be tried again.
                extra.stdio = stdio;
                extra.last = Some(Err(failure.clone()));
                Err(text(failure))
            }
        })
    }

    fn abort_prepare(&self, app: &str) {
        let ready = self.extra(app, |extra| extra.ready.take());
        if let Some(ready) = ready {
            // The clone is killed when it is dropped.
            ready.lock().take();
        }
    }

    fn activate(&self, app: &str, _: u64, epoch: u64) -> Result<(), String> {
        let found = self.app(app)?;
        let ready = self.extra(app, |extra| extra.ready.take());
        let ready = ready.and_then(|ready| ready.lock().take()).filter(|ready| ready.epoch() == epoch);
        let nothing = || Failure::new(ErrorKind::Failed, format!("{app}: epoch {epoch} was not prepared"));
        let run = ready.ok_or_else(nothing).and_then(|ready| ready.run(&found));
        self.guard(&found);
        self.forget_stdio(app);
        self.extra(app, |extra| extra.last = Some(run.clone()));
        run.map(drop).map_err(text)
    }

    fn final_epoch(&self, app: &str) -> Result<u64, String> {
        self.app(app)?.last_epoch().map_err(text)
    }

    fn describe(&self, app: &str) -> Option<Described> {
        let (instance, _) = self.apps.get(app).ok()?.instance()?;
        let last = self.extra(app, |extra| extra.last.clone());
        let of_it = last.and_then(Result::ok).filter(|info| info.real_pid == instance.real_pid as u32);
        let remarks = of_it.map_or_else(Vec::new, |info| info.remarks);
        Some(Described { real_pid: instance.real_pid as u32, remarks })
    }

    fn changed(&self, app: &str, status: &AppStatus) {
        let found = match self.apps.get_or_add(app) {
            Ok(found) => found,
            Err(failure) => {
                eprintln!("holod: {failure}");
                return;
            }
        };
        if status.role == RoleView::Ended {
            found.store.forget_received();
        }
        let to = |to: &u16| status.members.get(usize::from(*to)).map_or("?", String::as_str).to_owned();
        found.set_parked(match &status.role {
            RoleView::Fenced { why } => Some(format!("parked: {why}")),
            RoleView::Switching { to: member } => {
                Some(format!("parked: it is handed over to node {}", to(member)))
            }
            RoleView::Ended => {
                let elsewhere = status.owner.as_ref().filter(|owner| **owner != self.apps.node);
                elsewhere.map(|owner| format!("it ended on node {owner}"))
            }
            RoleView::Active { .. } | RoleView::Standby { .. } | RoleView::Candidate { .. } => None,
        });
        found.set_standby_of(match &status.role {
            RoleView::Standby { .. } | RoleView::Candidate { .. } => {
                status.owner.clone().filter(|owner| *owner != self.apps.node)
            }
            RoleView::Active { .. }
            | RoleView::Fenced { .. }
            | RoleView::Switching { .. }
            | RoleView::Ended => None,
        });
    }
}
