//! What of an application survives the agent: its options and where it runs, one small file each.

use holo_api::local::AppOptions;
use holo_image::wire::{self, Kind, WireError};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const RECORD: Kind = Kind::new(33, 2);
const RECORD_1: Kind = Kind::new(33, 1);
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// A process of an application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its pid on this node.
    pub real_pid: i32,
    /// Its start time in clock ticks (`/proc/<pid>/stat`), so that a reused pid is not taken for it.
    pub started: u64,
    /// Pid as it sees itself.
    pub cluster_pid: u32,
    /// Its control page's file.
    pub page: PathBuf,
}

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name.
    pub name: String,
    /// Options.
    pub options: AppOptions,
    /// Command and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Where it runs, if it does.
    pub instance: Option<Instance>,
    /// Launch: a new one whenever the application is started anew, not when it is restored.
    pub run: u64,
    /// How the last instance ended, for people; empty: by order, or it has not.
    pub ended: String,
    /// It exited, by itself: nobody may run it but by order.
    pub exited: bool,
}

/// Version 1.
#[derive(Deserialize)]
struct Record1 {
    name: String,
    options: AppOptions,
    argv: Vec<Vec<u8>>,
    instance: Option<Instance>,
    run: u64,
}

fn decode(bytes: &[u8]) -> Result<Record, WireError> {
    match wire::decode(bytes, RECORD, RECORD_BYTES_MAX) {
        Err(WireError::OlderVersion { .. }) => {
            let Record1 { name, options, argv, instance, run } =
                wire::decode(bytes, RECORD_1, RECORD_BYTES_MAX)?;
            Ok(Record { name, options, argv, instance, run, ended: String::new(), exited: false })
        }
        record => record,
    }
}

impl Record {
    fn path(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("{name}.app"))
    }

    /// Writes it, atomically.
    ///
    /// # Errors
    /// With the path.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let path = Self::path(dir, &self.name);
        let bytes = wire::encode(self, RECORD).map_err(io::Error::other)?;
        let new = path.with_extension("new");
        let at = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
        fs::write(&new, bytes).map_err(at)?;
        fs::rename(&new, &path).map_err(at)
    }

    /// Makes what was saved durable.
    ///
    /// # Errors
    /// With the path.
    pub fn sync(dir: &Path, name: &str) -> io::Result<()> {
        for path in [Self::path(dir, name), dir.to_owned()] {
            let synced = fs::File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", path.display())))?;
        }
        Ok(())
    }

    /// Reads all records; a damaged one is reported and left where it is.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load_all(dir: &Path) -> io::Result<Vec<Self>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "app") {
                continue;
            }
            match fs::read(&path)
                .map_err(|cause| cause.to_string())
                .and_then(|bytes| decode(&bytes).map_err(|cause| cause.to_string()))
            {
                Ok(record) if holo_image::check_app_name(&record.name).is_ok() => out.push(record),
                Ok(_) => eprintln!("holod: {}: not a name for an application; ignored", path.display()),
                Err(cause) => eprintln!("holod: {}: {cause}; ignored, its epochs are kept", path.display()),
            }
        }
        Ok(out)
    }

    /// Forgets it.
    ///
    /// # Errors
    /// With the path.
    pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
        match fs::remove_file(Self::path(dir, name)) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_damaged_one_is_left() {
        let dir = std::env::temp_dir().join(format!("holo-record-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let record = Record { name: "a".into(), argv: vec![b"x".to_vec()], run: 7, ..Record::default() };
        record.save(&dir).unwrap();
        Record::sync(&dir, "a").unwrap();
        assert!(Record::sync(&dir, "c").is_err());
        fs::write(dir.join("b.app"), b"garbage").unwrap();
        assert_eq!(Record::load_all(&dir).unwrap(), vec![record]);
        assert!(dir.join("b.app").exists());
        Record::remove(&dir, "a").unwrap();
        Record::remove(&dir, "a").unwrap();
        assert!(Record::load_all(&dir).unwrap().is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_record_of_version_1_is_read() {
        let old = ("a", AppOptions::default(), vec![b"x".to_vec()], None::<Instance>, 7u64);
        let bytes = wire::encode(&old, RECORD_1).unwrap();
        let new = Record { name: "a".into(), argv: vec![b"x".to_vec()], run: 7, ..Record::default() };
        assert_eq!(decode(&bytes).unwrap(), new);
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
