//! System V shared memory: segments that the application has attached or created, with their ids and keys.
//!
//! A restored application that has any gets an IPC namespace of its own, see `ipc`. Segments are made and filled before memory is, attached
//! with it, and removed afterwards where they had been removed (`IPC_RMID`) while still attached.

use crate::kinds::ipc::{self, Ipc, long, word};
use crate::kinds::ipc_list::{self, Objects, Sort};
use crate::kinds::memory_read::resident;
use crate::kinds::shared_pages::{self, SharedPages};
use crate::kinds::zones::{self, PAGE, Zone, ZoneKind};
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, Since, Staged, SwitchCx, section};
use crate::remote::Remote;
use crate::track::ranges;
use holo_abi::sysno;
use holo_image::Blob;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const NAME: &str = "sysv_shm";
const VERSION: u16 = 1;
/// More segments than the kernel gives out by default (`SHMMNI`).
const SEGMENTS_MAX: usize = 4096;
const CHUNK_BYTES: u64 = 1 << 20;
const DS_BYTES: usize = 112;
/// `SHM_INFO`, `SHM_STAT_ANY`.
const SHM: Sort = Sort { call: sysno::shmctl, sub: false, info: 14, stat: 15, used_at: 0, bytes: DS_BYTES };
const IPC_CREAT_EXCL: u64 = 0o3000;
const IPC_RMID: u64 = 0;
const IPC_SET: u64 = 1;
const SHM_LOCK: u64 = 11;
const SHM_RDONLY: u64 = 0o10000;
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;

/// A segment, as `shmctl(IPC_STAT)` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Segment {
    id: i32,
    key: i32,
    uid: u32,
    gid: u32,
    /// With `SHM_DEST` and `SHM_LOCKED`.
    mode: u32,
    bytes: u64,
    /// Seconds since the epoch; of this node alone.
    #[serde(skip)]
    changed_s: i64,
    creator: i32,
    attached: u64,
}

/// A segment in the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    id: i32,
    start: u64,
    read_only: bool,
}

/// State.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct ShmState {
    segments: Vec<Segment>,
    /// With the process, by its place in the tree.
    attachments: Vec<(u32, Attachment)>,
}

/// The manager.
pub struct SysvShm {
    ipc: Ipc,
    /// Where segments were stored to.
    pages: SharedPages,
    /// Contents in the last sealed epoch, and in the one that is being written.
    known: BTreeMap<String, Blob>,
    draft: BTreeMap<String, Blob>,
    state: ShmState,
    /// What there is, listed at the beginning of this stop.
    looked: Option<Objects>,
}

impl SysvShm {
    /// A manager that tells `ipc` of what it finds; `pages` tells where segments were stored to.
    #[must_use]
    pub fn new(ipc: Ipc, pages: SharedPages) -> Self {
        let (known, draft) = (BTreeMap::new(), BTreeMap::new());
        Self { ipc, pages, known, draft, state: ShmState::default(), looked: None }
    }

    /// What of a segment must be copied, if not all.
    fn since(&self, segment: &Segment) -> Option<Since> {
        let bytes = segment.bytes.next_multiple_of(PAGE);
        let base = self.known.get(&segment.content()).filter(|base| base.len == bytes)?.clone();
        let changed = self.pages.stored((shared_pages::device()?, segment.id as u64))?;
        Some(Since { base, changed: ranges::both(&changed, &[(0, bytes)]) })
    }
}

impl Segment {
    /// Out of the kernel's `struct shmid64_ds`.
    fn parse(id: i32, ds: &[u8]) -> Self {
        Self {
            id,
            key: word(ds, 0).cast_signed(),
            uid: word(ds, 4),
            gid: word(ds, 8),
            mode: word(ds, 20),
            bytes: long(ds, 48).cast_unsigned(),
            changed_s: long(ds, 72),
            creator: word(ds, 80).cast_signed(),
            attached: long(ds, 88).cast_unsigned(),
        }
    }

