//! Write leases (`F_SETLEASE`): whoever opens such a file breaks the lease, and its holder gets a signal, which ends it as a rule.
//!
//! In the stop such files are read through the holder's descriptor. While the application runs the agent opens files only
//! as long as no process has taken one, or may have; who is about to waits until the agent has none open (`holo_abi::changes`).

use crate::changes::{Number, Table};
use holo_abi::changes::Changes;
use holo_cfor::Leases;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// Descriptors of parked processes, by the number of the file. They must be closed when these go on: who has given a lease up still
/// has it as long as one of them is open.
#[derive(Default)]
pub(crate) struct Leased(pub(crate) BTreeMap<Number, File>);

impl Leases for Leased {
    fn descriptor(&self, file: Number) -> Option<&File> {
        self.0.get(&file)
    }
}

/// Files are opened while the application runs.
pub(super) struct Running(pub(super) Option<Arc<Table>>);

impl Leases for Running {
    fn open(&self) -> bool {
        let Some(table) = &self.0 else { return false };
        table.table().opened.store(1, SeqCst);
        let is_free = !self.is_wanted();
        if !is_free {
            self.close();
        }
        is_free
    }

    fn is_wanted(&self) -> bool {
        let may_be = |table: &Changes| table.leased.load(SeqCst) | table.blind.load(SeqCst) != 0;
        self.0.as_ref().is_none_or(|table| may_be(table.table()))
    }

    fn close(&self) {
        let Some(table) = &self.0 else { return };
        let opened = &table.table().opened;
        opened.store(0, SeqCst);
        if self.is_wanted() {
            // SAFETY: a word of the table, which stays mapped; the call only wakes.
            unsafe { libc::syscall(libc::SYS_futex, opened.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        }
    }
}
