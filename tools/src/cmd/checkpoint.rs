//! `holo checkpoint` and `holo epochs`.

use std::io::Write;

use holo_api::local::{EpochInfo, Request};

use crate::args::{Epochs, Named};
use crate::client::{LONG, QUICK, call, pick};
use crate::error::CliError;
use crate::paths::Agent;
use crate::table::{Align, Table};
use crate::{daemon, human, json};

pub(super) fn take(args: &Named, agent: &Agent) -> Result<u8, CliError> {
    let request = Request::Checkpoint { name: args.name.clone() };
    let epoch = call(&agent.socket, &request, LONG, pick!(Epoch))?;
    if args.json {
        json::print(&json::Epoch::from(&epoch))?;
    } else {
        writeln!(std::io::stdout().lock(), "{}", sentence(&args.name, &epoch))?;
    }
    Ok(0)
}

fn sentence(name: &str, epoch: &EpochInfo) -> String {
    format!(
        "{name}: epoch {} {} ({}), stopped for {}, done in {}, {} changed, {} written",
        epoch.epoch,
        if epoch.sealed { "sealed" } else { "not sealed" },
        human::plain(&human::list(&epoch.sealed_where)),
        human::micros(epoch.stop_us),
        human::micros(epoch.dump_us),
        pages(epoch.pages_dirty),
        human::bytes(epoch.bytes_sent),
    )
}

fn pages(count: u64) -> String {
    if count == 1 { "1 page".to_owned() } else { format!("{count} pages") }
}

pub(super) fn list(args: &Epochs, agent: &Agent) -> Result<u8, CliError> {
    // Epochs are there to be listed after the agent and the whole node died.
    daemon::ensure(agent)?;
    let request = Request::Epochs { name: args.name.clone(), aside: args.aside };
    let epochs = call(&agent.socket, &request, QUICK, pick!(Epochs))?;
    if args.json {
        json::print(&epochs.iter().map(json::Epoch::from).collect::<Vec<_>>())?;
    } else {
        write!(std::io::stdout().lock(), "{}", table(&epochs, args.aside))?;
    }
    Ok(0)
}

fn table(epochs: &[EpochInfo], aside: bool) -> Table {
    use Align::{Left, Right};
    let mut columns = vec![
        ("EPOCH", Right),
        ("AT", Left),
        ("SEALED", Left),
        ("WHERE", Left),
        ("STOP", Right),
        ("DUMP", Right),
        ("PROCS", Right),
        ("THREADS", Right),
        ("PAGES", Right),
        ("FILES", Right),
        ("STATE", Right),
        ("WRITTEN", Right),
        ("ENGINE", Left),
        ("BY KIND", Left),
    ];
    if aside {
        columns.insert(0, ("ASIDE", Right));
    }
    let mut table = Table::new(&columns);
    for epoch in epochs {
        let kinds: Vec<String> = epoch
            .bytes_by_kind
            .iter()
            .map(|(kind, bytes)| format!("{kind} {}", human::bytes(*bytes)))
            .collect();
        let mut row = vec![
            epoch.epoch.to_string(),
            epoch.at.clone(),
            if epoch.sealed { "yes" } else { "no" }.to_owned(),
            human::list(&epoch.sealed_where),
            human::micros(epoch.stop_us),
            human::micros(epoch.dump_us),
            epoch.processes.to_string(),
            epoch.threads.to_string(),
            epoch.pages_dirty.to_string(),
            epoch.files_changed.to_string(),
            human::bytes(epoch.bytes_raw),
            human::bytes(epoch.bytes_sent),
            epoch.engine.clone(),
            human::list(&kinds),
        ];
        if aside {
            row.insert(0, epoch.aside_unix_ms.unwrap_or(0).to_string());
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_one_sentence() {
        let epoch = EpochInfo {
            epoch: 3,
            sealed: true,
            sealed_where: vec!["local".into()],
            stop_us: 1500,
            dump_us: 20_000,
            pages_dirty: 1,
            bytes_sent: 4096,
            ..EpochInfo::default()
        };
        let expected =
            "r: epoch 3 sealed (local), stopped for 1.5 ms, done in 20.0 ms, 1 page changed, 4.0 KiB written";
        assert_eq!(sentence("r", &epoch), expected);
    }
}