    fn content(&self) -> String {
        format!("{NAME}:{}", self.id)
    }

    fn named(&self) -> String {
        format!("System V shared memory {} (key {:#x})", self.id, self.key)
    }
}

/// All segments that the application could see.
fn segments(remote: &Remote, looked: Option<Objects>) -> RmResult<Vec<Segment>> {
    let listed = ipc_list::list(remote, &SHM, "System V shared memory", looked)?;
    Ok(listed.objects.iter().map(|(id, ds)| Segment::parse(*id, ds)).collect())
}

/// Zones of segments, with all their flags.
fn attached_zones(maps: &[u8]) -> RmResult<Vec<Zone>> {
    // Most processes have none.
    let mut paths = maps.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    if !paths.any(|(at, _)| maps[at..].starts_with(b"/SYSV")) {
        return Ok(Vec::new());
    }
    let mut all = zones::parse_shared(maps).map_err(RmError::Unsupported)?;
    all.retain(|zone| zone.kind == ZoneKind::SysV);
    Ok(all)
}

/// Zones of one attachment follow one another: `mprotect` splits it. What is unmapped in part cannot be attached so.
fn attachments(
    all: &[Zone],
    segments: &BTreeMap<i32, &Segment>,
    flags: &BTreeMap<u64, String>,
) -> RmResult<Vec<Attachment>> {
    let mut out: Vec<Attachment> = Vec::new();
    let mut expected = 0;
    for zone in all {
        let id = zone.inode as i32;
        let segment = segments.get(&id).ok_or_else(|| {
            RmError::Unsupported(format!("System V shared memory {id} of another namespace is attached"))
        })?;
        let partial = || RmError::Unsupported(format!("{} is attached in part", segment.named()));
        if expected == 0 && zone.offset == 0 {
            let may_write = flags.get(&zone.start).is_some_and(|flags| flags.contains("mw"));
            let read_only = zone.prot & 2 == 0 && !may_write;
            out.push(Attachment { id, start: zone.start, read_only });
        } else if expected != zone.start
            || out.last().is_none_or(|last| last.id != id || last.start + zone.offset != zone.start)
        {
            return Err(partial());
        }
        let reach = zone.offset + zone.bytes();
        let whole = segment.bytes.next_multiple_of(PAGE);
        if reach > whole {
            return Err(partial());
        }
        expected = if reach == whole { 0 } else { zone.end };
    }
    if expected == 0 {
        Ok(out)
    } else {
        Err(RmError::Unsupported("System V shared memory is attached in part".into()))
    }
}

/// `VmFlags` by zone, as text.
fn flags(remote: &Remote) -> RmResult<BTreeMap<u64, String>> {
    let text = remote.proc_text("smaps").on("reading", "smaps")?;
    let (mut out, mut start) = (BTreeMap::new(), 0);
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            out.insert(start, flags.to_owned());
        } else if let Some((first, _)) = line.split_once('-')
            && let Ok(at) = u64::from_str_radix(first, 16)
        {
            start = at;
        }
    }
    Ok(out)
}

/// Copies a segment, or what of it has changed, through zones that show all of it.
fn copy(cx: &DumpCx, zones: &[&Zone], segment: &Segment, changed: Option<&[(u64, u64)]>) -> RmResult<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(cx.staging_dir)
        .on("copying", segment.named())?;
    file.set_len(segment.bytes.next_multiple_of(PAGE)).on("copying", segment.named())?;
    let mut buffer = Vec::new();
    for zone in zones {
        let mut there = resident(cx.remote, zone)?;
        if let Some(changed) = changed {
            let place = |(from, to): &(u64, u64)| {
                let (from, to) = ((*from).max(zone.offset), (*to).min(zone.offset + zone.bytes()));
                (from < to).then(|| (from - zone.offset + zone.start, to - zone.offset + zone.start))
            };
            there = ranges::both(&there, &changed.iter().filter_map(place).collect::<Vec<_>>());
        }
        for (start, end) in there {
            let mut at = start;
            while at < end {
                buffer.resize((end - at).min(CHUNK_BYTES) as usize, 0);
                cx.remote.page.keep_alive();
                cx.remote.read(at, &mut buffer).on("reading", segment.named())?;
                file.write_all_at(&buffer, zone.offset + (at - zone.start)).on("copying", segment.named())?;
                at += buffer.len() as u64;
            }
        }
    }
    Ok(file)
}

