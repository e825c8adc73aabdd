//! Files that only their owner may read.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::KeyError;

/// Keys are a few kilobytes; anything else is no key file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn node_file(dir: &Path) -> PathBuf {
    dir.join("keys/node.pem")
}

pub(super) fn authority_file(dir: &Path) -> PathBuf {
    dir.join("keys/ca.pem")
}

fn error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> KeyError + 'a {
    move |source| KeyError::File { what, path: path.to_owned(), source }
}

/// Writes a new file of mode 0600, whole or not at all; its directory gets 0700.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(error("create", dir))?;
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(error("remove", &temporary)(e)),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(error("create", &temporary))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(error("write", &temporary))?;
    // A hard link, unlike a rename, does not replace keys that appeared in the meantime.
    fs::hard_link(&temporary, path).map_err(|e| match e.kind() == ErrorKind::AlreadyExists {
        true => KeyError::Exists(path.to_owned()),
        false => error("create", path)(e),
    })?;
    fs::remove_file(&temporary).map_err(error("remove", &temporary))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(error("sync", dir))
}

/// Reads a file that nobody else may read; `None` if there is none.
pub(super) fn read_private(path: &Path) -> Result<Option<String>, KeyError> {
    let mut file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(error("open", path)(e)),
    };
    let found = file.metadata().map_err(error("look at", path))?;
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::TooOpen { path: path.to_owned(), mode });
    }
    let uid = found.uid();
    if uid != nix::unistd::geteuid().as_raw() && !nix::unistd::geteuid().is_root() {
        return Err(KeyError::Owner { path: path.to_owned(), uid });
    }
    let mut text = String::new();
    let read = Read::take(&mut file, FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(error("read", path))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let why = "too long for a key file".to_owned();
        return Err(KeyError::Damaged { what: path.display().to_string(), why });
    }
    Ok(Some(text))
}
