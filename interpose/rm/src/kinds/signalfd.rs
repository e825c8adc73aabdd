//! Signal descriptors: only the mask is theirs, signals pend with threads and processes.

use super::kernel::owned;
use super::open::{Dumping, Each, Making, Open};
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};

/// A signalfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignalState {
    mask: u64,
}

impl SignalState {
    pub(crate) fn describe(open: &Open, _: &mut Dumping) -> RmResult<Self> {
        let mask = open.info.number("sigmask:", 16);
        Ok(Self { mask: mask.ok_or_else(|| open.unsupported("the kernel does not show its mask"))? })
    }
}

/// Makes all signal descriptors again.
pub(crate) fn recreate(all: &Each<SignalState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        let mask = &raw const state.mask;
        // libc's call knows neither signals 32 and 33 nor masks of the kernel's size.
        // SAFETY: a mask of 8 bytes.
        let made = unsafe { libc::syscall(libc::SYS_signalfd4, -1, mask, 8, libc::SFD_CLOEXEC) };
        making.put(*index, owned(made as i32).on("making", "signal descriptor")?)?;
    }
    Ok(())
}