/// Attaches a segment for as long as it is copied: it is not attached, or not readable where it is.
fn copy_unattached(cx: &DumpCx, segment: &Segment) -> RmResult<File> {
    let id = segment.id as u64;
    let at = cx.remote.call(sysno::shmat, &[id, 0, SHM_RDONLY]).on("attaching", segment.named())?;
    let maps = fs::read(cx.remote.proc("maps")).on("reading", "maps");
    let copied = maps.and_then(|maps| attached_zones(&maps)).and_then(|all| {
        let own: Vec<&Zone> = all.iter().filter(|zone| zone.start == at).collect();
        copy(cx, &own, segment, None)
    });
    cx.remote.call(sysno::shmdt, &[at]).on("detaching", segment.named())?;
    copied
}

/// Attaches the segment that starts at `zone`, if one does, and gives the zone its protection.
pub(crate) fn attach(cx: &SwitchCx, zone: &Zone) -> RmResult<()> {
    let state: ShmState = section(cx.image, NAME, VERSION)?;
    let what = || format!("System V shared memory {} at {:#x}", zone.inode, zone.start);
    if zone.offset == 0 {
        let attachment = state
            .attachments
            .iter()
            .find(|(process, one)| *process as usize == cx.index && one.start == zone.start)
            .map(|(_, one)| one)
            .ok_or_else(|| RmError::BadSection { kind: NAME, what: format!("{} is missing", what()) })?;
        let flags = if attachment.read_only { SHM_RDONLY } else { 0 };
        cx.remote
            .call(sysno::shmat, &[attachment.id as u64, attachment.start, flags])
            .on("attaching", what())?;
    }
    cx.remote
        .call(sysno::mprotect, &[zone.start, zone.bytes(), u64::from(zone.prot)])
        .on("protecting", what())
        .map(|_| ())
}

