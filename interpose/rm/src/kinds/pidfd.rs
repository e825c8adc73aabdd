//! Descriptors of processes: of the application's own, of those that have ended, and of those that nobody knows any more.

use super::kernel::owned;
use super::open::{Dumping, Each, Making, Open};
use crate::barrier::inner_tid;
use crate::face::PIDFD_THREAD;
use crate::grow::{any_child, end};
use crate::manager::{Context, RmError, RmResult};
use crate::tree::{child_of, state_and_parent};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

/// Whom a descriptor leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Whom {
    /// A process, by its place in the tree.
    Process(u32),
    /// A child that has ended and was not waited for, by its pid and the place of its parent.
    Ended(u32, i32),
    /// Nobody any more, by the inode that all descriptors of one process have.
    Gone(u64),
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
            return Ok(Self { whom: Whom::Gone(open.stat.st_ino) });
        }
        if let Some(index) = place(pid) {
            return Ok(Self { whom: Whom::Process(index as u32) });
        }
        match state_and_parent(pid).map(|(state, parent)| (state, place(parent))) {
            Some(('Z', Some(parent))) => Ok(Self { whom: Whom::Ended(parent as u32, inner_tid(pid, pid)) }),
            _ if open.flags() & PIDFD_THREAD != 0 => {
                Err(open.unsupported(format!("of a thread ({pid}) that is not the first of its process")))
            }
            _ => Err(open.unsupported(format!("of process {pid}, which is not of the application"))),
        }
    }
}

pub(crate) fn pidfd(pid: i32, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) } as i32)
}

/// Descriptors of processes that were reaped, of which the kernel says of others that they are no processes.
fn of_nobody(all: &Each<PidState>, gone: u64, making: &mut Making) -> RmResult<()> {
    let bad = || RmError::Unsupported("no process can be made".into());
    let clone = making.clone.ok_or_else(bad)?;
    let moment = any_child(clone)?;
    let same = all.iter().filter(|(_, state)| state.whom == Whom::Gone(gone));
    let made: io::Result<Vec<_>> =
        same.map(|(index, _)| Ok((*index, pidfd(moment.pid, settable(making, *index))?))).collect();
    let inner = inner_tid(moment.pid, moment.pid);
    end(&moment, Some((clone, inner)))?;
    let made = made.on("making", "descriptors of a process that is gone")?;
    made.into_iter().try_for_each(|(index, fd)| making.put(index, fd))
}

fn settable(making: &Making, index: u32) -> i32 {
    making.flags(index) & (libc::O_NONBLOCK | PIDFD_THREAD)
}

/// Makes all of them again; the processes are there.
pub(crate) fn recreate(all: &Each<PidState>, making: &mut Making) -> RmResult<()> {
    let mut gone = BTreeSet::new();
    for (index, state) in all {
        let number = making.common(*index).number;
        let bad = || {
            RmError::Unsupported(format!("descriptor {number}: its process {:?} is not there", state.whom))
        };
        let now = |place: u32| making.pids.get(place as usize).map(|(_, now)| *now).ok_or_else(bad);
        let flags = settable(making, *index);
        let made = match state.whom {
            Whom::Process(place) => pidfd(now(place)?, flags),
            Whom::Ended(parent, pid) => pidfd(child_of(now(parent)?, pid).ok_or_else(bad)?, flags),
            Whom::Gone(inode) => {
                if gone.insert(inode) {
                    of_nobody(all, inode, making)?;
                }
                continue;
            }
        };
        making.put(*index, made.on("making process descriptor", number)?)?;
    }
    Ok(())
}
