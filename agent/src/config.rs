//! Settings: a TOML file, every one also as an option of `holod`; options win.

use clap::Parser;
use holo_rm::track::Engine;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Keeps applications alive when their machine dies: the agent of a node.
#[derive(Parser, Clone, Debug, Default, Deserialize)]
#[command(name = "holod", version, about, long_about = None)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// Read settings from this file (TOML; the names are those of the options).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where epochs and records are kept.
    #[arg(long, env = "HOLO_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Socket for programs and the holo command.
    #[arg(long, env = "HOLO_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// libholo.so (default: beside holod, or in ../lib/holo).
    #[arg(long, env = "HOLO_LIBRARY", value_name = "PATH")]
    pub library: Option<PathBuf>,
    /// holo-restorer (default: beside holod, or in ../lib/holo).
    #[arg(long, env = "HOLO_RESTORER", value_name = "PATH")]
    pub restorer: Option<PathBuf>,
    /// Serve other nodes at this address.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Another node: its name and address. May be repeated.
    #[arg(long = "peer", value_name = "NAME=ADDR:PORT")]
    pub peers: Vec<String>,
    /// Install this bundle of keys (made by `holo node add`) first.
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// Milliseconds between heartbeats.
    #[arg(long, value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// Milliseconds for which a node may run an application after the others were last heard.
    #[arg(long, value_name = "MS")]
    pub lease_ms: Option<u64>,
    /// Milliseconds of silence after which a stand-by takes over; longer than the lease.
    #[arg(long, value_name = "MS")]
    pub failover_ms: Option<u64>,
    /// Epochs kept of an application unless it says otherwise.
    #[arg(long, value_name = "N")]
    pub keep_epochs: Option<u32>,
    /// How pages are found that changed since the epoch before: auto (the best that works), userfaultfd, soft-dirty,
    /// full-scan.
    #[arg(long, env = "HOLO_ENGINE", value_name = "ENGINE")]
    pub engine: Option<String>,
    /// Clones of applications that this node stands by for: hot (kept in memory, as of the last epoch) or cold (made from the
    /// store when they are needed).
    #[arg(long, env = "HOLO_CLONES", value_name = "HOW")]
    pub clones: Option<String>,
}

/// Settings, complete.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// The socket.
    pub socket: PathBuf,
    /// libholo.so.
    pub library: PathBuf,
    /// holo-restorer.
    pub restorer: PathBuf,
    /// Address for other nodes.
    pub listen: Option<String>,
    /// Other nodes: name and address.
    pub peers: Vec<(String, String)>,
    /// Keys to install first.
    pub keys: Option<PathBuf>,
    /// Heartbeat, lease, fail-over; none: the cluster's defaults.
    pub timing_ms: [Option<u64>; 3],
    /// Epochs kept.
    pub keep_epochs: u32,
    /// How changed pages are found.
    pub engine: Engine,
    /// Clones are kept in memory.
    pub hot: bool,
}

/// Why the settings are no good.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("{path}: {what}")]
    File {
        /// Path.
        path: PathBuf,
        /// Cause.
        what: String,
    },
    /// A setting.
    #[error("{setting}: {what}")]
    Setting {
        /// Name.
        setting: &'static str,
        /// What is wrong and what to do.
        what: String,
    },
}

const KEEP_EPOCHS: u32 = 10;

fn setting(setting: &'static str, what: impl Into<String>) -> ConfigError {
    ConfigError::Setting { setting, what: what.into() }
}

/// A file that is installed with the agent.
fn beside(name: &str, name_of_setting: &'static str) -> Result<PathBuf, ConfigError> {
    let exe = std::env::current_exe().map_err(|cause| setting(name_of_setting, cause.to_string()))?;
    let dir = exe.parent().unwrap_or(Path::new("/"));
    let places = [dir.join(name), dir.join("../lib/holo").join(name)];
    places.iter().find(|path| path.is_file()).and_then(|path| path.canonicalize().ok()).ok_or_else(|| {
        setting(
            name_of_setting,
            format!("{name} is neither beside {} nor in ../lib/holo; give its path", exe.display()),
        )
    })
}

