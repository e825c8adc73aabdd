//! `holo node init`, `add` and `join`: one step for each node. No agent is asked: keys must be there before one listens.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write, stdin, stdout};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use holo_cluster::keys::{self, Bundle, check_name};

use crate::daemon::warn;
use crate::error::CliError;
use crate::paths::Agent;

/// A key file has a few thousand bytes.
const KEYS_BYTES_MAX: u64 = 64 * 1024;
/// In place of a file: standard input or output.
const STANDARD: &str = "-";

pub(super) fn init(name: Option<&str>, agent: &Agent) -> Result<u8, CliError> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => host_name()?,
    };
    let made = keys::init(&agent.state_dir, &name)?;
    writeln!(
        stdout().lock(),
        "founded a cluster; this node is {}, its keys are in {}; keys for another node: holo node add NAME",
        made.name(),
        agent.state_dir.join("keys").display()
    )?;
    Ok(0)
}

pub(super) fn add(name: &str, out: Option<&Path>, agent: &Agent) -> Result<u8, CliError> {
    // Before the file is made: a wrong name is no file name either.
    check_name(name)?;
    let text = keys::add(&agent.state_dir, name)?.to_pem();
    let path = out.map_or_else(|| PathBuf::from(format!("{name}.pem")), Path::to_owned);
    if path == Path::new(STANDARD) {
        stdout().lock().write_all(text.as_bytes())?;
        return Ok(0);
    }
    let fail = |source| CliError::Path { what: "write the keys to", path: path.clone(), source };
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    open.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all())).map_err(fail)?;
    writeln!(
        stdout().lock(),
        "made the keys of {name} in {0}; bring the file to that node in private, run there 'holo node join {0}', then \
         delete it",
        path.display()
    )?;
    Ok(0)
}

pub(super) fn join(file: &Path, agent: &Agent) -> Result<u8, CliError> {
    let fail = |source| CliError::Path { what: "read the keys from", path: file.to_owned(), source };
    let text = if file == Path::new(STANDARD) {
        bounded(stdin().lock()).map_err(fail)?
    } else {
        let keys = File::open(file).map_err(fail)?;
        let mode = keys.metadata().map_err(fail)?.permissions().mode();
        if mode & 0o077 != 0 {
            warn(&format!("{} can be read by others; if it was, make new keys", file.display()));
        }
        bounded(keys).map_err(fail)?
    };
    let bundle = Bundle::from_pem(&text, &file.display().to_string())?;
    let installed = keys::install(&agent.state_dir, &bundle)?;
    writeln!(
        stdout().lock(),
        "this node is {}, its keys are in {}; restart its agent if one runs",
        installed.name(),
        agent.state_dir.join("keys").display()
    )?;
    Ok(0)
}

fn bounded(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(KEYS_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > KEYS_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a file of keys"));
    }
    Ok(text)
}

/// The first word of the host's name.
fn host_name() -> Result<String, CliError> {
    let full = nix::unistd::gethostname().unwrap_or_default();
    let name = full.to_string_lossy().split('.').next().unwrap_or_default().to_owned();
    match check_name(&name) {
        Ok(()) => Ok(name),
        Err(_) => Err(CliError::Usage(format!(
            "this host's name, '{}', cannot be a node's name; give one: holo node init NAME",
            full.to_string_lossy()
        ))),
    }
}
