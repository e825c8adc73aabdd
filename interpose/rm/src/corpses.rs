//! Children that are to be found ended, with their status, when an application is restored.

use crate::grow::{WALL, forget_child_signal, fork_of, wait_for_end};
use crate::kinds::tree::Ended;
use crate::manager::{Context, RmResult};
use crate::remote::{Remote, call};
use holo_abi::control::slot;
use holo_abi::sysno;
use std::sync::atomic::Ordering;

/// Makes a child that is to be found ended.
pub(crate) fn corpse(parent: &Remote, ended: &Ended) -> RmResult<Remote> {
    let corpse = fork_of(parent, ended.pid)?;
    if ended.sid == ended.pid {
        corpse.call(sysno::setsid, &[]).on("making", format!("session {}", ended.sid))?;
    } else if ended.pgid == ended.pid {
        corpse.call(sysno::setpgid, &[0, 0]).on("making", format!("group {}", ended.pgid))?;
    }
    Ok(corpse)
}

/// Ends it as it had ended.
pub(crate) fn bury(corpse: &Remote, parent: &Remote, ended: &Ended) -> RmResult<()> {
    let signal = ended.status & 0x7f;
    if signal == 0 {
        let code = (ended.status >> 8) as u64 & 0xff;
        corpse.page.start(corpse.leader, &[call(sysno::exit_group, &[code])], false);
    } else {
        let none = corpse.page.put(0, &[0; 16]);
        // No core file, and nothing blocked.
        let calls = [
            call(sysno::setrlimit, &[4, none]),
            call(sysno::rt_sigprocmask, &[2, none, 0, 8]),
            call(sysno::kill, &[ended.pid as u64, signal as u64]),
        ];
        corpse.page.start(corpse.leader, &calls, false);
    }
    wait_for_end(corpse.pid)?;
    corpse.page.state(corpse.leader).store(slot::FREE, Ordering::SeqCst);
    forget_child_signal(parent)
}

/// Lets one that is found ended do something before that.
pub(crate) fn before_its_end(
    parent: &Remote,
    ended: &Ended,
    act: &mut dyn FnMut(&Remote) -> RmResult<()>,
) -> RmResult<()> {
    parent.call(sysno::wait4, &[ended.pid as u64, 0, WALL, 0]).on("reaping", ended.pid)?;
    let again = corpse(parent, ended)?;
    let done = act(&again);
    bury(&again, parent, ended)?;
    done
}
