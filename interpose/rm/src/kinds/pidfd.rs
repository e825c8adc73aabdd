//! Descriptors of processes: of the application's own, of those that have ended, and of those that nobody knows any more.

use super::kernel::owned;
use super::open::{Dumping, Each, Making, Open};
use crate::barrier::inner_tid;
use crate::grow::{any_child, end};
use crate::manager::{Context, RmError, RmResult};
use crate::remote::Remote;
use crate::tree::{child_of, state_and_parent};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;

/// What the kernel calls `PIDFD_THREAD`.
const OF_THREAD: i32 = libc::O_EXCL;

/// Whom a descriptor leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Whom {
    /// A process, by its place in the tree.
    Process(u32),
    /// A child that has ended and was not waited for, by its pid and the place of its parent.
    Ended(u32, i32),
    /// Nobody any more.
    Gone,
}

/// A pidfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PidState {
    whom: Whom,
}

impl PidState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let pid: Option<i32> = open.info.field("Pid:").and_then(|pid| pid.parse().ok());
        let pid = pid.ok_or_else(|| open.unsupported("the kernel does not show its process"))?;
        let processes = dumping.cx.processes;
        let place = |pid: i32| processes.iter().position(|process| process.remote.pid == pid);
        if pid == -1 {
            return Ok(Self { whom: Whom::Gone });
        }
        if let Some(index) = place(pid) {
            return Ok(Self { whom: Whom::Process(index as u32) });
        }
        match state_and_parent(pid).map(|(state, parent)| (state, place(parent))) {
            Some(('Z', Some(parent))) => Ok(Self { whom: Whom::Ended(parent as u32, inner_tid(pid, pid)) }),
            _ if open.flags() & OF_THREAD != 0 => {
                Err(open.unsupported(format!("of a thread ({pid}) that is not the first of its process")))
            }
            _ => Err(open.unsupported(format!("of process {pid}, which is not of the application"))),
        }
    }
}

fn pidfd(pid: i32, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) } as i32)
}

/// One of a process that was reaped: of others the kernel says that they are no processes.
fn of_nobody(clone: &Remote, flags: i32) -> RmResult<OwnedFd> {
    let moment = any_child(clone)?;
    let made = pidfd(moment.pid, flags);
    let inner = inner_tid(moment.pid, moment.pid);
    end(&moment, Some((clone, inner)))?;
    made.on("making", "a descriptor of a process that is gone")
}

/// Makes all of them again; the processes are there.
pub(crate) fn recreate(all: &Each<PidState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        let number = making.common(*index).number;
        let bad = || {
            RmError::Unsupported(format!("descriptor {number}: its process {:?} is not there", state.whom))
        };
        let now = |place: u32| making.pids.get(place as usize).map(|(_, now)| *now).ok_or_else(bad);
        let flags = making.flags(*index) & (libc::O_NONBLOCK | OF_THREAD);
        let made = match state.whom {
            Whom::Process(place) => pidfd(now(place)?, flags),
            Whom::Ended(parent, pid) => pidfd(child_of(now(parent)?, pid).ok_or_else(bad)?, flags),
            Whom::Gone => {
                let made = of_nobody(making.clone.ok_or_else(bad)?, flags)?;
                making.put(*index, made)?;
                continue;
            }
        };
        making.put(*index, made.on("making process descriptor", number)?)?;
    }
    Ok(())
}
