//! `holo cfor`: the file side of epochs.

mod changes;
mod live;
mod show;
mod source;
mod unpack;
mod verify;

use crate::args::{CforCommand, CforDiff, Source};
use crate::error::CliError;
use crate::paths::Agent;

use self::source::Held;

pub(super) fn main(
    command: &CforCommand,
    agent: impl Fn() -> Result<Agent, CliError>,
) -> Result<u8, CliError> {
    let agent = &agent()?;
    match command {
        CforCommand::Log(args) => match args.epoch {
            None => live::main(&args.name, args.json, agent),
            Some(epoch) => {
                let app = Source::App(args.name.clone());
                let to = Held::open(&app, Some(epoch), agent)?;
                let from = Held::before(&args.name, epoch, agent)?;
                differences(from, to, args.json)
            }
        },
        CforCommand::Show(args) => show::main(args, agent),
        CforCommand::Verify(args) => verify::main(args, agent),
        CforCommand::Diff(args) => diff(args, agent),
        CforCommand::Pack(args) => unpack::pack(args, agent),
        CforCommand::Unpack(args) => unpack::unpack(args, agent),
    }
}

fn diff(args: &CforDiff, agent: &Agent) -> Result<u8, CliError> {
    let to = match (&args.from, &args.to) {
        (_, Some(to)) => to,
        (app @ Source::App(_), None) => app,
        (Source::File(path), None) => {
            let path = path.display();
            return Err(CliError::Usage(format!(
                "say what to compare {path} with: an application or another file"
            )));
        }
    };
    let to_held = Held::open(to, args.to_epoch, agent)?;
    let from = match (&args.from, args.epoch, to_held.epoch()) {
        (Source::App(name), None, Some(epoch)) if *to == args.from => Held::before(name, epoch, agent)?,
        (from, epoch, _) => Held::open(from, epoch, agent)?,
    };
    differences(from, to_held, args.json)
}

fn differences(from: Held, to: Held, json: bool) -> Result<u8, CliError> {
    let (from_title, to_title) = (from.title(), to.title());
    let deltas = source::compare(from, to)?;
    changes::print(&from_title, &to_title, true, &deltas, json)?;
    Ok(0)
}
