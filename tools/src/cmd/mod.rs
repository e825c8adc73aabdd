//! One file per subcommand. Each returns the exit code.

mod cfor;
mod checkpoint;
mod completions;
mod doctor;
mod graph;
mod man;
mod node;
mod ps;
mod restore;
mod run;
mod set;
mod stop;
mod top;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Cli, Command};
use crate::daemon::warn;
use crate::error::{CliError, EXIT_RUN_REFUSED};
use crate::paths::{self, Agent, Surroundings};
use crate::stdio;

/// The whole command.
#[must_use]
pub fn main() -> i32 {
    stdio::hold_closed();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if help { 0 } else { i32::from(usage_exit_code()) };
        }
    };
    let code = match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            warn(&error.to_string());
            error.exit_code()
        }
    };
    i32::from(code)
}

/// The exit status of `holo run` is the application's, so a mistake in its own options needs another code than 2.
fn usage_exit_code() -> u8 {
    let mut words = std::env::args_os().skip(1).filter(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    if words.next().is_some_and(|word| word == "run") { EXIT_RUN_REFUSED } else { 2 }
}

fn dispatch(cli: Cli) -> Result<u8, CliError> {
    let agent = || -> Result<Agent, CliError> { paths::agent(&cli.place, &Surroundings::of_process()) };
    match cli.command {
        Command::Run(args) => Ok(run::main(&args, agent())),
        Command::Ps(args) => ps::main(&args, &agent()?),
        Command::Checkpoint(args) => checkpoint::take(&args, &agent()?),
        Command::Epochs(args) => checkpoint::list(&args, &agent()?),
        Command::Restore(args) => restore::restore(&args, &agent()?),
        Command::Switch(args) => restore::switch(&args, &agent()?),
        Command::Set(args) => set::main(&args, &agent()?),
        Command::Stop(args) => stop::stop(&args, &agent()?),
        Command::Rm(args) => stop::rm(&args, &agent()?),
        Command::Graph(args) => graph::main(&args, &agent()?),
        Command::Cfor(args) => cfor::main(&args.command, agent),
        Command::Node(args) => node::main(&args.command, &agent()?),
        Command::Top(args) => top::main(&args, &agent()?),
        Command::Doctor(args) => doctor::main(&args, &agent()?),
        Command::Completions { shell } => completions::main(shell),
        Command::Man { out } => man::main(&out),
    }
}
