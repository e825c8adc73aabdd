//! `holo stop` and `holo rm`.

use holo_api::local::{Reply, Request};

use crate::args::Name;
use crate::client::{LONG, call};
use crate::daemon;
use crate::error::CliError;
use crate::paths::Agent;

pub(super) fn stop(args: &Name, agent: &Agent) -> Result<u8, CliError> {
    done(&Request::Stop { name: args.name.clone() }, agent)
}

pub(super) fn rm(args: &Name, agent: &Agent) -> Result<u8, CliError> {
    daemon::ensure(agent)?;
    done(&Request::Rm { name: args.name.clone() }, agent)
}

/// Asks for work that answers nothing but its end.
pub(super) fn done(request: &Request, agent: &Agent) -> Result<u8, CliError> {
    call(&agent.socket, request, LONG, |reply| (reply == Reply::Done).then_some(0))
}
