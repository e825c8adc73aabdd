//! Which file a map shows. `/proc/<pid>/maps` has the device of the file system, `stat`, which trees and records go by, on some (btrfs)
//! that of the subvolume, in each of which inodes have the same numbers.

use crate::inodes::Number;
use holo_rm::kinds::zones::Zone;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Numbers of mapped files, of one look at an application.
pub(super) struct Numbers {
    /// As `stat` shows them, of the roots.
    devices: BTreeSet<u64>,
    /// By device, inode and path of a map.
    known: HashMap<(u64, u64, Vec<u8>), Vec<Number>>,
    last: Vec<Number>,
}

impl Numbers {
    pub(super) fn below(roots: &[PathBuf]) -> Self {
        let devices =
            roots.iter().filter_map(|root| fs::metadata(root).ok()).map(|meta| meta.dev()).collect();
        Self { devices, known: HashMap::new(), last: Vec::new() }
    }

    /// Of the file that a zone shows, of a process whose files in `/proc` `proc` names. Several: it is one of them.
    pub(super) fn of(&mut self, proc: &dyn Fn(&str) -> PathBuf, zone: &Zone) -> &[Number] {
        let shown = (zone.device, zone.inode);
        if self.devices.contains(&zone.device) {
            // There both are the same.
            self.last = vec![shown];
            return &self.last;
        }
        let devices = &self.devices;
        self.known.entry((shown.0, shown.1, zone.path.clone())).or_insert_with(|| {
            let named = || fs::metadata(OsStr::from_bytes(&zone.path)).ok();
            // For root's agent alone.
            let mapped = || fs::metadata(proc(&format!("map_files/{:x}-{:x}", zone.start, zone.end))).ok();
            let is_it = |meta: &Metadata| meta.ino() == zone.inode;
            let is_named = !zone.deleted && Path::new(OsStr::from_bytes(&zone.path)).is_absolute();
            let found = mapped().or_else(|| is_named.then(named).flatten()).filter(is_it);
            match found {
                Some(meta) => vec![(meta.dev(), meta.ino())],
                None => devices.iter().chain([&zone.device]).map(|device| (*device, zone.inode)).collect(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holo_rm::kinds::zones::ZoneKind;

    // Goal: a map of a file whose device `maps` shows otherwise than `stat` is that file; of one that cannot be found it may be any with
    // that inode. Method: zones as such a kernel shows them.
    #[test]
    fn a_map_is_of_the_file_that_stat_shows() {
        const ELSEWHERE: u64 = 0xfff;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, b"x").unwrap();
        let meta = fs::metadata(&file).unwrap();
        let mut numbers = Numbers::below(&[dir.path().into()]);
        let zone = |device, inode, path: &[u8], deleted| Zone {
            start: 0x1000,
            end: 0x2000,
            prot: 3,
            kind: ZoneKind::FileShared,
            offset: 0,
            device,
            inode,
            path: path.into(),
            deleted,
            flags: Vec::new(),
        };
        let (name, number) = (file.as_os_str().as_bytes(), (meta.dev(), meta.ino()));
        let mut of = |zone: &Zone| numbers.of(&|name| format!("/proc/self/{name}").into(), zone).to_vec();
        assert_eq!(of(&zone(number.0, number.1, name, false)), [number]);
        assert_eq!(of(&zone(ELSEWHERE, number.1, name, false)), [number]);
        // Another file has the name now; or none.
        let (any, other) = (|inode| [(meta.dev(), inode), (ELSEWHERE, inode)], number.1 + 1);
        assert_eq!(of(&zone(ELSEWHERE, other, name, false)), any(other));
        assert_eq!(of(&zone(ELSEWHERE, number.1, b"/gone", true)), any(number.1));
    }
}
