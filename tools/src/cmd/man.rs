//! `holo man`: one page for the command and one for each subcommand.

use std::fs;
use std::path::Path;

use clap::CommandFactory;

use crate::args::Cli;
use crate::error::CliError;

pub(super) fn main(out: &Path) -> Result<u8, CliError> {
    let fail =
        |path: &Path, source| CliError::Path { what: "write the manual page", path: path.to_owned(), source };
    fs::create_dir_all(out).map_err(|e| fail(out, e))?;
    let mut command = Cli::command();
    command.build();
    let mut open = vec![command];
    while let Some(command) = open.pop() {
        let visible = |sub: &&clap::Command| !sub.is_hide_set() && sub.get_name() != "help";
        open.extend(command.get_subcommands().filter(visible).cloned());
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        let path = out.join(format!("{name}.1"));
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        fs::write(&path, page).map_err(|e| fail(&path, e))?;
    }
    Ok(0)
}