impl ResourceManager for SysvShm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&mut self, remote: &Remote) {
        self.looked = ipc_list::look(remote, &SHM);
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.state = ShmState::default();
        let first = (cx.remote, cx.index);
        let all = segments(cx.remote, self.looked.take())?;
        let by_id: BTreeMap<i32, &Segment> = all.iter().map(|segment| (segment.id, segment)).collect();
        let mut zones: Vec<Vec<Zone>> = Vec::new();
        for (index, process) in cx.processes.iter().enumerate() {
            let own = attached_zones(process.remote.maps().on("reading", "maps")?)?;
            if !own.is_empty() {
                if let Some(zone) = own.iter().find(|zone| Some(zone.device) != shared_pages::device()) {
                    let id = zone.inode;
                    return Err(RmError::Unsupported(format!(
                        "System V shared memory {id} is of huge pages"
                    )));
                }
                // What can be written to was attached so; of all else `smaps` tells, which takes as long as a process is large.
                let flags = match own.iter().all(|zone| zone.prot & 2 != 0) {
                    true => BTreeMap::new(),
                    false => flags(&process.remote)?,
                };
                let found = attachments(&own, &by_id, &flags)?;
                self.state.attachments.extend(found.into_iter().map(|one| (index as u32, one)));
            }
            zones.push(own);
        }
        for segment in &all {
            let shows = |zone: &&Zone| zone.inode as i32 == segment.id;
            let count = zones.iter().flatten().filter(shows).count();
            // A segment that was left behind may have been made by an earlier process of that number.
            if count == 0 && !ipc::is_ours(cx, segment.creator, segment.changed_s) {
                continue;
            }
            // The kernel counts each zone.
            if segment.attached > count as u64 {
                let named = segment.named();
                return Err(RmError::Unsupported(format!("{named} is attached by other processes too")));
            }
            let through = self.state.attachments.iter().find_map(|(process, one)| {
                let end = one.start + segment.bytes.next_multiple_of(PAGE);
                let own: Vec<&Zone> = zones[*process as usize]
                    .iter()
                    .filter(|zone| one.id == segment.id && one.start <= zone.start && zone.end <= end)
                    .collect();
                let readable = !own.is_empty() && own.iter().all(|zone| zone.prot & 1 != 0);
                readable.then_some((*process as usize, own))
            });
            let since = self.since(segment).filter(|_| through.is_some());
            let copied = match &through {
                Some((process, own)) => {
                    (cx.remote, cx.index) = (&cx.processes[*process].remote, *process);
                    let copied = copy(cx, own, segment, since.as_ref().map(|since| since.changed.as_slice()));
                    (cx.remote, cx.index) = first;
                    copied
                }
                None => copy_unattached(cx, segment),
            };
            let copy = match copied {
                // Left behind by an earlier process of this pid: the application cannot use it either.
                Err(RmError::Kernel { source, .. })
                    if count == 0 && source.kind() == std::io::ErrorKind::PermissionDenied =>
                {
                    continue;
                }
                copied => copied?,
            };
            cx.staged.push(Staged { name: segment.content(), copy, since });
            self.state.segments.push(segment.clone());
        }
        if !self.state.segments.is_empty() {
            self.ipc.is_used();
        }
        Ok(())
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.draft.clear();
        cx.put(NAME, VERSION, &std::mem::take(&mut self.state))
    }

    fn stored(&mut self, contents: &BTreeMap<String, Blob>) {
        let own = contents.iter().filter(|(name, _)| name.split(':').next() == Some(NAME));
        self.draft = own.map(|(name, blob)| (name.clone(), blob.clone())).collect();
    }

    fn sealed(&mut self) {
        self.known = std::mem::take(&mut self.draft);
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.state = ShmState::default();
        // The store may not have it any more.
        self.known.clear();
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state = stored(cx)?;
        if state.segments.is_empty() {
            return Ok(());
        }
        ipc::namespace(cx)?;
        for segment in &state.segments {
            ipc::next_id(cx.remote, "shm", segment.id).on("choosing the id of", segment.named())?;
            let key = if segment.mode & SHM_DEST == 0 { segment.key } else { libc::IPC_PRIVATE };
            let key = u64::from(key.cast_unsigned());
            let mut made = 0;
            let mut make = |remote: &Remote| {
                let args = [key, segment.bytes, IPC_CREAT_EXCL | 0o600];
                made = remote.call(sysno::shmget, &args).on("making", segment.named())?;
                Ok(())
            };
            // Who made it is shown (`shm_cpid`).
            if !ipc::as_process(cx, segment.creator, &mut make)? {
                make(cx.remote)?;
            }
            if made != segment.id as u64 {
                let what = format!("{} came to be as {made}", segment.named());
                return Err(RmError::BadSection { kind: NAME, what });
            }
            fill(cx, segment)?;
        }
        Ok(())
    }

    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        for segment in &stored(cx)?.segments {
            let id = segment.id as u64;
            let mut ds = [0u8; DS_BYTES];
            ds[4..8].copy_from_slice(&segment.uid.to_le_bytes());
            ds[8..12].copy_from_slice(&segment.gid.to_le_bytes());
            ds[20..24].copy_from_slice(&(segment.mode & 0o777).to_le_bytes());
            let at = cx.remote.page.put(0, &ds);
            cx.remote.call(sysno::shmctl, &[id, IPC_SET, at]).on("setting the mode of", segment.named())?;
            if segment.mode & SHM_LOCKED != 0
                && let Err(cause) = cx.remote.call(sysno::shmctl, &[id, SHM_LOCK, 0])
            {
                cx.remarks.push(format!("{} is not locked in memory: {cause}", segment.named()));
            }
            if segment.mode & SHM_DEST != 0 {
                cx.remote.call(sysno::shmctl, &[id, IPC_RMID, 0]).on("removing", segment.named())?;
            }
        }
        Ok(())
    }
}

