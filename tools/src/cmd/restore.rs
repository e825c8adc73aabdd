//! `holo restore` and `holo switch`.

use std::io::Write;

use holo_api::local::{Reply, Request, RestoreInfo};

use crate::args::{Restore, Switch};
use crate::client::{Client, LONG, call, pick};
use crate::daemon::{self, warn};
use crate::error::CliError;
use crate::paths::Agent;
use crate::{human, json};

pub(super) fn restore(args: &Restore, agent: &Agent) -> Result<u8, CliError> {
    // It must work after every process of the application and the agent were killed.
    daemon::ensure(agent)?;
    let (name, epoch, aside) = (args.name.clone(), args.epoch, args.aside);
    let request = Request::Restore { name, epoch, aside, force: args.force, attach: args.attach };
    if args.attach {
        return attach(&request, agent);
    }
    let info = call(&agent.socket, &request, LONG, pick!(Restored))?;
    report(&info, args.json)
}

pub(super) fn switch(args: &Switch, agent: &Agent) -> Result<u8, CliError> {
    let request = Request::Switch { name: args.name.clone(), to: args.to.clone() };
    let info = call(&agent.socket, &request, LONG, pick!(Restored))?;
    report(&info, args.json)
}

fn report(info: &RestoreInfo, as_json: bool) -> Result<u8, CliError> {
    if as_json {
        json::print(&json::Restored::from(info))?;
    } else {
        writeln!(std::io::stdout().lock(), "{}", sentence(info))?;
        remark(info);
    }
    Ok(0)
}

fn sentence(info: &RestoreInfo) -> String {
    format!(
        "{} runs from epoch {} on {} (pid {}), restored in {}, first instruction after {}",
        human::plain(&info.name),
        info.epoch,
        human::plain(&info.node),
        info.real_pid,
        human::micros(info.restore_us),
        human::micros(info.first_instruction_us),
    )
}

fn remark(info: &RestoreInfo) {
    for remark in &info.remarks {
        warn(remark);
    }
}

/// Lends our standard descriptors to the application and ends as it does.
fn attach(request: &Request, agent: &Agent) -> Result<u8, CliError> {
    let mut client = Client::ask(&agent.socket, request, LONG)?;
    client.send_fds([0, 1, 2])?;
    let Reply::Restored(info) = client.answer()? else { return Err(client.unexpected()) };
    // Standard output is the application's from now on.
    warn(&sentence(&info));
    remark(&info);
    client.wait_forever()?;
    let Reply::Exited(status) = client.answer()? else { return Err(client.unexpected()) };
    if libc::WIFSIGNALED(status) {
        return Ok(die_of(libc::WTERMSIG(status)));
    }
    Ok(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(1))
}

/// Dies of the signal that the application died of, so that our parent sees the same; the core is the application's
/// affair.
fn die_of(signal: i32) -> u8 {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the set and the limit are initialised; only this process's own dispositions change.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signal);
    }
    // A signal that does not end a process, from an agent that says it did.
    128u8.wrapping_add(u8::try_from(signal & 0x7f).unwrap_or(0))
}
