//! `holo cfor` as `clap` types.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::name;

/// `holo cfor`.
#[derive(Args, Debug)]
pub struct Cfor {
    /// What to do.
    #[command(subcommand)]
    pub command: CforCommand,
}

/// The subcommands of `holo cfor`. A packed file is told from an application's name by a slash: ./FILE.
#[derive(Debug, Subcommand)]
pub enum CforCommand {
    /// List the files that changed since the last epoch, or in an epoch
    Log(CforLog),
    /// List the files that an epoch or a packed file holds
    Show(CforShow),
    /// Compare the files here with those of an epoch or a packed file; exits with 1 if they differ
    Verify(CforVerify),
    /// List what differs between two epochs or packed files
    Diff(CforDiff),
    /// Write the files of an epoch to one file
    Pack(CforPack),
    /// Put the files of an epoch or a packed file below an empty directory
    Unpack(CforUnpack),
}

/// An application, or a packed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An application.
    App(String),
    /// A packed file.
    File(PathBuf),
}

fn source(text: &str) -> Result<Source, String> {
    if text.contains('/') {
        return Ok(Source::File(text.into()));
    }
    name(text)
        .map(Source::App)
        .map_err(|why| format!("{why}; a packed file is named with a slash, as ./{text}"))
}

/// `holo cfor log`.
#[derive(Args, Debug)]
pub struct CforLog {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// What changed in this epoch [default: what changed since the last one]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `holo cfor show`.
#[derive(Args, Debug)]
pub struct CforShow {
    /// Application, or packed file (with a slash)
    #[arg(value_parser = source, value_name = "NAME|FILE")]
    pub source: Source,
    /// Epoch of the application [default: the last sealed one]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `holo cfor verify`.
#[derive(Args, Debug)]
pub struct CforVerify {
    /// Application, or packed file (with a slash)
    #[arg(value_parser = source, value_name = "NAME|FILE")]
    pub source: Source,
    /// Epoch of the application [default: the last sealed one]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// Look for all paths below this directory, as `holo cfor unpack` puts them
    #[arg(long, value_name = "DIR")]
    pub under: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `holo cfor diff`.
#[derive(Args, Debug)]
pub struct CforDiff {
    /// Application, or packed file (with a slash)
    #[arg(value_parser = source, value_name = "NAME|FILE")]
    pub from: Source,
    /// What to compare it with [default: the same application]
    #[arg(value_parser = source, value_name = "NAME|FILE")]
    pub to: Option<Source>,
    /// Epoch of the first application [default: the one before the other epoch]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// Epoch of the second one [default: the last sealed one]
    #[arg(long, value_name = "N")]
    pub to_epoch: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `holo cfor pack`.
#[derive(Args, Debug)]
pub struct CforPack {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// File that receives them; it must not exist
    pub file: PathBuf,
    /// Epoch [default: the last sealed one]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
}

/// `holo cfor unpack`.
#[derive(Args, Debug)]
pub struct CforUnpack {
    /// Application, or packed file (with a slash)
    #[arg(value_parser = source, value_name = "NAME|FILE")]
    pub source: Source,
    /// Directory that receives every root under its full path; empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Epoch of the application [default: the last sealed one]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
}
