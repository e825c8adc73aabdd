//! The application's files as a resource manager: trees of `holo-cfor`, contents in the page store.
//!
//! What is protected: everything under the roots, and besides every regular file that the application has open
//! for writing or mapped shared and writable, or has written to (`names`). Of files that only recorded calls wrote to (`changes`) the ranges written are
//! copied, others whole: after the stop where who writes can be made to wait (`awaited`), else in it.

mod ahead;
mod check;
mod contents;
mod directories;
mod heard;
mod leases;
mod names;
mod numbers;
mod others;
mod place;
mod written;

use crate::app::ChangesCell;
use crate::awaited::{Keeping, Reading, Shut};
use crate::inodes::{self, Inodes, Number};
use crate::recorded::{Maps, Recorded};
use crate::witness::{self, Witness};
use ahead::Stored;
pub(crate) use ahead::stand_back;
use contents::{Sink, Source, take_apart};
use directories::Directory;
use holo_abi::changes::CHANGES_BYTES;
use holo_abi::control::{INODE_CALLS, INODES_MAX};
use holo_abi::sysno;
use holo_api::files::{self as trees, SECTION as NAME, TREES, VERSION};
use holo_cfor::{Captured, Draft, Followed, Holds, Look, Staged, Staging, Time};
use holo_image::wire;
use holo_image::{AppStore, Blob};
use holo_rm::install::{Install, install};
use holo_rm::kinds::shared_pages::SharedPages;
use holo_rm::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use holo_rm::tree::Process;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use names::NamesCell;
pub(crate) use others::Others;
pub(crate) use written::Written;

/// Section with [`Inodes`].
const INODES: &str = "inodes";
const INODES_VERSION: u16 = 1;
/// Section with the address of the table of file changes in each process.
const CHANGES: &str = "changes";
const CHANGES_VERSION: u16 = 1;
/// Section with the directories outside the roots.
const DIRECTORIES: &str = "directories";
const DIRECTORIES_VERSION: u16 = 1;
/// The gate's class of calls that go to the dispatcher.
const SLOW: u8 = 1;

