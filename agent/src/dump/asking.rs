//! The stop of an epoch: all kinds are asked, those of several processes at once.

use super::{Out, add, context, micros};
use crate::app::App;
use holo_rm::asks::Windows;
use holo_rm::at_once;
use holo_rm::manager::{ResourceManager, RmError};
use holo_rm::page::Page;
use holo_rm::registry::{Registry, Turn};
use holo_rm::tree::Process;
use std::sync::Arc;
use std::time::Instant;

/// What kinds are asked with.
pub(super) struct Asking<'a> {
    pub(super) app: &'a App,
    pub(super) processes: &'a [Process],
    /// Whether it may be tried again.
    pub(super) may_wait: bool,
    /// Out: where the time went.
    pub(super) parts: &'a mut Vec<(String, u64)>,
}

type Managers<'a> = Vec<&'a mut dyn ResourceManager>;

/// What is looked at at once.
enum Look<'a> {
    /// What kinds want of each process by calls.
    Asking(Vec<Managers<'a>>),
    Kind(&'a mut dyn ResourceManager),
    Process(&'a Process),
}

impl Asking<'_> {
    /// Asks all kinds in order.
    ///
    /// # Errors
    /// The first of a kind.
    pub(super) fn all(
        &mut self,
        registry: &mut Registry,
        pids: &[i32],
        out: &mut Out,
    ) -> Result<(), RmError> {
        let start = Instant::now();
        self.look(registry, pids);
        add(self.parts, "look", micros(start));
        let done = self.in_turn(registry, pids, out);
        // Also where nobody wanted the answers: who is let go must have none to give.
        self.processes.iter().for_each(|process| drop(process.remote.settle()));
        done
    }

    /// What of processes, and of the kernel, is read without asking anybody: before it is wanted, so that all processors read. What
    /// processes are to be asked is the first of it: they make their calls while we go on.
    fn look(&self, registry: &mut Registry, pids: &[i32]) {
        let mut asked: Vec<Managers> = pids.iter().map(|_| Vec::new()).collect();
        let mut kinds: Managers = Vec::new();
        for turn in registry.turns(pids) {
            match turn {
                Turn::Application(manager) => kinds.push(manager),
                Turn::Processes(each) => {
                    asked.iter_mut().zip(each).for_each(|(all, kinds)| all.extend(kinds));
                }
            }
        }
        let mut all = vec![Look::Asking(asked)];
        // What may take longest first.
        all.extend(kinds.into_iter().map(Look::Kind));
        all.extend(self.processes.iter().map(Look::Process));
        at_once::run(all, |look| match look {
            Look::Asking(asked) => self.ask(asked),
            Look::Kind(manager) => manager.look(&self.processes[0].remote),
            Look::Process(process) => process.remote.look(),
        });
    }

    /// What kinds want to know of processes by calls.
    fn ask(&self, asked: Vec<Managers>) {
        let mut pages: Vec<(&Arc<Page>, Windows)> = Vec::new();
        for (process, kinds) in self.processes.iter().zip(asked) {
            let page = &process.remote.page;
            let at = pages.iter().position(|(known, _)| Arc::ptr_eq(known, page)).unwrap_or_else(|| {
                pages.push((page, Windows::default()));
                pages.len() - 1
            });
            let mut asking = pages[at].1.open(page);
            process.remote.ask_for_children(&mut asking);
            kinds.into_iter().for_each(|manager| manager.ask(&process.remote, &mut asking));
            pages[at].1.start(&process.remote, asking);
        }
    }

    fn in_turn(&mut self, registry: &mut Registry, pids: &[i32], out: &mut Out) -> Result<(), RmError> {
        for turn in registry.turns(pids) {
            let each = match turn {
                Turn::Application(manager) => {
                    let (done, parts) = self.one(manager, 0, out);
                    parts.into_iter().for_each(|(name, us)| add(self.parts, &name, us));
                    done?;
                    continue;
                }
                Turn::Processes(each) => each,
            };
            let start = Instant::now();
            let this = &*self;
            let asked = at_once::run(each.into_iter().enumerate().collect(), |(index, kinds)| {
                let (mut own, mut parts) = (Out::default(), Vec::new());
                let done = kinds.into_iter().try_for_each(|manager| {
                    let (done, more) = this.one(manager, index, &mut own);
                    parts.extend(more);
                    done
                });
                (done, own, parts)
            });
            // Processes are asked at once, so that their times together are longer than it took.
            let lasted = micros(start);
            let mut sums = Vec::new();
            let mut result = Ok(());
            for (done, own, parts) in asked {
                parts.iter().for_each(|(name, us)| add(&mut sums, name, *us));
                out.merge(own);
                result = result.and(done);
            }
            let kinds = sums.iter().filter(|(name, _)| !name.contains('.'));
            let all = kinds.map(|(_, us)| us).sum::<u64>().max(1);
            sums.iter().for_each(|(name, us)| add(self.parts, name, us * lasted / all));
            result?;
        }
        Ok(())
    }

    /// Asks one kind; with it, how long that took.
    fn one(
        &self,
        manager: &mut dyn ResourceManager,
        index: usize,
        out: &mut Out,
    ) -> (Result<(), RmError>, Vec<(String, u64)>) {
        let start = Instant::now();
        let done = manager.dump(&mut context(self.processes, index, out, self.app));
        let mut parts = vec![(manager.name().to_owned(), micros(start))];
        let inner = manager.parts_us().iter();
        parts.extend(inner.map(|(part, us)| (format!("{}.{part}", manager.name()), *us)));
        match out.unsettled.first() {
            // Not what is wrong with the application: it is tried again.
            Some(what) if self.may_wait => (Err(RmError::Unsupported(what.clone())), parts),
            _ => (done, parts),
        }
    }
}
