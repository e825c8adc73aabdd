//! The parts of holo on this host: programs, state directory, agent.

use std::path::{Path, PathBuf};

use super::{Probe, Status};
use crate::client;
use crate::error::CliError;
use crate::human;
use crate::paths::{Agent, program};

const GROUP: &str = "holo";

/// Free space below which a host is not fit to keep epochs.
const DISK_BYTES_MIN: u64 = 1 << 30;

pub(super) fn probes(agent: &Agent) -> Vec<Probe> {
    vec![holod(), disk(&agent.state_dir), answers(agent)]
}

fn holod() -> Probe {
    let means = "holo run and holo restore start the agent where none answers";
    let probe = Probe::ok(GROUP, "holod", means, "");
    match program("holod") {
        Some(path) => Probe { why: path.display().to_string(), ..probe },
        None => Probe { why: "neither next to holo nor in PATH".to_owned(), ..probe }
            .bad(Status::Degraded, "install holod next to holo"),
    }
}

/// The nearest directory that exists.
fn existing(dir: &Path) -> PathBuf {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn disk(state_dir: &Path) -> Probe {
    let means = "epochs are kept there";
    let dir = existing(state_dir);
    let probe = Probe::ok(GROUP, "state_dir", means, "").needed();
    let writable = nix::unistd::access(&dir, nix::unistd::AccessFlags::W_OK);
    match (writable, nix::sys::statvfs::statvfs(&dir)) {
        (Err(e), _) | (_, Err(e)) => Probe { why: format!("{}: {e}", dir.display()), ..probe }
            .bad(Status::Missing, "set HOLO_STATE_DIR to a directory that you can write to"),
        (Ok(()), Ok(fs)) => {
            let free = fs.blocks_available().saturating_mul(fs.fragment_size());
            let probe = Probe { why: format!("{}: {} free", dir.display(), human::bytes(free)), ..probe };
            if free >= DISK_BYTES_MIN {
                return probe;
            }
            probe.bad(Status::Degraded, "make room, or set HOLO_STATE_DIR to a larger file system")
        }
    }
}

fn answers(agent: &Agent) -> Probe {
    let means = "an agent takes and keeps the epochs; holo run starts one";
    let probe = Probe::ok(GROUP, "agent", means, "");
    match client::status(&agent.socket) {
        Ok(status) => Probe {
            why: format!(
                "holod {} (pid {}) answers at {} as node {}, state in {}",
                status.version,
                status.pid,
                agent.socket.display(),
                status.node,
                status.state_dir
            ),
            ..probe
        },
        Err(CliError::NoAgent { socket, source }) => {
            Probe { why: format!("none at {}: {source}", socket.display()), ..probe }
                .bad(Status::Degraded, "start holod, or let holo run do it")
        }
        Err(error) => Probe { why: error.to_string(), ..probe }
            .bad(Status::Missing, "end that agent and start it again"),
    }
}
