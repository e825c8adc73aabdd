//! The threads of one application: the clock, short orders to its instance, orders that take their time.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use holo_api::peer::{EpochRef, Member};
use parking_lot::{Condvar, Mutex};

use super::{Shared, app::App};
use crate::core::{Event, RoleView};

/// Before what could not be put aside is tried again.
const ASIDE_PAUSE: Duration = Duration::from_secs(1);

/// Short orders to the instance.
#[derive(Debug, PartialEq)]
pub(super) enum Control {
    Lease(Option<u64>),
    Fence,
    Unfence { parks: u64 },
    Stop,
    Activate { incarnation: u64, from: EpochRef },
    Changed,
}

/// Orders that take their time.
#[derive(Debug, PartialEq)]
pub(super) enum Long {
    Prepare { term: u64, from: EpochRef },
    AbortPrepare,
    FinalEpoch { to: Member, attempt: u64 },
    SetAside { base: EpochRef },
}

pub(super) struct Queue<T> {
    pub(super) items: Mutex<VecDeque<T>>,
    pub(super) filled: Condvar,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Queue<T> {
        Queue { items: Mutex::new(VecDeque::new()), filled: Condvar::new() }
    }

    pub(super) fn push(&self, item: T) {
        self.items.lock().push_back(item);
        self.filled.notify_one();
    }

    pub(super) fn pop(&self, gone: &AtomicBool) -> Option<T> {
        let mut items = self.items.lock();
        loop {
            // What was ordered before the end is still done.
            if let Some(item) = items.pop_front() {
                return Some(item);
            }
            if gone.load(Ordering::SeqCst) {
                return None;
            }
            self.filled.wait_for(&mut items, Duration::from_millis(500));
        }
    }
}

impl App {
    pub(super) fn tick_loop(self: &Arc<App>, shared: &Arc<Shared>) {
        while !self.is_gone() {
            thread::sleep(Duration::from_millis(shared.timing.tick_ms));
            if !self.is_gone() {
                self.step(shared, Event::Tick);
                if let Some((_, base)) = self.aside_again.lock().take_if(|(due, _)| Instant::now() >= *due) {
                    self.long.push(Long::SetAside { base });
                }
            }
        }
    }

    pub(super) fn control_loop(self: &Arc<App>, shared: &Arc<Shared>) {
        let port = &shared.ports.apps;
        while let Some(order) = self.control.pop(&self.gone) {
            match order {
                Control::Lease(until) => port.lease(&self.name, until),
                Control::Fence => {
                    let began = Instant::now();
                    port.fence(&self.name);
                    let took_ms = began.elapsed().as_millis() as u64;
                    if took_ms > shared.timing.fence_ms_max {
                        let most = shared.timing.fence_ms_max;
                        shared.log(&format!("{}: fencing took {took_ms} ms, more than {most}", self.name));
                    }
                }
                Control::Unfence { parks } => self.unfence(shared, parks),
                Control::Stop => port.stop_instance(&self.name),
                Control::Activate { incarnation, from } => {
                    let outcome = port.activate(&self.name, incarnation, from.epoch);
                    self.activated(shared);
                    if let Err(why) = outcome {
                        shared.log(&format!("{}: cannot run what was prepared: {why}", self.name));
                        self.step(shared, Event::InstanceLost);
                    }
                }
                Control::Changed => port.changed(&self.name, &self.status(shared)),
            }
        }
    }

    fn unfence(&self, shared: &Shared, parks: u64) {
        let overtaken = || self.parks.load(Ordering::SeqCst) != parks;
        // The last epoch of an aborted switch may still be under way.
        let mut cutting = self.cutting.lock();
        while *cutting && !self.is_gone() && !overtaken() {
            self.cut.wait_for(&mut cutting, Duration::from_millis(10));
        }
        drop(cutting);
        let _order = self.unfencing.lock();
        if overtaken() {
            return;
        }
        if let Err(why) = shared.ports.apps.unfence(&self.name) {
            shared.log(&format!("{}: cannot be resumed: {why}", self.name));
            self.step(shared, Event::InstanceLost);
        }
    }

    pub(super) fn long_loop(self: &Arc<App>, shared: &Arc<Shared>) {
        let ports = &shared.ports;
        while let Some(order) = self.long.pop(&self.gone) {
            match order {
                Long::Prepare { term, from } => {
                    // What was received but not acknowledged must not be mistaken for this line's epochs.
                    let aside = ports.sink.set_aside(&self.name, from.epoch).map_err(|e| e.to_string());
                    let outcome = aside.and_then(|_| ports.apps.prepare(&self.name, from.epoch));
                    self.step(shared, Event::Prepared { term, outcome });
                }
                Long::AbortPrepare => ports.apps.abort_prepare(&self.name),
                Long::SetAside { base } => match ports.sink.set_aside(&self.name, base.epoch) {
                    Ok(newest) => self.newest_is(shared, newest),
                    Err(e) => {
                        shared.log(&format!("{}: cannot put aside old epochs yet: {e}", self.name));
                        // Until then nothing newer is taken.
                        *self.aside_again.lock() = Some((Instant::now() + ASIDE_PAUSE, base));
                    }
                },
                Long::FinalEpoch { to, attempt } => {
                    // An order to resume that was given before is either done now or will see that it is void.
                    drop(self.unfencing.lock());
                    let cut = ports.apps.final_epoch(&self.name);
                    *self.cutting.lock() = false;
                    self.cut.notify_all();
                    let outcome = cut.and_then(|epoch| self.bring(shared, epoch, to));
                    self.step(shared, Event::FinalEpoch { attempt, outcome });
                }
            }
        }
    }

    /// Waits until the new owner holds the last epoch.
    fn bring(&self, shared: &Shared, epoch: u64, to: Member) -> Result<EpochRef, String> {
        let at = self.announce(shared, epoch).ok_or("another node owns it now")?;
        let node = self.members.get(to as usize).cloned().unwrap_or_default();
        let end = Instant::now() + Duration::from_millis(shared.timing.switch_ms_max);
        let wanted = || self.read(|core| matches!(core.view(), RoleView::Switching { .. }));
        while self.wait_replica(&node, at, Duration::from_millis(100)).is_none() {
            if Instant::now() >= end || !wanted() || self.is_gone() {
                return Err(format!("node {node} did not seal the last epoch {epoch} in time"));
            }
        }
        Ok(at)
    }
}
