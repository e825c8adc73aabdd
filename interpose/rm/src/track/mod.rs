//! Dirty tracking: which pages of a process changed since the last look. One file for each engine.

mod lifts;
pub mod ranges;
mod soft_dirty;
pub(crate) mod userfaultfd;
mod youth;

use crate::kinds::zones::{Zone, zones_can_be_asked_for};
use crate::manager::RmResult;
use crate::remote::Remote;
pub use lifts::Lifts;
use ranges::Range;
use soft_dirty::SoftDirty;
use std::str::FromStr;
pub use userfaultfd::Userfaultfd;

/// Variable of the agent's environment that has every incremental epoch compared with a full scan at the same cut.
const CHECK_VARIABLE: &str = "HOLO_ENGINE_CHECK";

/// Which engine is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The best that works.
    #[default]
    Auto,
    /// [`Userfaultfd`], or none.
    Userfaultfd,
    /// Soft-dirty bits, or none.
    SoftDirty,
    /// [`FullScan`].
    FullScan,
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "userfaultfd" => Ok(Self::Userfaultfd),
            "soft-dirty" => Ok(Self::SoftDirty),
            "full-scan" => Ok(Self::FullScan),
            other => {
                Err(format!("`{other}` is no engine; there are auto, userfaultfd, soft-dirty, full-scan"))
            }
        }
    }
}

/// What the processes of an application share in tracking.
#[derive(Clone, Default)]
pub struct Tracking {
    engine: Engine,
    checks: bool,
    lifts: Lifts,
}

impl Tracking {
    /// With an engine.
    #[must_use]
    pub fn by(engine: Engine) -> Self {
        let checks = std::env::var(CHECK_VARIABLE).is_ok_and(|value| value == "1");
        Self { engine, checks, lifts: Lifts::default() }
    }

    /// Has every increment to be compared with all pages?
    pub(crate) fn checks(&self) -> bool {
        self.checks
    }

    /// Is anything to be watched before the first stop?
    pub(crate) fn watches(&self) -> bool {
        match self.engine {
            Engine::FullScan | Engine::SoftDirty => false,
            Engine::Userfaultfd => true,
            // Where it will not be userfaultfd a stop for it would be for nothing.
            Engine::Auto => zones_can_be_asked_for(),
        }
    }

    /// The best engine that works for a parked process, or the one that is forced.
    ///
    /// # Errors
    /// The forced engine does not work here.
    pub(crate) fn choose(&self, remote: &Remote, remarks: &mut Vec<String>) -> RmResult<Box<dyn Tracker>> {
        match self.engine {
            Engine::FullScan => Ok(Box::new(FullScan)),
            Engine::Userfaultfd => Ok(Box::new(Userfaultfd::new(remote, &self.lifts)?)),
            Engine::SoftDirty => Ok(Box::new(SoftDirty::new(remote)?)),
            Engine::Auto => Ok(match Userfaultfd::new(remote, &self.lifts) {
                Ok(engine) => Box::new(engine),
                Err(first) => match SoftDirty::new(remote) {
                    Ok(engine) => Box::new(engine),
                    Err(cause) => {
                        remarks.push(format!("all pages are looked at in every epoch: {first}; {cause}"));
                        Box::new(FullScan)
                    }
                },
            }),
        }
    }

    /// What watches shared memory in a parked process. `None`: no engine can, or none is to.
    pub(crate) fn watcher(&self, remote: &Remote) -> Option<Userfaultfd> {
        match self.engine {
            Engine::FullScan | Engine::SoftDirty => None,
            Engine::Userfaultfd | Engine::Auto => Userfaultfd::new(remote, &self.lifts).ok(),
        }
    }
}

/// What an engine found in the stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It cannot tell: look at all pages.
    All,
    /// It can.
    Since {
        /// The process's own pages that may differ from those at the last look.
        written: Vec<Range>,
        /// Its own pages that do not.
        same: Vec<Range>,
        /// Zones that were there at the last look already: no other has taken their place since.
        lasting: Vec<Range>,
    },
}

/// A way to find pages that changed.
pub trait Tracker: Send {
    /// Name, as epochs show it.
    fn name(&self) -> &'static str;

    /// What changed in private zones since the last call, and watches from here on. The process is parked, or runs:
    /// then no call can be made in it. The kernel may write into its memory at any time, which then counts as written
    /// after the call.
    ///
    /// # Errors
    /// The kernel's: the caller must take all pages as written then, and make another tracker.
    fn take(&mut self, remote: &Remote, zones: &[Zone], parked: bool) -> RmResult<Found>;

    /// In a stop before the first look: large zones begin to be watched, such that [`Self::ahead`] can protect them.
    ///
    /// # Errors
    /// As [`Self::take`].
    fn prepare(&mut self, _: &Remote, _: &[Zone]) -> RmResult<()> {
        Ok(())
    }

    /// While the process runs: pages of private memory without a file, in zones that are watched, which were written since the last
    /// look. They are protected from here on, so that this is the last look at them. `None`: it cannot tell.
    ///
    /// # Errors
    /// As [`Self::take`].
    fn ahead(&mut self, _: &Remote, _: &[Zone]) -> RmResult<Option<Vec<Range>>> {
        Ok(None)
    }
}

/// Can its pages be told apart? Those of a file without a name are read whole every time.
fn is_tracked(zone: &Zone) -> bool {
    zone.is_private() && !zone.deleted
}

/// All pages, at every epoch: works everywhere.
pub struct FullScan;

impl Tracker for FullScan {
    fn name(&self) -> &'static str {
        "full-scan"
    }

    fn take(&mut self, _: &Remote, _: &[Zone], _: bool) -> RmResult<Found> {
        Ok(Found::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: engines are named as epochs name them, others are refused with the names there are. Method: parse.
    #[test]
    fn engines_by_name() {
        assert_eq!("full-scan".parse(), Ok(Engine::FullScan));
        assert_eq!("userfaultfd".parse(), Ok(Engine::Userfaultfd));
        assert_eq!("auto".parse(), Ok(Engine::default()));
        assert_eq!("soft-dirty".parse(), Ok(Engine::SoftDirty));
        assert!("dirty".parse::<Engine>().is_err_and(|cause| cause.contains("userfaultfd, soft-dirty")));
    }
}