/// The manager.
pub struct Files {
    /// Where the application has stored through maps.
    pages: SharedPages,
    store: AppStore,
    /// `previous` was stored ahead of the first epoch.
    ahead: Option<Stored>,
    /// Nothing ran; what there is has not been read since.
    marked_at: Option<Time>,
    roots: Vec<PathBuf>,
    excludes: Vec<PathBuf>,
    replaced: Option<PathBuf>,
    others: Arc<Others>,
    /// What is to become immutable or append-only when its descriptors are open.
    holds: Holds,
    names: Arc<NamesCell>,
    /// Outside the roots, at the cut.
    directories: Vec<Directory>,
    previous: Option<Captured<Blob>>,
    /// No image has it (yet): if the next epoch comes first, that one was aborted.
    unsealed: bool,
    recorded: Recorded,
    followed: Followed,
    /// `previous`, to be brought up to date in the stop.
    draft: Option<Draft<Blob>>,
    /// With what was mapped at the cut.
    staged: Option<(Taking, Maps)>,
    /// A second look at the cut, if epochs are to be compared with one; and that they are.
    witness: Option<Witness>,
    /// Of the last stop: taking what was recorded, a look at all names, and one for the witness.
    parts_us: Vec<(String, u64)>,
    /// What was recorded as changed, see [`Recorded::bytes`].
    bytes: [(&'static str, u64); 2],
    /// Open files that no tree has, with their numbers; at a dump.
    open: Vec<(u32, i32, Number)>,
    /// Numbers here of the files in the trees, with those of the capture; at a restore.
    placed: Vec<(Number, Number)>,
}

/// What becomes of the contents of a cut.
enum Taking {
    /// They are held.
    Held(Staged<Blob>),
    /// They are kept as they are, to be read when the application runs again.
    Kept(Staged<Blob>, Shut),
    /// They are being read.
    Reading(Reading),
}

impl Files {
    /// A manager for `roots`; `excludes` are never touched; `replaced` is where a restore moves what it
    /// replaces, and `others` are told of what others had changed there; `names` are known to all managers of one application; `pages`
    /// tells what is stored through maps.
    #[must_use]
    pub(crate) fn new(
        roots: Vec<PathBuf>,
        excludes: Vec<PathBuf>,
        (replaced, others): (Option<PathBuf>, Arc<Others>),
        (changes, names): (ChangesCell, Arc<NamesCell>),
        pages: SharedPages,
        store: AppStore,
    ) -> Self {
        Self {
            pages,
            store,
            ahead: None,
            marked_at: None,
            roots,
            excludes,
            replaced,
            others,
            holds: Holds::default(),
            names,
            directories: Vec::new(),
            previous: None,
            unsealed: false,
            recorded: Recorded::new(changes),
            followed: Followed::default(),
            draft: None,
            staged: None,
            witness: None,
            parts_us: Vec::new(),
            bytes: [("files.recorded", 0), ("files.whole", 0)],
            open: Vec::new(),
            placed: Vec::new(),
        }
    }
}

impl Files {
    /// Holds what changed since the epoch before: by what was recorded and heard of, or else by a look at all.
    fn stage(&mut self, written: &Written, cx: &DumpCx) -> RmResult<Taking> {
        let mut keeping = Keeping::new(&self.recorded, &written.maps);
        let staged = self.stage_with(written, cx, &mut keeping)?;
        Ok(match keeping.map(Keeping::shut) {
            Some(shut) if staged.rest() > 0 => Taking::Kept(staged, shut),
            Some(_) | None => Taking::Held(staged),
        })
    }

    fn stage_with(
        &mut self,
        written: &Written,
        cx: &DumpCx,
        keeping: &mut Option<Keeping>,
    ) -> RmResult<Staged<Blob>> {
        let recorded = &self.recorded;
        let mut suspects = recorded.suspects(&written.maps);
        suspects.extend(self.ahead.iter().flat_map(|ahead| &ahead.unread));
        let look = Look {
            roots: &self.roots,
            extra_files: &written.extra,
            excludes: &self.excludes,
            suspects: &suspects,
            leases: &written.leased,
        };
        let hint = |inode: &holo_cfor::Inode| recorded.hint(inode);
        let goes_by_records = self.previous.as_ref().is_some_and(|previous| {
            let tops = previous.tree.roots.iter().filter_map(|root| root.entries.first());
            let tops = tops.map(|entry| previous.tree.inode(entry));
            let dirs = tops.filter(|inode| inode.kind == holo_cfor::Kind::Dir);
            recorded.is_complete(dirs.map(|inode| inode.identity.dev))
        });
        if let Some(draft) = self.draft.take().filter(|_| goes_by_records) {
            let keeper = keeping.as_mut().map(|keeping| keeping as _);
            let staging = Staging { dir: cx.staging_dir, keeper, leases: &written.leased };
            let staged = draft.stage(&mut self.followed, &look, &hint, staging).map_err(failed)?;
            if let Some(staged) = staged {
                return Ok(staged);
            }
        }
        cx.remote.page.keep_alive();
        let start = Instant::now();
        let none = holo_cfor::Tree::default();
        let previous = self.previous.as_ref();
        let tree = self.followed.scan(&look, previous.map_or(&none, |previous| &previous.tree));
        let tree = tree.map_err(failed)?;
        self.parts_us.push(("all".into(), start.elapsed().as_micros() as u64));
        cx.remote.page.keep_alive();
        let keeper = keeping.as_mut().map(|keeping| keeping as _);
        let staging = Staging { dir: cx.staging_dir, keeper, leases: &written.leased };
        holo_cfor::stage(tree, previous, &hint, staging).map_err(failed)
    }
}

impl Files {
    /// How the application knows its files, for an image with these trees.
    fn identities(&mut self, cx: &DumpCx, captured: &Captured<Blob>) -> Inodes {
        let page = &cx.remote.page;
        let open = std::mem::take(&mut self.open);
        let table = page.inodes();
        let mut needed: BTreeSet<Number> = BTreeSet::new();
        if !table.is_empty() {
            needed.extend(open.iter().map(|(.., number)| *number));
            let identities = captured.tree.inodes.iter().map(|inode| inode.identity);
            needed.extend(identities.map(|identity| (identity.dev, identity.ino)));
        }
        let names = inodes::names(table, |real| needed.contains(&real));
        // SAFETY: a plain word that was set at the process's start.
        let class_at = |process: &Process| unsafe { (*process.remote.page.header()).class_at };
        Inodes { class_at: cx.processes.iter().map(class_at).collect(), names, open }
    }
}

impl Files {
    /// Maps the table of file changes in the clone, where the application had it.
    fn go_on_recording(&self, cx: &mut SwitchCx) -> RmResult<()> {
        const PROT_RW: u64 = 3;
        const MAP_SHARED_FIXED: u64 = 0x11;
        const O_RDWR_CLOEXEC: u64 = 0o2_000_002;
        const MAP_PRIVATE_FIXED_ANONYMOUS: u64 = 0x32;
        let Some((CHANGES_VERSION, _)) = cx.image.section(CHANGES) else { return Ok(()) };
        let all: Vec<u64> = cx.section(CHANGES, CHANGES_VERSION)?;
        let table = self.recorded.table();
        let bytes = CHANGES_BYTES as u64;
        for (remote, at) in cx.tree.iter().zip(all).filter(|(_, at)| *at != 0) {
            let place = cx.channel_fd + 1;
            let map = |fd: u64| {
                let done = remote.call(sysno::mmap, &[at, bytes, PROT_RW, MAP_SHARED_FIXED, fd, 0]).is_ok();
                let _ = remote.call(sysno::close, &[fd]);
                done
            };
            let mapped = table.as_ref().is_some_and(|table| {
                // The process may be another user by now; where its limit of descriptors is low it opens the file itself.
                let list = [Install { fd: table.fd(), at: place, cloexec: true }];
                let name = || {
                    let mut path = table.path().as_os_str().as_bytes().to_vec();
                    path.push(0);
                    remote.page.put(0, &path)
                };
                install(&cx.way(), remote, &list).is_ok() && map(place as u64)
                    || remote.call(sysno::open, &[name(), O_RDWR_CLOEXEC]).is_ok_and(map)
            });
            remote.page.set_changes_at(at);
            if !mapped {
                // It must find something there; zeros tell it to record nothing.
                let nowhere = u64::MAX;
                remote
                    .call(sysno::mmap, &[at, bytes, PROT_RW, MAP_PRIVATE_FIXED_ANONYMOUS, nowhere, 0])
                    .on("mapping", "a table of file changes")?;
            }
        }
        Ok(())
    }
}

/// A file whose content has another length than the data that its tree says it has: it could not be put in place.
fn misfit(captured: &Captured<Blob>) -> Option<u32> {
    let is_misfit = |at: &u32, blob: &Blob| {
        let data = captured.tree.inodes.get(*at as usize).map_or(&[][..], holo_cfor::Inode::data);
        data.iter().map(|extent| extent.len).sum::<u64>() != blob.len
    };
    captured.contents.iter().find(|(at, blob)| is_misfit(at, blob)).map(|(at, _)| *at)
}

fn failed(cause: holo_cfor::Error) -> RmError {
    let is_full =
        |source: &std::io::Error| matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
    let advice = match &cause {
        holo_cfor::Error::Io { source, .. } if is_full(source) => {
            "; free space there or keep fewer epochs; sealed epochs are intact"
        }
        holo_cfor::Error::Io { .. } | holo_cfor::Error::Invalid { .. } => "",
    };
    RmError::Unsupported(format!("files: {cause}{advice}"))
}

impl ResourceManager for Files {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wants_mark(&self) -> bool {
        self.is_to_begin()
    }

    fn mark(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.begin(cx)
    }

    fn pre_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        if std::mem::take(&mut self.unsealed) {
            self.previous = None;
        }
        self.check();
        if self.names.lock().is_new() {
            self.find_names();
        }
        if self.previous.is_none() {
            self.store_ahead(cx);
        }
        self.draft = self.previous.as_ref().map(Draft::new);
        Ok(())
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        if std::mem::take(&mut self.unsealed) {
            (self.previous, self.draft) = (None, None);
        }
        let mut written = self.written(cx)?;
        let start = Instant::now();
        self.recorded.cut(&written.maps, cx.processes.len(), &self.pages);
        self.parts_us.clear();
        self.parts_us.push(("cut".into(), start.elapsed().as_micros() as u64));
        let start = Instant::now();
        let (mut extra, directories) = self.named(cx, &written.extra);
        self.directories = directories;
        extra.extend(std::mem::take(&mut written.extra));
        written.extra = extra.into_iter().collect();
        self.parts_us.push(("names".into(), start.elapsed().as_micros() as u64));
        let staged = self.stage(&written, cx)?;
        let tree = match &staged {
            Taking::Held(staged) | Taking::Kept(staged, _) => Some(staged.tree()),
            Taking::Reading(_) => None,
        };
        cx.remarks.extend(tree.iter().flat_map(|tree| &tree.remarks).map(place::text));
        if witness::is_wanted() {
            let start = Instant::now();
            self.witness = Some(Witness::take(&self.roots, &written, &self.excludes).map_err(failed)?);
            // It has opened all files.
            self.followed.ignore();
            self.parts_us.push(("check".into(), start.elapsed().as_micros() as u64));
        }
        self.staged = Some((staged, written.maps));
        self.open = written.open;
        Ok(())
    }

    fn released(&mut self) {
        self.staged = self.staged.take().map(|(staged, maps)| match staged {
            Taking::Kept(staged, shut) => (Taking::Reading(Reading::start(staged, shut)), maps),
            Taking::Held(_) | Taking::Reading(_) => (staged, maps),
        });
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let bad = |what: &str| RmError::BadSection { kind: NAME, what: what.into() };
        self.recorded.tidy();
        self.released();
        let (staged, maps) = self.staged.take().ok_or_else(|| bad("nothing was staged"))?;
        let staged = match staged {
            Taking::Held(staged) | Taking::Kept(staged, _) => staged,
            Taking::Reading(reading) => match reading.finish() {
                Ok(staged) => staged,
                Err(void) => {
                    self.recorded.void(&void);
                    eprintln!("holod: files: {void}: taken again");
                    cx.unsettled.push(format!("files: {void}"));
                    return Err(RmError::Unsupported(format!("files: {void}")));
                }
            },
        };
        cx.files_changed = staged.changed() as u64;
        let writer = cx.writer.as_mut().ok_or_else(|| bad("no image"))?;
        // After a failure all is stored anew.
        self.previous = None;
        let ahead = self.ahead.take();
        let captured = staged.store(&mut Sink(writer)).map_err(failed)?;
        if let Some(why) = self.witness.take().and_then(|witness| witness.differences(&captured)) {
            eprintln!("holod: files check: {why}");
            return Err(RmError::Unsupported(format!("files check: {why}")));
        }
        if let Some(at) = misfit(&captured) {
            return Err(bad(&format!(
                "content of file {at} is not that of its extents; the next epoch stores all anew"
            )));
        }
        if let Some(ahead) = ahead {
            let (again, all) = (cx.files_changed, captured.contents.len() as u64);
            if witness::is_wanted() {
                eprintln!("holod: files ahead: {again} of {all} read again");
            }
            cx.files_changed = all;
            ahead.add_to(writer.figures_mut());
        }
        let mut captured = captured;
        // What the store still has need not be read again; what it has dropped is stored anew.
        let Ok(apart) = take_apart(writer, &mut captured) else {
            return Err(bad("contents of the epoch before are gone; the next epoch stores them again"));
        };
        let encoded = wire::encode(&captured, TREES).map_err(|cause| bad(&cause.to_string()))?;
        for (at, names) in apart {
            captured.contents.entry(at).and_modify(|blob| blob.names = names);
        }
        let blob = writer.put_blob(&mut encoded.as_slice())?;
        cx.put(NAME, VERSION, &blob)?;
        let (known, whole) = self.recorded.bytes(&captured.tree.inodes);
        (self.bytes[0].1, self.bytes[1].1) = (known, whole);
        let inodes = self.identities(cx, &captured);
        cx.put(INODES, INODES_VERSION, &inodes)?;
        if !self.directories.is_empty() {
            cx.put(DIRECTORIES, DIRECTORIES_VERSION, &self.directories)?;
        }
        let at: Vec<u64> = cx.processes.iter().map(|process| process.remote.page.changes_at()).collect();
        cx.put(CHANGES, CHANGES_VERSION, &at)?;
        (self.previous, self.unsealed) = (Some(captured), true);
        self.recorded.settle(maps);
        self.followed.settle();
        Ok(())
    }

    fn bytes(&self) -> &[(&'static str, u64)] {
        &self.bytes
    }

    fn parts_us(&self) -> &[(String, u64)] {
        &self.parts_us
    }

    fn sealed(&mut self) {
        self.unsealed = false;
        self.recorded.sealed();
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.staged = None;
        self.recorded.tidy();
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        self.put_in_place(cx)
    }

    // After all others: descriptors are open and the library is in memory.
    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let refused = self.hold();
        cx.remarks.extend(refused.iter().map(place::text));
        self.go_on_recording(cx)?;
        let Some((INODES_VERSION, _)) = cx.image.section(INODES) else { return Ok(()) };
        let inodes: Inodes = cx.section(INODES, INODES_VERSION)?;
        for (remote, class_at) in cx.tree.iter().zip(&inodes.class_at) {
            // SAFETY: a plain word of a process that waits.
            unsafe { (*remote.page.header()).class_at = *class_at };
        }
        let known = inodes.known();
        let open = inodes.open.iter().filter_map(|(process, fd, was)| {
            let remote = cx.tree.get(*process as usize)?;
            let now = fs::metadata(remote.proc(&format!("fd/{fd}"))).ok()?;
            Some(((now.dev(), now.ino()), known(*was)))
        });
        let mut placed = std::mem::take(&mut self.placed);
        if placed.len() > INODES_MAX / 2 {
            // There may be no room for all: files that are open are compared most.
            let mut open: BTreeSet<Number> = BTreeSet::new();
            for remote in cx.tree {
                let fds = fs::read_dir(remote.proc("fd")).on("listing descriptors of", "the clone")?;
                let metas = fds.filter_map(|fd| fs::metadata(fd.ok()?.path()).ok());
                open.extend(metas.map(|meta| (meta.dev(), meta.ino())));
            }
            placed.sort_by_key(|(real, _)| !open.contains(real));
        }
        let (table, left) = inodes::table(open.chain(placed.iter().map(|(real, was)| (*real, known(*was)))));
        if left > 0 {
            cx.remarks.push(format!("{left} files show other inode numbers than before"));
        }
        if table.is_empty() {
            return Ok(());
        }
        for (remote, class_at) in cx.tree.iter().zip(&inodes.class_at).filter(|(_, at)| **at != 0) {
            remote.page.set_inodes(&table);
            for nr in INODE_CALLS {
                let at = class_at.wrapping_add(nr.cast_unsigned());
                remote.write(at, &[SLOW]).on("marking calls in", "the clone")?;
            }
        }
        Ok(())
    }
    fn abort_switch(&mut self, _: &mut SwitchCx) {
        self.hold();
    }
}
