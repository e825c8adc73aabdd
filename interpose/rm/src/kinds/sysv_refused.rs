//! System V message queues are not made again yet: an application that uses them is unprotected.
//!
//! Who uses one is told by the process that operated on it last.

use crate::manager::{Context, DumpCx, RmError, RmResult};
use holo_abi::sysno;

const MSG_INFO: u64 = 12;
const MSG_STAT_ANY: u64 = 13;
/// Pids in `struct msqid64_ds`.
const LAST_PIDS_AT: usize = 96;

fn word(bytes: &[u8]) -> i32 {
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Refuses an application that uses what is not made again.
pub(crate) fn check(cx: &DumpCx) -> RmResult<()> {
    let (remote, at) = (cx.remote, cx.remote.page.scratch_address(0));
    let ours = |pid: i32| cx.processes.iter().any(|process| process.pid == pid);
    let last = remote.call(sysno::msgctl, &[0, MSG_INFO, at]).on("listing", "System V message queues")?;
    for index in 0..=last {
        let Ok(id) = remote.call(sysno::msgctl, &[index, MSG_STAT_ANY, at]) else { continue };
        let pids = remote.page.take(LAST_PIDS_AT, 8);
        if let Some(user) = [word(&pids), word(&pids[4..])].into_iter().find(|pid| *pid > 0 && ours(*pid)) {
            return Err(RmError::Unsupported(format!(
                "System V message queue {id} is used by process {user}"
            )));
        }
    }
    Ok(())
}
