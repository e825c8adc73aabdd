//! `holo doctor`.

use std::io::Write;

use crate::args::Listing;
use crate::doctor;
use crate::error::CliError;
use crate::json;
use crate::paths::Agent;

pub(super) fn main(args: &Listing, agent: &Agent) -> Result<u8, CliError> {
    let report = doctor::examine(agent);
    if args.json {
        json::print(&report)?;
    } else {
        write!(std::io::stdout().lock(), "{report}")?;
    }
    Ok(u8::from(!report.ok))
}
