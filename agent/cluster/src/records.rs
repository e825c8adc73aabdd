//! What is remembered of the applications across the agent's death: one small file each.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use holo_api::peer::{APP_NAME_BYTES_MAX, EpochRef};
use holo_image::wire::{self, Kind};
use serde::{Deserialize, Serialize};

use crate::{core::Record, error::ClusterError};

/// Kind of a record's frame.
const RECORD: Kind = Kind::new(256, 1);
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// Most spans kept: one for each take-over that brought an epoch here; the oldest are forgotten first.
const SPANS_MAX: usize = 1024;

/// Which incarnation took which epochs in this node's store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spans(Vec<EpochRef>);

impl Spans {
    /// The epoch of this number in the store.
    pub(crate) fn find(&self, epoch: u64) -> EpochRef {
        let span = self.0.iter().rev().find(|s| s.epoch <= epoch);
        EpochRef { incarnation: if epoch == 0 { 0 } else { span.map_or(0, |s| s.incarnation) }, epoch }
    }

    /// Incarnation of the newest span.
    pub(crate) fn newest(&self) -> u64 {
        self.0.last().map_or(0, |s| s.incarnation)
    }

    /// An epoch is about to be sealed; true if that changed the spans, which must then be saved first.
    pub(crate) fn add(&mut self, at: EpochRef) -> bool {
        if self.find(at.epoch).incarnation == at.incarnation {
            return false;
        }
        self.0.retain(|s| s.epoch < at.epoch);
        self.0.push(at);
        if self.0.len() > SPANS_MAX {
            self.0.remove(0);
        }
        true
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) spans: Spans,
}

/// The directory of records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

/// Application names become file names.
pub(crate) fn app_name_ok(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= APP_NAME_BYTES_MAX
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-@:+".contains(c))
}

impl Records {
    pub(crate) fn open(state_dir: &Path) -> Result<Records, ClusterError> {
        let dir = state_dir.join("cluster");
        fs::create_dir_all(&dir).map_err(|e| failed("create directory of", &dir, &e))?;
        Ok(Records { dir })
    }

    fn path(&self, app: &str) -> PathBuf {
        self.dir.join(format!("{app}.record"))
    }

    pub(crate) fn write(&self, app: &str, stored: &Stored) -> Result<(), ClusterError> {
        let path = self.path(app);
        let temporary = self.dir.join(format!(".{app}.new"));
        let bytes = wire::encode(stored, RECORD).map_err(|e| failed("write", &path, &e))?;
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|e| failed("write", &path, &e))
    }

    pub(crate) fn read(&self, app: &str) -> Result<Option<Stored>, ClusterError> {
        let path = self.path(app);
        match fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored =
                    wire::decode(&bytes, RECORD, RECORD_BYTES_MAX).map_err(|e| failed("read", &path, &e))?;
                Ok(Some(stored))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path, &e)),
        }
    }

    pub(crate) fn remove(&self, app: &str) -> Result<(), ClusterError> {
        let path = self.path(app);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", &path, &e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Names of all applications that are remembered.
    pub(crate) fn list(&self) -> Result<Vec<String>, ClusterError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| failed("list", &self.dir, &e))? {
            let name = entry.map_err(|e| failed("list", &self.dir, &e))?.file_name();
            let name = name.to_str().and_then(|n| n.strip_suffix(".record"));
            names.extend(name.filter(|n| app_name_ok(n)).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

fn failed(what: &'static str, path: &Path, why: &dyn std::fmt::Display) -> ClusterError {
    ClusterError::Record { what, path: path.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    // Goal: an epoch number is attributed to the incarnation that took it, also after a fork was replaced.
    #[test]
    fn spans_follow_take_overs() {
        let at = |incarnation, epoch| EpochRef { incarnation, epoch };
        let mut spans = Spans::default();
        assert_eq!(spans.find(0), at(0, 0));
        assert!(spans.add(at(1, 1)));
        assert!(!spans.add(at(1, 2)));
        assert!(!spans.add(at(1, 9)));
        // The other node went on from epoch 7.
        assert!(spans.add(at(2, 8)));
        assert_eq!(spans.find(7), at(1, 7));
        assert_eq!(spans.find(8), at(2, 8));
        assert_eq!(spans.find(9), at(2, 9));
    }

    // Goal: a record survives, a damaged one is an error and not a fresh start.
    #[test]
    fn records_are_kept_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let record = Record {
            run: 3,
            members: vec!["a".into(), "b".into()],
            incarnation: 4,
            owner: Some(1),
            base: None,
            promised: 5,
            promised_to: None,
            guarded: true,
            ended: false,
        };
        let stored = Stored { record, spans: Spans(vec![EpochRef { incarnation: 4, epoch: 1 }]) };
        assert!(records.read("x").unwrap().is_none());
        records.write("x", &stored).unwrap();
        assert_eq!(records.read("x").unwrap().unwrap(), stored);
        assert_eq!(records.list().unwrap(), vec!["x".to_owned()]);
        let path = records.path("x");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(records.read("x"), Err(ClusterError::Record { .. })));
        records.remove("x").unwrap();
        assert!(records.read("x").unwrap().is_none());
        assert!(!app_name_ok("../x") && !app_name_ok(".x") && !app_name_ok("") && app_name_ok("redis-1"));
    }
}
