//! `holo completions`.

use std::io::Write;

use clap::CommandFactory;

use crate::args::Cli;
use crate::error::CliError;

pub(super) fn main(shell: clap_complete::Shell) -> Result<u8, CliError> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "holo", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(0)
}
