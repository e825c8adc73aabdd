//! The command line as `clap` types: the contract that scripts depend on.

mod cfor;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use holo_api::local::Consistency;

pub use cfor::{Cfor, CforCommand, CforDiff, CforLog, CforPack, CforShow, CforUnpack, CforVerify, Source};

/// Keeps an unmodified Linux application alive when its machine dies.
#[derive(Debug, Parser)]
#[command(name = "holo", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// Where this command finds the agent.
    #[command(flatten)]
    pub place: Place,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such application, epoch or node, 4 refused in the present \
state, 5 the application cannot be checkpointed, 6 stored data are damaged, 7 a node cannot be reached, \
8 no agent answers. `holo run` exits with the application's status; 125, 126 and 127 say that holo refused, \
that the command cannot be executed, that it was not found.";

/// Where an agent lives.
#[derive(Args, Clone, Debug, Default)]
pub struct Place {
    /// State directory of the agent [default: ~/.local/state/holo]
    #[arg(long, global = true, env = "HOLO_STATE_DIR", hide_env_values = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Socket of the agent [default: agent.sock in $XDG_RUNTIME_DIR/holo, or in the state directory]
    #[arg(long, global = true, env = "HOLO_SOCKET", hide_env_values = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command as a protected application
    Run(Run),
    /// List the applications
    Ps(Listing),
    /// Take an epoch now; returns when it is sealed where it must be
    Checkpoint(Named),
    /// Run an application from its last epoch, or from another one, on this node
    Restore(Restore),
    /// Planned take-over by another node
    Switch(Switch),
    /// Change when epochs of an application are taken
    Set(Set),
    /// End an application and keep its epochs
    Stop(Name),
    /// Forget the epochs of an application that does not run
    Rm(Name),
    /// List the epochs of an application
    Epochs(Epochs),
    /// Show what an application has, and what of it can be replicated
    Graph(Graph),
    /// Files of an application: what changed, what an epoch or a packed file holds
    Cfor(Cfor),
    /// The cluster: its nodes and their keys
    Node(Node),
    /// Live view of the applications and nodes
    Top(Top),
    /// What this host can do, and why not
    Doctor(Listing),
    /// Print the completions of a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Directory that receives one page for each command
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// `holo run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Name of the application [default: from the command]
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// Period of epochs, e.g. 1s or 250ms; 0: only on order; auto: what the budget allows
    #[arg(long, value_parser = every, default_value = "1s", value_name = "TIME")]
    pub every: Every,
    /// With --every auto: part of its time that epochs may take of the application [default: 5%]
    #[arg(long, value_parser = permille, value_name = "PERCENT")]
    pub budget: Option<u32>,
    /// Take an epoch also when the application's memory has grown by so much, e.g. 256M
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub growth: Option<u64>,
    /// Take an epoch also when this file has changed: was written and closed, made, replaced, touched (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub on_change: Vec<PathBuf>,
    /// Directory whose files belong to the application's state (may be repeated)
    #[arg(long = "root", value_name = "DIR")]
    pub roots: Vec<PathBuf>,
    /// File or directory that is left out of the roots, with all below it (may be repeated)
    #[arg(long = "exclude", value_name = "PATH")]
    pub excludes: Vec<PathBuf>,
    /// Node that keeps a hot clone (may be repeated)
    #[arg(long, value_name = "NODE")]
    pub standby: Vec<String>,
    /// What leaves for the outside before an epoch is sealed
    #[arg(long, value_enum, default_value_t = ConsistencyArg::None)]
    pub consistency: ConsistencyArg,
    /// Newest epochs kept [default: the agent's]
    #[arg(long, value_name = "COUNT")]
    pub keep: Option<u32>,
    /// Keep epochs at least this long, beyond that count
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub keep_for: Option<Duration>,
    /// Longest wait for all threads to park [default: 100ms]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub park_max: Option<Duration>,
    /// Refuse to run the command unprotected (HOLO_REQUIRE=1 does the same)
    #[arg(long)]
    pub require: bool,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// [`Consistency`] as an option value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsistencyArg {
    /// Epochs only: a switch loses what happened after the last sealed one
    None,
    /// Nothing leaves before the epoch that contains its cause is sealed
    Commit,
    /// What comes in is logged on the stand-bys before its effects may leave
    Log,
}

