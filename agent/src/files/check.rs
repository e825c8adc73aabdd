//! A look at all files now and then, while the application runs: who is not recorded may have changed some.

use super::Files;
use super::leases::Running;
use crate::recorded::Maps;
use holo_cfor::Look;
use std::time::Duration;

/// How often.
const CHECK_EVERY: Duration = Duration::from_secs(60);

impl Files {
    /// Looks at all files now and then while the application runs: somebody may have changed some who was not heard of.
    pub(super) fn check(&mut self) {
        let is_due = self.followed.all_at().is_some_and(|at| at.elapsed() >= CHECK_EVERY);
        let Some(previous) = self.previous.as_ref().filter(|_| is_due) else { return };
        let suspects = self.recorded.suspects(&Maps::default());
        let table = self.recorded.table();
        let leases = Running(table.clone());
        let look = Look {
            roots: &self.roots,
            extra_files: &[],
            excludes: &self.excludes,
            suspects: &suspects,
            leases: &leases,
        };
        let late = || table.as_ref().map(|table| table.peek().files).unwrap_or_default();
        let files = std::cell::OnceCell::new();
        let is_suspect = |number| suspects.contains(&number) || files.get_or_init(late).contains_key(&number);
        match self.followed.check(&look, &previous.tree, &is_suspect) {
            Ok(0) => {}
            Ok(count) => eprintln!("holod: {count} files were changed by others who were not heard of"),
            Err(cause) => eprintln!("holod: looking at all files: {cause}"),
        }
    }
}
