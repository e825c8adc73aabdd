//! Event counters.

use super::kernel::{owned, write_all};
use super::open::{Dumping, Each, Making, Open};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};

/// An eventfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventState {
    count: u64,
    semaphore: bool,
}

impl EventState {
    pub(crate) fn describe(open: &Open, _: &mut Dumping) -> RmResult<Self> {
        let count = open.info.number("eventfd-count:", 16);
        Ok(Self {
            count: count.ok_or_else(|| open.unsupported("the kernel does not show its count"))?,
            semaphore: open.info.number("eventfd-semaphore:", 10) == Some(1),
        })
    }
}

/// Makes all counters again.
pub(crate) fn recreate(all: &Each<EventState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        let flags = if state.semaphore { libc::EFD_SEMAPHORE } else { 0 } | libc::EFD_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = owned(unsafe { libc::eventfd(0, flags) }).on("making", "event counter")?;
        if state.count > 0 {
            write_all(&fd, &state.count.to_ne_bytes()).on("setting", "event counter")?;
        }
        making.put(*index, fd)?;
    }
    Ok(())
}
