//! What an application may write to: open and mapped files, of all its processes.

use super::Files;
use super::leases::Leased;
use super::numbers::Numbers;
use crate::inodes::Number;
use crate::recorded::Maps;
use holo_rm::at_once;
use holo_rm::kinds::zones::{self, ZoneKind};
use holo_rm::manager::{Context, DumpCx, RmError, RmResult};
use holo_rm::remote::Remote;
use holo_rm::tree::Process;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// Files that the application writes outside the roots, and inodes that it has mapped shared.
pub(crate) struct Written {
    pub(crate) extra: Vec<PathBuf>,
    pub(super) open: Vec<(u32, i32, Number)>,
    pub(super) maps: Maps,
    pub(super) leased: Leased,
}

/// Attributes of files by mount, inode and path: many processes have the same ones open. Subvolumes of btrfs have inodes of the same numbers.
type Seen<'a> = HashMap<(u64, u64, &'a OsStr), Option<Arc<fs::Metadata>>>;

impl Files {
    pub(super) fn is_protected(&self, path: &std::path::Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }

    pub(super) fn written(&self, cx: &DumpCx) -> RmResult<Written> {
        // What cannot be read is told of below.
        at_once::run(cx.processes.iter().collect(), |process: &Process| {
            let _ = process.remote.fds();
            let _ = process.remote.maps();
        });
        let table = self.recorded.table();
        let mut extra = BTreeSet::new();
        let mut open = Vec::new();
        let mut maps = Maps::default();
        let mut numbers = Numbers::below(&self.roots);
        let mut seen = Seen::new();
        for (index, process) in cx.processes.iter().enumerate() {
            // It says why, where nobody may look at a process.
            process.remote.maps().on("reading", "maps")?;
            let reads = &mut maps.open;
            self.written_by(index as u32, &process.remote, &mut seen, &mut extra, &mut open, reads)?;
            let own = table.as_ref().map(|table| (process.remote.page.changes_at(), table.number()));
            self.mapped_by(&process.remote, own, &mut numbers, (&mut extra, &mut maps))?;
        }
        let leased = Leased(holo_rm::leases::held(cx.processes)?);
        if let Some(table) = table.as_ref().filter(|_| !leased.0.is_empty()) {
            // It was restored with them.
            table.table().leased.store(1, SeqCst);
        }
        let pages: Vec<PathBuf> = cx.processes.iter().map(|process| page_path(&process.remote)).collect();
        // Devices have neither content nor a place in a tree, maps of anonymous inodes no path; control pages are holo's.
        extra
            .retain(|path| path.is_absolute() && (!path.starts_with("/dev") || path.starts_with("/dev/shm")));
        extra.retain(|path| !path.starts_with("/proc") && !path.starts_with("/sys") && !pages.contains(path));
        Ok(Written { extra: extra.into_iter().collect(), open, maps, leased })
    }

    fn written_by<'a>(
        &self,
        process: u32,
        remote: &'a Remote,
        seen: &mut Seen<'a>,
        extra: &mut BTreeSet<PathBuf>,
        open: &mut Vec<(u32, i32, Number)>,
        reads: &mut BTreeSet<Number>,
    ) -> RmResult<()> {
        for fd in remote.fds()? {
            let target = Path::new(&fd.link);
            let gone = target.as_os_str().as_bytes().ends_with(b" (deleted)");
            if !target.is_absolute() {
                continue;
            }
            let look = || fs::metadata(remote.proc(&format!("fd/{}", fd.number))).ok().map(Arc::new);
            let meta = match fd.file() {
                Some((mount, inode)) => seen.entry((mount, inode, &fd.link)).or_insert_with(look).clone(),
                None => look(),
            };
            let Some(meta) = meta else { continue };
            if self.is_protected(target) && !gone {
                if meta.is_file() {
                    reads.insert((meta.dev(), meta.ino()));
                }
                continue;
            }
            open.push((process, fd.number, (meta.dev(), meta.ino())));
            if !meta.is_file() || meta.nlink() == 0 || self.is_protected(target) {
                continue;
            }
            if fd.flags() & libc::O_ACCMODE != 0 && fd.flags() & libc::O_PATH == 0 {
                extra.insert(target.to_owned());
            }
        }
        Ok(())
    }

    fn mapped_by(
        &self,
        remote: &Remote,
        own: Option<(u64, Number)>,
        numbers: &mut Numbers,
        (extra, maps): (&mut BTreeSet<PathBuf>, &mut Maps),
    ) -> RmResult<()> {
        let text = remote.maps().on("reading", "maps")?;
        // Most are private, and reading a line takes longer than all else.
        for zone in zones::parse_shared(text).map_err(RmError::Unsupported)? {
            if zone.kind != ZoneKind::FileShared {
                continue;
            }
            let all = numbers.of(&|name| remote.proc(name), &zone);
            if zone.start == remote.page.changes_at() {
                maps.recording +=
                    usize::from(own.is_some_and(|(at, number)| at == zone.start && all.contains(&number)));
                continue;
            }
            maps.shared.extend(all);
            if zone.prot & 2 != 0 {
                let path = PathBuf::from(OsStr::from_bytes(&zone.path));
                maps.mapped.extend(all);
                if !self.is_protected(&path) {
                    extra.insert(path);
                }
            }
        }
        Ok(())
    }
}

/// The control page is mapped shared, too, but is holo's.
fn page_path(remote: &Remote) -> PathBuf {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", remote.page.fd().as_raw_fd())).unwrap_or_default()
}
