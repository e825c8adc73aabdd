//! The application's files as a resource manager: trees of `holo-cfor`, contents in the page store.
//!
//! What is protected: everything under the roots, and besides every regular file that the application has open
//! for writing or mapped shared and writable. Files that changed are copied whole, in the stop.

use holo_cfor::{Captured, ContentSink, ContentSource, Hint, Staged, Targets};
use holo_image::{Blob, EpochReader, EpochWriter};
use holo_rm::kinds::zones::{self, ZoneKind};
use holo_rm::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const NAME: &str = "files";
const VERSION: u16 = 1;

/// The manager.
pub struct Files {
    roots: Vec<PathBuf>,
    excludes: Vec<PathBuf>,
    replaced: Option<PathBuf>,
    previous: Option<Captured<Blob>>,
    staged: Option<Staged<Blob>>,
}

struct Sink<'a>(&'a mut EpochWriter);

impl ContentSink for Sink<'_> {
    type Content = Blob;

    fn put(&mut self, mut data: &mut dyn Read, _len: u64) -> io::Result<Blob> {
        self.0.put_blob(&mut data).map_err(io::Error::other)
    }
}

struct Source<'a>(&'a EpochReader);

impl ContentSource for Source<'_> {
    type Content = Blob;

    fn open<'a>(&'a mut self, content: &Blob) -> io::Result<Box<dyn Read + 'a>> {
        let mut bytes = Vec::new();
        self.0.read_blob(content, &mut bytes).map_err(io::Error::other)?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

/// Files that the application writes outside the roots, and inodes that it has mapped shared and writable.
struct Written {
    extra: Vec<PathBuf>,
    mapped: BTreeSet<(u64, u64)>,
}

impl Files {
    /// A manager for `roots`; `excludes` are never touched; `replaced` is where a restore moves what it
    /// replaces.
    #[must_use]
    pub fn new(roots: Vec<PathBuf>, excludes: Vec<PathBuf>, replaced: Option<PathBuf>) -> Self {
        Self { roots, excludes, replaced, previous: None, staged: None }
    }

    fn is_protected(&self, path: &std::path::Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }

    fn written(&self, cx: &DumpCx) -> RmResult<Written> {
        let mut extra = BTreeSet::new();
        let mut mapped = BTreeSet::new();
        let fds = cx.remote.proc("fd");
        for entry in fs::read_dir(&fds).on("listing", fds.display())? {
            let Ok(entry) = entry else { continue };
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if !target.is_absolute() || self.is_protected(&target) {
                continue;
            }
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            if !meta.is_file() || meta.nlink() == 0 {
                continue;
            }
            let number = entry.file_name().to_string_lossy().into_owned();
            let info = cx.remote.proc_text(&format!("fdinfo/{number}")).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0);
            if flags & 3 != 0 && flags & libc::O_PATH as u32 == 0 {
                extra.insert(target);
            }
        }
        let maps = fs::read(cx.remote.proc("maps")).on("reading", "maps")?;
        for zone in zones::parse(&maps).map_err(RmError::Unsupported)? {
            if zone.kind == ZoneKind::FileShared && zone.prot & 2 != 0 {
                let path = PathBuf::from(std::ffi::OsStr::from_bytes(&zone.path));
                mapped.insert((zone.device, zone.inode));
                if path != cx_page_path(cx) && !self.is_protected(&path) {
                    extra.insert(path);
                }
            }
        }
        // Devices have neither content nor a place in a tree.
        extra.retain(|path| !path.starts_with("/dev") || path.starts_with("/dev/shm"));
        extra.retain(|path| !path.starts_with("/proc") && !path.starts_with("/sys"));
        Ok(Written { extra: extra.into_iter().collect(), mapped })
    }
}

/// The control page is mapped shared, too, but is holo's.
fn cx_page_path(cx: &DumpCx) -> PathBuf {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", cx.remote.page.fd().as_raw_fd())).unwrap_or_default()
}

fn failed(cause: holo_cfor::Error) -> RmError {
    RmError::Unsupported(format!("files: {cause}"))
}

impl ResourceManager for Files {
    fn name(&self) -> &'static str {
        NAME
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let written = self.written(cx)?;
        let none = holo_cfor::Tree::default();
        let previous = self.previous.as_ref();
        let tree = holo_cfor::scan_since(
            &self.roots,
            &written.extra,
            &self.excludes,
            previous.map_or(&none, |previous| &previous.tree),
        )
        .map_err(failed)?;
        cx.remote.page.keep_alive();
        let hint = |inode: &holo_cfor::Inode| {
            let key = (inode.identity.dev, inode.identity.ino);
            if written.mapped.contains(&key) { Hint::Mapped } else { Hint::Attributes }
        };
        let staged = holo_cfor::stage(tree, previous, &hint, cx.staging_dir).map_err(failed)?;
        for remark in &staged.tree().remarks {
            cx.remarks.push(format!("{}: {}", String::from_utf8_lossy(&remark.path), remark.what));
        }
        self.staged = Some(staged);
        Ok(())
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let bad = |what: &str| RmError::BadSection { kind: NAME, what: what.into() };
        let staged = self.staged.take().ok_or_else(|| bad("nothing was staged"))?;
        cx.files_changed = staged.changed() as u64;
        let writer = cx.writer.as_mut().ok_or_else(|| bad("no image"))?;
        if let Some(previous) = &self.previous {
            for blob in previous.contents.values() {
                // What the store still has need not be read again; what it has dropped is stored anew.
                if writer.keep_blob(blob).is_err() {
                    self.previous = None;
                    return Err(bad(
                        "contents of the epoch before are gone; the next epoch stores them again",
                    ));
                }
            }
        }
        let captured = staged.store(&mut Sink(writer)).map_err(failed)?;
        cx.sections.put(NAME, VERSION, &captured)?;
        self.previous = Some(captured);
        Ok(())
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.staged = None;
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let captured: Captured<Blob> = cx.section(NAME, VERSION)?;
        let targets = Targets {
            replaced: self.replaced.clone(),
            excludes: self.excludes.clone(),
            ..Targets::default()
        };
        let report = holo_cfor::apply(&captured, &mut Source(cx.image), &targets).map_err(failed)?;
        if let Some(first) = report.errors.first() {
            return Err(RmError::Unsupported(format!(
                "{} of the application's files cannot be put in place, first {}: {}",
                report.errors.len(),
                String::from_utf8_lossy(&first.path),
                first.what
            )));
        }
        for remark in &report.remarks {
            cx.remarks.push(format!("{}: {}", String::from_utf8_lossy(&remark.path), remark.what));
        }
        self.previous = None;
        Ok(())
    }
}
