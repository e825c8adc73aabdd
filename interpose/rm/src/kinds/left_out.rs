//! Segments of System V that a snapshot does not get.

use crate::kinds::zones::{Zone, ZoneKind};
use crate::manager::{Context, RmResult};
use crate::remote::{Remote, call};
use holo_abi::sysno;

const MADV_DONTFORK: u64 = 10;
const MADV_DOFORK: u64 = 11;

/// A snapshot must not hold segments: it would count as attached. For as long as this lives, a fork leaves them out.
pub(crate) struct LeftOut<'a> {
    remote: &'a Remote,
    zones: Vec<(u64, u64)>,
}

impl<'a> LeftOut<'a> {
    /// Of zones with their flags.
    pub(crate) fn of(remote: &'a Remote, all: &[Zone]) -> RmResult<Self> {
        let mut guard = Self { remote, zones: Vec::new() };
        let kept = |zone: &&Zone| zone.kind == ZoneKind::SysV && !zone.flags.contains(b"dc");
        guard.zones = all.iter().filter(kept).map(|zone| (zone.start, zone.bytes())).collect();
        if !guard.zones.is_empty() {
            guard.advise(MADV_DONTFORK)?;
        }
        Ok(guard)
    }

    fn advise(&self, advice: u64) -> RmResult<()> {
        let mut calls: Vec<_> =
            self.zones.iter().map(|(at, bytes)| call(sysno::madvise, &[*at, *bytes, advice])).collect();
        self.remote.run_all(&mut calls).on("advising", "System V shared memory")
    }
}

impl Drop for LeftOut<'_> {
    fn drop(&mut self) {
        if !self.zones.is_empty() {
            let _ = self.advise(MADV_DOFORK);
        }
    }
}