/// Images of before this kind have no such section.
fn stored(cx: &SwitchCx) -> RmResult<ShmState> {
    if cx.image.section(NAME).is_none() {
        return Ok(ShmState::default());
    }
    let state: ShmState = cx.section(NAME, VERSION)?;
    if state.segments.len() > SEGMENTS_MAX {
        let what = format!("{} segments", state.segments.len());
        return Err(RmError::BadSection { kind: NAME, what });
    }
    Ok(state)
}

/// Writes the content of a new segment; pages of zeros stay holes.
fn fill(cx: &SwitchCx, segment: &Segment) -> RmResult<()> {
    let blob = cx.blob(NAME, &segment.content())?;
    // SAFETY: a terminated name.
    let raw = unsafe { libc::memfd_create(c"holo-segment".as_ptr(), libc::MFD_CLOEXEC) };
    let file = File::from(super::kernel::owned(raw).on("filling", segment.named())?);
    cx.image.read_blob_to_file(blob, &file)?;
    let bytes = file.metadata().on("filling", segment.named())?.len();
    if bytes != segment.bytes.next_multiple_of(PAGE) {
        return Err(RmError::BadSection {
            kind: NAME,
            what: format!("{} of {bytes} bytes", segment.named()),
        });
    }
    let at = cx.remote.call(sysno::shmat, &[segment.id as u64, 0, 0]).on("attaching", segment.named())?;
    let mut page = [0; PAGE as usize];
    for offset in (0..bytes).step_by(PAGE as usize) {
        file.read_exact_at(&mut page, offset).on("filling", segment.named())?;
        if page.iter().any(|byte| *byte != 0) {
            cx.remote.page.keep_alive();
            cx.remote.write(at + offset, &page).on("filling", segment.named())?;
        }
    }
    cx.remote.call(sysno::shmdt, &[at]).on("detaching", segment.named()).map(|_| ())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parts(maps: &str, bytes: u64) -> RmResult<Vec<Attachment>> {
        let zones = zones::parse(maps.as_bytes()).unwrap();
        let mut ds = [0; DS_BYTES];
        ds[48..56].copy_from_slice(&bytes.to_le_bytes());
        let segment = Segment::parse(7, &ds);
        attachments(&zones, &BTreeMap::from([(7, &segment)]), &BTreeMap::from([(0x1000, " rd wr mw".into())]))
    }

    // Goal: an attachment is found however it was split, and refused if it is not whole. Method: maps by hand.
    #[test]
    fn attachments_are_whole() {
        let split = "1000-2000 rw-s 00000000 00:01 7 /SYSV00000000 (deleted)\n\
            2000-4000 r--s 00001000 00:01 7 /SYSV00000000 (deleted)\n\
            9000-c000 r--s 00000000 00:01 7 /SYSV00000000 (deleted)\n";
        let found = parts(split, 0x2fff).unwrap();
        let attachment = |start, read_only| Attachment { id: 7, start, read_only };
        assert_eq!(found, [attachment(0x1000, false), attachment(0x9000, true)]);
        assert!(parts(split, 0x4000).is_err(), "the end of it is not attached");
        let torn = "1000-2000 rw-s 00000000 00:01 7 /SYSV00000000 (deleted)\n\
            3000-4000 r--s 00002000 00:01 7 /SYSV00000000 (deleted)\n";
        assert!(parts(torn, 0x3000).is_err(), "there is a hole");
    }
}
