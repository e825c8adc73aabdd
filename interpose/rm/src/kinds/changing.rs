//! Files that change while memory that was mapped from them is copied.
//!
//! A private mapping loses its own pages, too, where its file is truncated, and so does the snapshot's. Of files that do change, the
//! pages are copied in the stop.

use super::zones::{Zone, ZoneKind};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Times of files stand still for as long as a tick of the kernel.
const TICK: Duration = Duration::from_millis(20);

/// The files, by device and inode.
#[derive(Default)]
pub(crate) struct Changing {
    known: BTreeSet<(u64, u64)>,
    /// The wall clock at the cut.
    cut: Duration,
}

impl Changing {
    /// The application is parked now.
    pub(crate) fn cut(&mut self) {
        self.cut = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    }

    /// Whether a zone's pages must be copied in the stop.
    pub(crate) fn has(&self, zone: &Zone) -> bool {
        zone.kind == ZoneKind::FilePrivate && self.known.contains(&(zone.device, zone.inode))
    }

    /// Looks for files that changed since the cut and were not known to; the path of one of them.
    pub(crate) fn look<'a>(&mut self, zones: &'a [Zone]) -> Option<&'a [u8]> {
        let mut found = None;
        for zone in zones.iter().filter(|zone| zone.kind == ZoneKind::FilePrivate && !zone.deleted) {
            if self.has(zone) {
                continue;
            }
            let Ok(meta) = std::fs::metadata(Path::new(OsStr::from_bytes(&zone.path))) else { continue };
            let changed = Duration::new(meta.ctime().max(0) as u64, meta.ctime_nsec() as u32);
            if changed + TICK > self.cut {
                self.known.insert((zone.device, zone.inode));
                found = Some(zone.path.as_slice());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::zones;

    // Goal: a file that changed since the cut is told of once and known from then on; others are not. Method: two files.
    #[test]
    fn what_changes_is_known() {
        let dir = std::env::temp_dir().join(format!("holo-changing-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (quiet, busy) = (dir.join("quiet"), dir.join("busy"));
        std::fs::write(&quiet, b"1").unwrap();
        std::thread::sleep(TICK * 2);
        let mut changing = Changing::default();
        changing.cut();
        std::fs::write(&busy, b"1").unwrap();
        let line = |at: u64, path: &Path| {
            let inode = std::fs::metadata(path).unwrap().ino();
            format!("{at:x}000-{:x}000 rw-p 00000000 00:01 {inode}   {}\n", at + 1, path.display())
        };
        let zones = zones::parse((line(16, &quiet) + &line(32, &busy)).as_bytes()).unwrap();
        assert_eq!(changing.look(&zones), Some(busy.as_os_str().as_bytes()));
        assert_eq!((changing.has(&zones[0]), changing.has(&zones[1])), (false, true));
        assert_eq!(changing.look(&zones), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
