//! Where the agent's things are: state directory, socket, the programs of holo.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::args::Place;
use crate::error::CliError;

/// Longest path of a unix socket: `sun_path` holds 108 bytes with its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A resolved [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// State directory, absolute.
    pub state_dir: PathBuf,
    /// Socket, absolute.
    pub socket: PathBuf,
}

/// The parts of the environment that say where an agent is.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `HOME`, or the home directory of the user database.
    pub home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// Current directory, for relative paths.
    pub cwd: PathBuf,
}

impl Surroundings {
    /// Of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            home: set("HOME").or_else(home_of_user),
            runtime_dir: set("XDG_RUNTIME_DIR").filter(|p| p.is_absolute()),
            cwd: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        }
    }
}

fn home_of_user() -> Option<PathBuf> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir)
}

/// Says where the agent is. An explicit state directory brings its own socket, so that agents with different
/// state directories never meet at `$XDG_RUNTIME_DIR`.
pub fn agent(place: &Place, around: &Surroundings) -> Result<Agent, CliError> {
    let explicit = place.state_dir.as_ref().filter(|p| !p.as_os_str().is_empty());
    let state_dir = match (explicit, &around.home) {
        (Some(dir), _) => around.cwd.join(dir),
        (None, Some(home)) => around.cwd.join(home).join(".local/state/holo"),
        (None, None) => {
            return Err(CliError::Usage(
                "no state directory: HOME is not set and the user has no home; set HOLO_STATE_DIR".to_owned(),
            ));
        }
    };
    let socket = match (place.socket.as_ref().filter(|p| !p.as_os_str().is_empty()), &around.runtime_dir) {
        (Some(socket), _) => around.cwd.join(socket),
        (None, Some(runtime)) if explicit.is_none() => runtime.join("holo/agent.sock"),
        (None, _) => state_dir.join("agent.sock"),
    };
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(CliError::Usage(format!(
            "the socket path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes; set HOLO_SOCKET to a shorter one",
            socket.display()
        )));
    }
    Ok(Agent { state_dir, socket })
}

/// Finds a program of holo: next to this executable, then in `$PATH`.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    let path = env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(env::split_paths(&path).map(|dir| dir.join(name))).find(|p| is_executable(p))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn around() -> Surroundings {
        Surroundings {
            home: Some("/home/u".into()),
            runtime_dir: Some("/run/user/1".into()),
            cwd: "/cwd".into(),
        }
    }

    #[test]
    fn defaults() {
        let found = agent(&Place::default(), &around()).unwrap();
        assert_eq!(found.state_dir, Path::new("/home/u/.local/state/holo"));
        assert_eq!(found.socket, Path::new("/run/user/1/holo/agent.sock"));
        let found = agent(&Place::default(), &Surroundings { runtime_dir: None, ..around() }).unwrap();
        assert_eq!(found.socket, Path::new("/home/u/.local/state/holo/agent.sock"));
    }

    #[test]
    fn explicit_places() {
        let place = Place { state_dir: Some("s".into()), socket: None };
        let found = agent(&place, &around()).unwrap();
        assert_eq!(found.state_dir, Path::new("/cwd/s"));
        assert_eq!(found.socket, Path::new("/cwd/s/agent.sock"));
        let place = Place { state_dir: None, socket: Some("/x.sock".into()) };
        assert_eq!(agent(&place, &around()).unwrap().socket, Path::new("/x.sock"));
    }

    #[test]
    fn impossible_places() {
        let place = Place { state_dir: Some("d".repeat(120).into()), socket: None };
        assert!(agent(&place, &around()).unwrap_err().to_string().contains("HOLO_SOCKET"));
        let nowhere = Surroundings { home: None, ..around() };
        assert!(agent(&Place::default(), &nowhere).unwrap_err().to_string().contains("HOLO_STATE_DIR"));
    }
}