impl From<ConsistencyArg> for Consistency {
    fn from(arg: ConsistencyArg) -> Self {
        match arg {
            ConsistencyArg::None => Self::None,
            ConsistencyArg::Commit => Self::Commit,
            ConsistencyArg::Log => Self::Log,
        }
    }
}

/// A listing without an application.
#[derive(Args, Debug)]
pub struct Listing {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// An application.
#[derive(Args, Debug)]
pub struct Name {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
}

/// An application, with JSON output.
#[derive(Args, Debug)]
pub struct Named {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `holo restore`.
#[derive(Args, Debug)]
pub struct Restore {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// Epoch to run from [default: the last sealed one]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// Run epoch N of those that were put aside at this time; `holo epochs --aside` lists them
    #[arg(long, value_name = "TIME", requires = "epoch")]
    pub aside: Option<u64>,
    /// Ask no other node: you vouch that none of them runs the application or will
    #[arg(long)]
    pub force: bool,
    /// Give the application this command's standard descriptors, stay until it ends, exit as it does
    #[arg(long)]
    pub attach: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "attach")]
    pub json: bool,
}

/// `holo epochs`.
#[derive(Args, Debug)]
pub struct Epochs {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// List what was put aside, since the application went on from before it elsewhere
    #[arg(long)]
    pub aside: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// When an epoch is due by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// After this time; 0: never.
    Fixed(Duration),
    /// When the budget allows.
    Auto,
}

/// `holo set`.
#[derive(Args, Debug)]
pub struct Set {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// Period of epochs, e.g. 1s or 250ms; 0: only on order; auto: what the budget allows
    #[arg(long, value_parser = every, value_name = "TIME", required_unless_present_any = ["budget", "growth", "on_change"])]
    pub every: Option<Every>,
    /// With a period that adapts: part of its time that epochs may take of the application
    #[arg(long, value_parser = permille, value_name = "PERCENT")]
    pub budget: Option<u32>,
    /// Take an epoch also when the application's memory has grown by so much, e.g. 256M; 0: not
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub growth: Option<u64>,
    /// Take an epoch also when this file has changed, and not for those named before (may be repeated); none: for no file
    #[arg(long, value_name = "FILE")]
    pub on_change: Vec<PathBuf>,
}

/// `holo switch`.
#[derive(Args, Debug)]
pub struct Switch {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// Node that takes over [default: the first stand-by]
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `holo graph`.
#[derive(Args, Debug)]
pub struct Graph {
    /// Application
    #[arg(value_parser = name)]
    pub name: String,
    /// Output format
    #[arg(long, value_enum, default_value_t = GraphFormat::Text)]
    pub format: GraphFormat,
}

/// Formats of `holo graph`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// A tree for people
    Text,
    /// Graphviz
    Dot,
    /// Nodes and edges
    Json,
}

/// `holo node`.
#[derive(Args, Debug)]
pub struct Node {
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// The subcommands of `holo node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes
    Ls(Listing),
    /// Move every application off a node
    Drain {
        /// Node
        node: String,
    },
    /// Found a cluster: make its authority and the keys of this node
    Init {
        /// Name of this node [default: the host's name]
        name: Option<String>,
    },
    /// Make the keys of another node; for the node that founded the cluster
    Add {
        /// Name of the other node
        name: String,
        /// File that receives them, - for standard output [default: NAME.pem]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Make this node a member, with the keys that `holo node add` made for it
    Join {
        /// File with the keys, - for standard input
        file: PathBuf,
    },
}

/// `holo top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Time between two pictures
    #[arg(long, value_parser = duration, default_value = "1s", value_name = "TIME")]
    pub every: Duration,
}

/// Longest name of an application: it must fit into the packet with which a process joins.
pub const NAME_BYTES_MAX: usize = 64;

/// A name is a file name in the store and a word in every listing.
fn name(text: &str) -> Result<String, String> {
    let ok = |c: char| c.is_ascii_alphanumeric() || "._-+@:".contains(c);
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err(format!("a name has 1 to {NAME_BYTES_MAX} characters"));
    }
    if text.starts_with(['.', '-']) || !text.chars().all(ok) {
        return Err("a name has letters, digits and ._-+@: and does not start with . or -".to_owned());
    }
    Ok(text.to_owned())
}

