//! The kinds of one application: some are one for all of it, most are one for each process.

use crate::faults::Faulty;
use crate::manager::{ResourceManager, RmResult};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

type Make = Box<dyn Fn() -> Box<dyn ResourceManager> + Send>;

enum Entry {
    Application(Box<dyn ResourceManager>),
    /// By pid as the process sees itself: what a manager knows of the epoch before is of that process.
    Processes {
        make: Make,
        each: BTreeMap<i32, Box<dyn ResourceManager>>,
    },
}

/// All kinds, in the order of the phases.
#[derive(Default)]
pub struct Registry(Vec<Entry>);

/// Kinds whose turn it is.
pub enum Turn<'a> {
    /// One for the application.
    Application(&'a mut dyn ResourceManager),
    /// For each process those that are one for each process and follow one another: they know nothing of other processes.
    Processes(Vec<Vec<&'a mut dyn ResourceManager>>),
}

impl Registry {
    /// No kinds yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind that is one for the application.
    #[must_use]
    pub fn application(mut self, manager: Box<dyn ResourceManager>) -> Self {
        self.0.push(Entry::Application(manager));
        self
    }

    /// Adds a kind that is one for each process.
    #[must_use]
    pub fn process(mut self, make: impl Fn() -> Box<dyn ResourceManager> + Send + 'static) -> Self {
        self.0.push(Entry::Processes { make: Box::new(make), each: BTreeMap::new() });
        self
    }

    /// Every kind fails when the file `orders` says so, see [`crate::faults`].
    #[must_use]
    pub fn failing(self, orders: &Path) -> Self {
        let orders: Arc<Path> = orders.into();
        let wrap = |entry| match entry {
            Entry::Application(manager) => {
                Entry::Application(Box::new(Faulty::new(manager, Arc::clone(&orders), false)))
            }
            Entry::Processes { make, each } => {
                let orders = Arc::clone(&orders);
                let make = move || -> Box<dyn ResourceManager> {
                    Box::new(Faulty::new(make(), Arc::clone(&orders), true))
                };
                Entry::Processes { make: Box::new(make), each }
            }
        };
        Self(self.0.into_iter().map(wrap).collect())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Calls `phase` for every kind in order, with the place of the process in `pids`; kinds of the whole application
    /// come once, with the first.
    ///
    /// # Errors
    /// The first of `phase`.
    pub fn each(
        &mut self,
        pids: &[i32],
        phase: &mut dyn FnMut(&mut dyn ResourceManager, usize) -> RmResult<()>,
    ) -> RmResult<()> {
        self.0.iter_mut().try_for_each(|entry| entry.visit(pids, phase))
    }

    /// All kinds in order, such that those of several processes can be asked at once.
    pub fn turns(&mut self, pids: &[i32]) -> Vec<Turn<'_>> {
        let mut out: Vec<Turn> = Vec::new();
        for entry in &mut self.0 {
            let (make, each) = match entry {
                Entry::Application(manager) => {
                    out.push(Turn::Application(manager.as_mut()));
                    continue;
                }
                Entry::Processes { make, each } => (make, each),
            };
            each.retain(|pid, _| pids.contains(pid));
            for pid in pids {
                each.entry(*pid).or_insert_with(&*make);
            }
            let mut all = match out.pop() {
                Some(Turn::Processes(all)) => all,
                before => {
                    out.extend(before);
                    pids.iter().map(|_| Vec::new()).collect()
                }
            };
            for (pid, manager) in each.iter_mut() {
                if let Some(index) = pids.iter().position(|known| known == pid) {
                    all[index].push(manager.as_mut());
                }
            }
            out.push(Turn::Processes(all));
        }
        out
    }

    /// [`Self::each`] in reverse order.
    ///
    /// # Errors
    /// The first of `phase`.
    pub fn each_reversed(
        &mut self,
        pids: &[i32],
        phase: &mut dyn FnMut(&mut dyn ResourceManager, usize) -> RmResult<()>,
    ) -> RmResult<()> {
        self.0.iter_mut().rev().try_for_each(|entry| entry.visit(pids, phase))
    }
}

impl Entry {
    fn visit(
        &mut self,
        pids: &[i32],
        phase: &mut dyn FnMut(&mut dyn ResourceManager, usize) -> RmResult<()>,
    ) -> RmResult<()> {
        match self {
            Self::Application(manager) => phase(manager.as_mut(), 0),
            Self::Processes { make, each } => {
                each.retain(|pid, _| pids.contains(pid));
                for (index, pid) in pids.iter().enumerate() {
                    phase(each.entry(*pid).or_insert_with(&*make).as_mut(), index)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::manager::{DumpCx, SwitchCx};

    struct Named(&'static str);
    impl ResourceManager for Named {
        fn name(&self) -> &'static str {
            self.0
        }
        fn dump(&mut self, _: &mut DumpCx) -> RmResult<()> {
            Ok(())
        }
        fn switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
            Ok(())
        }
    }

    // Goal: order, and one manager for each process. Method: the names and places of the calls.
    #[test]
    fn kinds_come_in_order() {
        let mut registry = Registry::new().process(|| Box::new(Named("a"))).application(Box::new(Named("b")));
        let mut seen = Vec::new();
        let mut note = |manager: &mut dyn ResourceManager, index: usize| {
            seen.push((manager.name(), index));
            Ok(())
        };
        registry.each(&[10, 11], &mut note).unwrap();
        registry.each_reversed(&[11], &mut note).unwrap();
        assert_eq!(seen, [("a", 0), ("a", 1), ("b", 0), ("b", 0), ("a", 0)]);
    }

    // Goal: turns have every kind once, in order, each process's with its process. Method: names by turn and process.
    #[test]
    fn turns_are_in_order() {
        let mut registry = Registry::new()
            .application(Box::new(Named("a")))
            .process(|| Box::new(Named("b")))
            .process(|| Box::new(Named("c")))
            .application(Box::new(Named("d")))
            .process(|| Box::new(Named("e")));
        let mut names = |pids: &[i32]| -> Vec<Vec<Vec<&str>>> {
            let of = |kinds: Vec<&mut dyn ResourceManager>| kinds.iter().map(|kind| kind.name()).collect();
            let turn = |turn| match turn {
                Turn::Application(kind) => vec![vec![kind.name()]],
                Turn::Processes(all) => all.into_iter().map(of).collect(),
            };
            registry.turns(pids).into_iter().map(turn).collect()
        };
        let one = |name| vec![vec![name]];
        let two = |names: &[&'static str]| vec![names.to_vec(), names.to_vec()];
        assert_eq!(names(&[11, 10]), [one("a"), two(&["b", "c"]), one("d"), two(&["e"])]);
        assert_eq!(names(&[11]), [one("a"), vec![vec!["b", "c"]], one("d"), one("e")]);
    }
}
