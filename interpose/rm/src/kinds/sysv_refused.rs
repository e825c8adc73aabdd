//! System V semaphores and message queues are not made again yet: an application that uses them is unprotected.
//!
//! Who uses one is told by the process that operated on it last. A set without any operation, or one that only a process
//! that has ended used, belongs to nobody that the kernel tells of.

use crate::manager::{Context, DumpCx, RmError, RmResult};
use crate::remote::{call, outcome};
use holo_abi::sysno;

const SEM_INFO: u64 = 19;
const SEM_STAT_ANY: u64 = 20;
const GETPID: u64 = 11;
const MSG_INFO: u64 = 12;
const MSG_STAT_ANY: u64 = 13;
/// Semaphores of one set that are asked.
const ASKED_MAX: u64 = 64;
/// Number of semaphores in `struct semid64_ds`, pids in `struct msqid64_ds`.
const NSEMS_AT: usize = 80;
const LAST_PIDS_AT: usize = 96;

fn word(bytes: &[u8]) -> i32 {
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Refuses an application that uses what is not made again.
pub(crate) fn check(cx: &DumpCx) -> RmResult<()> {
    let (remote, at) = (cx.remote, cx.remote.page.scratch_address(0));
    let ours = |pid: i32| cx.processes.iter().any(|process| process.pid == pid);
    let refused = |what: &str, id: u64, pid: i32| {
        Err(RmError::Unsupported(format!("System V {what} {id} is used by process {pid}")))
    };
    let mut counts =
        [call(sysno::semctl, &[0, 0, SEM_INFO, at]), call(sysno::msgctl, &[0, MSG_INFO, at + 64])];
    remote.run(&mut counts, false).on("listing", "System V objects")?;
    // In use: `semusz`, `msgpool`.
    let figures = remote.page.take(0, 96);
    let (sets, queues) = (word(&figures[28..]), word(&figures[64..]));
    if sets > 0 {
        for index in 0..=outcome(&counts[0]).unwrap_or(0) {
            let Ok(id) = remote.call(sysno::semctl, &[index, 0, SEM_STAT_ANY, at]) else { continue };
            let count = word(&remote.page.take(NSEMS_AT, 4)).max(0) as u64;
            let asked = (0..count.min(ASKED_MAX)).map(|number| call(sysno::semctl, &[id, number, GETPID]));
            let mut asked: Vec<_> = asked.collect();
            remote.run(&mut asked, false).on("asking", "semaphores")?;
            if let Some(user) = asked.iter().map(|made| made.ret as i32).find(|pid| *pid > 0 && ours(*pid)) {
                return refused("semaphore set", id, user);
            }
        }
    }
    if queues > 0 {
        for index in 0..=outcome(&counts[1]).unwrap_or(0) {
            let Ok(id) = remote.call(sysno::msgctl, &[index, MSG_STAT_ANY, at]) else { continue };
            let pids = remote.page.take(LAST_PIDS_AT, 8);
            if let Some(user) = [word(&pids), word(&pids[4..])].into_iter().find(|pid| *pid > 0 && ours(*pid))
            {
                return refused("message queue", id, user);
            }
        }
    }
    Ok(())
}