/// A time with its unit: `250ms`, `1s`, `1.5s`, `2m`, `1h`, `7d`; 0 needs none.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let value: f64 =
        number.parse().map_err(|_| "not a time; write e.g. 250ms, 1s, 2m, 1h or 0".to_owned())?;
    let unit_s = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "" if value == 0.0 => 1.0,
        "" => return Err(format!("say the unit: {number}ms, {number}s, {number}m, {number}h or {number}d")),
        other => return Err(format!("unknown unit '{other}'; use ms, s, m, h or d")),
    };
    let seconds = value * unit_s;
    if value != 0.0 && seconds < 1e-3 {
        return Err("shorter than a millisecond".to_owned());
    }
    // A century: far below the overflow of milliseconds, beyond any sensible period.
    if seconds > 100.0 * 365.0 * 86_400.0 {
        return Err("longer than a century".to_owned());
    }
    Ok(Duration::from_millis((seconds * 1e3).round() as u64))
}

fn every(text: &str) -> Result<Every, String> {
    if text == "auto" { Ok(Every::Auto) } else { duration(text).map(Every::Fixed) }
}

/// `5%`, `0.5%`, in thousandths.
fn permille(text: &str) -> Result<u32, String> {
    let number: Option<f64> = text.strip_suffix('%').and_then(|number| number.parse().ok());
    match number.map(|percent| (percent * 10.0).round()) {
        Some(permille) if (1.0..=1000.0).contains(&permille) => Ok(permille as u32),
        Some(_) => Err("not from 0.1% to 100%".to_owned()),
        None => Err("not a part; write e.g. 5%".to_owned()),
    }
}

/// `0`, `64K`, `256M`, `1.5G`; also `KiB` and so on.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let value: f64 = number.parse().map_err(|_| "not a size; write e.g. 64K, 256M, 1G or 0".to_owned())?;
    let shift = match unit.strip_suffix("iB").unwrap_or(unit) {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "" if value == 0.0 => 0,
        _ => return Err(format!("say the unit: {number}K, {number}M, {number}G or {number}T")),
    };
    Ok((value * (1u64 << shift) as f64) as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        let cases = [
            ("1s", 1000),
            ("250ms", 250),
            ("0", 0),
            ("0s", 0),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ];
        for (text, ms) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "1x", "-1s", "0.1ms", "1e9s", "1.2.3s", "9999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn budgets_and_sizes_have_units() {
        assert_eq!((permille("5%"), permille("0.1%"), permille("100%")), (Ok(50), Ok(1), Ok(1000)));
        assert_eq!((bytes("0"), bytes("64K"), bytes("1.5GiB")), (Ok(0), Ok(1 << 16), Ok(3 << 29)));
        for bad in ["", "5", "%", "0%", "101%", "-1%", "x%", "nan%", "inf%"] {
            assert!(permille(bad).is_err(), "{bad}");
        }
        for bad in ["", "5", "K", "1X", "-1M", "1.2.3K"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!((every("auto"), every("0")), (Ok(Every::Auto), Ok(Every::Fixed(Duration::ZERO))));
    }

    #[test]
    fn names_are_words() {
        for good in ["redis", "a.b-c_d", "web:1", "x@y"] {
            assert_eq!(name(good), Ok(good.to_owned()));
        }
        for bad in ["", ".hidden", "-x", "a/b", "a b", "..", &"n".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_keeps_its_own_options() {
        for line in [
            &["holo", "run", "--name", "r", "--", "cmd", "--every", "-x"][..],
            &["holo", "run", "--name", "r", "cmd", "--every", "-x"][..],
        ] {
            let Command::Run(run) = Cli::try_parse_from(line).unwrap().command else { panic!("not run") };
            assert_eq!(run.command, ["cmd", "--every", "-x"]);
            assert_eq!(run.every, Every::Fixed(Duration::from_millis(holo_api::local::EVERY_MS_DEFAULT)));
        }
        assert!(Cli::try_parse_from(["holo", "run", "--bogus", "cmd"]).is_err());
        assert!(Cli::try_parse_from(["holo", "run"]).is_err());
    }
}