impl Options {
    /// Completes the options with the file and the defaults.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn complete(mut self) -> Result<Config, ConfigError> {
        if let Some(path) = self.config.clone() {
            let bad = |what: String| ConfigError::File { path: path.clone(), what };
            let text = std::fs::read_to_string(&path).map_err(|cause| bad(cause.to_string()))?;
            let file: Self = toml::from_str(&text).map_err(|cause| bad(cause.to_string()))?;
            self = self.or(file);
        }
        let home = || std::env::var_os("HOME").map(PathBuf::from);
        let state_dir = self
            .state_dir
            .or_else(|| Some(home()?.join(".local/state/holo")))
            .ok_or_else(|| setting("state-dir", "neither it nor HOME is set"))?;
        let socket = self.socket.unwrap_or_else(|| default_socket(&state_dir));
        let peers = self.peers.iter().map(|peer| {
            peer.split_once('=')
                .filter(|(name, address)| !name.is_empty() && address.contains(':'))
                .map(|(name, address)| (name.to_owned(), address.to_owned()))
                .ok_or_else(|| setting("peer", format!("`{peer}` is not NAME=ADDR:PORT")))
        });
        Ok(Config {
            socket,
            library: self.library.map_or_else(|| beside("libholo.so", "library"), Ok)?,
            restorer: self.restorer.map_or_else(|| beside("holo-restorer", "restorer"), Ok)?,
            listen: self.listen,
            peers: peers.collect::<Result<_, _>>()?,
            keys: self.keys,
            timing_ms: [self.heartbeat_ms, self.lease_ms, self.failover_ms],
            keep_epochs: self.keep_epochs.unwrap_or(KEEP_EPOCHS).max(1),
            engine: match self.engine.as_deref() {
                None | Some("") => Engine::default(),
                Some(name) => name.parse().map_err(|what: String| setting("engine", what))?,
            },
            hot: match self.clones.as_deref() {
                None | Some("" | "hot") => true,
                Some("cold") => false,
                Some(other) => return Err(setting("clones", format!("`{other}` is neither hot nor cold"))),
            },
            state_dir,
        })
    }

    fn or(self, file: Self) -> Self {
        Self {
            config: self.config,
            state_dir: self.state_dir.or(file.state_dir),
            socket: self.socket.or(file.socket),
            library: self.library.or(file.library),
            restorer: self.restorer.or(file.restorer),
            listen: self.listen.or(file.listen),
            peers: if self.peers.is_empty() { file.peers } else { self.peers },
            keys: self.keys.or(file.keys),
            heartbeat_ms: self.heartbeat_ms.or(file.heartbeat_ms),
            lease_ms: self.lease_ms.or(file.lease_ms),
            failover_ms: self.failover_ms.or(file.failover_ms),
            keep_epochs: self.keep_epochs.or(file.keep_epochs),
            engine: self.engine.or(file.engine),
            clones: self.clones.or(file.clones),
        }
    }
}

/// The socket of an agent with this state directory, where nothing else is said. The same rule as in the
/// `holo` command and in libholo: `$XDG_RUNTIME_DIR/holo/agent.sock` unless a state directory was chosen.
fn default_socket(state_dir: &Path) -> PathBuf {
    match (std::env::var_os("HOLO_STATE_DIR"), std::env::var_os("XDG_RUNTIME_DIR")) {
        (None, Some(run)) => PathBuf::from(run).join("holo/agent.sock"),
        _ => state_dir.join("agent.sock"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_win_over_the_file_and_unknown_names_are_refused() {
        let file: Options = toml::from_str("listen = \"127.0.0.1:1\"\nlease-ms = 5\n").unwrap();
        let options = Options { lease_ms: Some(7), ..Options::default() }.or(file);
        assert_eq!((options.lease_ms, options.listen.as_deref()), (Some(7), Some("127.0.0.1:1")));
        assert!(toml::from_str::<Options>("lease = 5").is_err());
    }

    #[test]
    fn a_peer_without_a_name_is_refused() {
        let options = Options {
            state_dir: Some("/x".into()),
            library: Some("/l".into()),
            restorer: Some("/r".into()),
            peers: vec!["10.0.0.1:7".into()],
            ..Options::default()
        };
        assert!(options.complete().unwrap_err().to_string().contains("NAME=ADDR:PORT"));
    }

    #[test]
    fn an_engine_that_there_is_not_is_refused() {
        let named = |engine: &str| Options {
            state_dir: Some("/x".into()),
            library: Some("/l".into()),
            restorer: Some("/r".into()),
            engine: Some(engine.into()),
            ..Options::default()
        };
        assert_eq!(named("full-scan").complete().unwrap().engine, Engine::FullScan);
        assert!(named("dirty-magic").complete().unwrap_err().to_string().contains("userfaultfd"));
        let clones = |how: &str| Options { clones: Some(how.into()), ..named("") };
        assert!(named("").complete().unwrap().hot && !clones("cold").complete().unwrap().hot);
        assert!(clones("tepid").complete().unwrap_err().to_string().contains("neither hot nor cold"));
    }
}
