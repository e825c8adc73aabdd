//! Files that change while memory that was mapped from them is copied.
//!
//! A private mapping loses its own pages, too, where its file is truncated, and so does the snapshot's. Of files that changed a
//! short time ago, or while they were copied once, the pages are copied in the stop.

use super::zones::{Zone, ZoneKind};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Whoever changed a file so short a time ago may do so again at once.
const YOUNG: Duration = Duration::from_secs(10);

/// The files, by device and inode.
#[derive(Default)]
pub(crate) struct Changing {
    known: BTreeSet<(u64, u64)>,
    /// Those that were young at the cut.
    young: BTreeSet<(u64, u64)>,
    /// The wall clock at the cut.
    cut: Duration,
}

impl Changing {
    /// The application is parked now, and has these zones.
    pub(crate) fn cut(&mut self, zones: &[Zone]) {
        self.cut = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.young.clear();
        let mut last = None;
        for zone in files(zones) {
            let key = (zone.device, zone.inode);
            // The zones of a file are mostly one after the other.
            if last != Some(key) && changed_at(zone).is_some_and(|at| at + YOUNG > self.cut) {
                self.young.insert(key);
            }
            last = Some(key);
        }
    }

    /// Whether a zone's pages must be copied in the stop.
    pub(crate) fn has(&self, zone: &Zone) -> bool {
        let key = (zone.device, zone.inode);
        zone.kind == ZoneKind::FilePrivate && (self.young.contains(&key) || self.known.contains(&key))
    }

    /// Looks for files that changed since the cut and were not known to; the path of one of them.
    pub(crate) fn look<'a>(&mut self, zones: &'a [Zone]) -> Option<&'a [u8]> {
        let mut found = None;
        for zone in files(zones) {
            if !self.has(zone) && changed_at(zone).is_some_and(|at| at + YOUNG > self.cut) {
                self.known.insert((zone.device, zone.inode));
                found = Some(zone.path.as_slice());
            }
        }
        found
    }
}

fn files(zones: &[Zone]) -> impl Iterator<Item = &Zone> {
    zones.iter().filter(|zone| zone.kind == ZoneKind::FilePrivate && !zone.deleted)
}

fn changed_at(zone: &Zone) -> Option<Duration> {
    let meta = std::fs::metadata(Path::new(OsStr::from_bytes(&zone.path))).ok()?;
    Some(Duration::new(meta.ctime().max(0) as u64, meta.ctime_nsec() as u32))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::zones;

    // Goal: young files are known at the cut, one that changes later is told of once, others are not. Method: three files.
    #[test]
    fn what_changes_is_known() {
        let dir = std::env::temp_dir().join(format!("holo-changing-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let paths = ["quiet", "young", "busy"].map(|name| dir.join(name));
        paths.iter().for_each(|path| std::fs::write(path, b"1").unwrap());
        let lines = paths.iter().zip(16u64..).map(|(path, at)| {
            let inode = std::fs::metadata(path).unwrap().ino();
            format!("{at:x}000-{:x}000 rw-p 00000000 00:01 {inode}   {}\n", at + 1, path.display())
        });
        let zones = zones::parse(lines.collect::<String>().as_bytes()).unwrap();
        let mut changing = Changing::default();
        changing.cut(&zones[1..2]);
        // As if the cut had been long after the files, and one of them changed since.
        changing.cut += YOUNG * 2;
        assert_eq!(changing.look(&zones), None);
        changing.cut -= YOUNG * 2;
        assert_eq!(changing.look(&zones[2..]), Some(paths[2].as_os_str().as_bytes()));
        assert_eq!(zones.iter().map(|zone| changing.has(zone)).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(changing.look(&zones[2..]), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
