//! `holo ps`.

use std::io::Write;

use holo_api::local::{AppInfo, EpochProgress, Request, Step};

use crate::args::Listing;
use crate::client::{QUICK, call, pick};
use crate::error::CliError;
use crate::paths::Agent;
use crate::table::{Align, Table};
use crate::{human, json};

pub(super) fn main(args: &Listing, agent: &Agent) -> Result<u8, CliError> {
    let apps = call(&agent.socket, &Request::Ps, QUICK, pick!(Apps))?;
    if args.json {
        json::print(&apps.iter().map(json::App::from).collect::<Vec<_>>())?;
    } else {
        write!(std::io::stdout().lock(), "{}", table(&apps))?;
    }
    Ok(0)
}

/// The listing for people, also a part of `holo top`.
pub(super) fn table(apps: &[AppInfo]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("NAME", Left),
        ("STATE", Left),
        ("NODE", Left),
        ("EPOCH", Right),
        ("LAG", Right),
        ("STOP", Right),
        ("STANDBY", Left),
        ("PIDS", Left),
        ("COMMAND", Left),
    ]);
    for app in apps {
        let (lag, stop) = match app.epoch {
            0 => ("-".to_owned(), "-".to_owned()),
            _ => (human::millis(app.lag_ms), human::micros(app.stop_us)),
        };
        let clone = match (app.clone.epoch, app.clone.why.as_str()) {
            (0, "") => String::new(),
            (0, why) => format!(", cold: {why}"),
            _ => ", hot".to_owned(),
        };
        let state = match app.reasons.as_slice() {
            [] => format!("{}{clone}", json::state(app.state)),
            reasons => format!("{}: {}", json::state(app.state), reasons.join("; ")),
        };
        let state = app.progress.iter().fold(state, |state, now| format!("{state}, {}", progress(now)));
        table.row(vec![
            app.name.clone(),
            state,
            app.node.clone(),
            if app.epoch == 0 { "-".to_owned() } else { app.epoch.to_string() },
            lag,
            stop,
            human::list(&app.standby),
            human::list(&app.real_pids),
            app.command.clone(),
        ]);
    }
    table
}

/// How far an epoch is: `storing 1.2 GiB of 10.0 GiB`.
fn progress(now: &EpochProgress) -> String {
    let what = match now.step {
        Step::Store => "storing".to_owned(),
        Step::Send => format!("sending to {}", now.node),
    };
    match now.total_bytes {
        0 => what,
        total => format!("{what} {} of {}", human::bytes(now.done_bytes), human::bytes(total)),
    }
}
