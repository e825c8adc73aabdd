//! What of an application survives the agent: its options and where it runs, one small file each.

use holo_api::local::{AppOptions, Consistency};
use holo_image::wire::{self, Kind, WireError};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const RECORD: Kind = Kind::new(33, 5);
const RECORD_4: Kind = Kind::new(33, 4);
const RECORD_3: Kind = Kind::new(33, 3);
const RECORD_2: Kind = Kind::new(33, 2);
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

/// Options before the period could adapt.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Clone, Default, Serialize))]
pub(crate) struct Options2 {
    pub(crate) every_ms: u64,
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) standby: Vec<String>,
    pub(crate) consistency: Consistency,
    pub(crate) keep_epochs: u32,
    pub(crate) keep_secs: u64,
    pub(crate) park_ms_max: u64,
}

impl From<Options2> for AppOptions {
    fn from(old: Options2) -> Self {
        let Options2 { every_ms, roots, standby, consistency, keep_epochs, keep_secs, park_ms_max } = old;
        Self { every_ms, roots, standby, consistency, keep_epochs, keep_secs, park_ms_max, ..Self::default() }
    }
}

/// Options before files could be watched: what follows those before.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
pub(crate) struct Options3 {
    pub(crate) before: Options2,
    pub(crate) budget_permille: u32,
    pub(crate) growth_bytes: u64,
}

impl From<Options3> for AppOptions {
    fn from(old: Options3) -> Self {
        let Options3 { before, budget_permille, growth_bytes } = old;
        Self { budget_permille, growth_bytes, ..before.into() }
    }
}

/// Options before anything could be left out of the roots.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
pub(crate) struct Options4 {
    pub(crate) before: Options3,
    pub(crate) on_change: Vec<Vec<u8>>,
}

impl From<Options4> for AppOptions {
    fn from(old: Options4) -> Self {
        Self { on_change: old.on_change, ..old.before.into() }
    }
}

/// Versions 2 to 4, which differ in their options.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct Record2<O> {
    name: String,
    options: O,
    argv: Vec<Vec<u8>>,
    instance: Option<Instance>,
    run: u64,
    ended: String,
    exited: bool,
}

/// Version 1.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct Record1 {
    name: String,
    options: Options2,
    argv: Vec<Vec<u8>>,
    instance: Option<Instance>,
    run: u64,
}

impl<O: Into<AppOptions>> From<Record2<O>> for Record {
    fn from(old: Record2<O>) -> Self {
        let Record2 { name, options, argv, instance, run, ended, exited } = old;
        Self { name, options: options.into(), argv, instance, run, ended, exited }
    }
}

impl From<Record1> for Record {
    fn from(old: Record1) -> Self {
        let Record1 { name, options, argv, instance, run } = old;
        Self { name, options: options.into(), argv, instance, run, ..Self::default() }
    }
}

fn decode(bytes: &[u8]) -> Result<Record, WireError> {
    match wire::decode(bytes, RECORD, RECORD_BYTES_MAX) {
        Err(WireError::OlderVersion { found, .. }) => decode_older(bytes, found),
        record => record,
    }
}

fn decode_older(bytes: &[u8], version: u16) -> Result<Record, WireError> {
    match version {
        1 => wire::decode::<Record1>(bytes, RECORD_1, RECORD_BYTES_MAX).map(Record::from),
        2 => wire::decode::<Record2<Options2>>(bytes, RECORD_2, RECORD_BYTES_MAX).map(Record::from),
        3 => wire::decode::<Record2<Options3>>(bytes, RECORD_3, RECORD_BYTES_MAX).map(Record::from),
        _ => wire::decode::<Record2<Options4>>(bytes, RECORD_4, RECORD_BYTES_MAX).map(Record::from),
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

    // Goal: records of older agents are read: their period is fixed, they watch no files. Method: encode what those had.
    #[test]
    fn records_of_older_versions_are_read() {
        let options = Options2 {
            every_ms: 250,
            roots: vec![b"/r".to_vec()],
            standby: vec!["b".into()],
            consistency: Consistency::Commit,
            keep_epochs: 3,
            keep_secs: 4,
            park_ms_max: 5,
        };
        let (name, argv) = ("a".to_owned(), vec![b"x".to_vec()]);
        let new = Record {
            name: name.clone(),
            options: options.clone().into(),
            argv: argv.clone(),
            run: 7,
            ..Record::default()
        };
        let is_read = |bytes: Vec<u8>, wanted: &Record| {
            assert_eq!(decode(&bytes).unwrap(), *wanted);
            assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        };
        let (name, instance) = (|| name.clone(), None);
        let old = Record1 { name: name(), options: options.clone(), argv: argv.clone(), instance, run: 7 };
        is_read(wire::encode(&old, RECORD_1).unwrap(), &new);
        let (ended, exited) = ("said".to_owned(), true);
        let new = Record { ended: ended.clone(), exited, ..new };
        let old = Record2 {
            name: name(),
            options: options.clone(),
            argv: argv.clone(),
            instance: None,
            run: 7,
            ended: ended.clone(),
            exited,
        };
        is_read(wire::encode(&old, RECORD_2).unwrap(), &new);
        let before = || Options3 { before: options.clone(), budget_permille: 20, growth_bytes: 9 };
        let old = Record2 {
            name: name(),
            options: before(),
            argv: argv.clone(),
            instance: None,
            run: 7,
            ended: ended.clone(),
            exited,
        };
        let options = AppOptions { budget_permille: 20, growth_bytes: 9, ..new.options.clone() };
        let new = Record { options, ..new };
        is_read(wire::encode(&old, RECORD_3).unwrap(), &new);
        let options = Options4 { before: before(), on_change: vec![b"/x".to_vec()] };
        let old = Record2 { name: name(), options, argv, instance: None, run: 7, ended, exited };
        let options = AppOptions { on_change: vec![b"/x".to_vec()], ..new.options.clone() };
        is_read(wire::encode(&old, RECORD_4).unwrap(), &Record { options, ..new });
    }
}
