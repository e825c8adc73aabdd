//! Reading a process's memory: what there is to read, out of a snapshot, and comparing an increment with one.

use crate::kinds::increment::{Plan, Runs, SPACE, named};
use crate::kinds::memory::NAME;
use crate::kinds::pagemap::Pagemap;
use crate::kinds::zones::{PAGE, Zone};
use crate::manager::{Context, RmError, RmResult};
use crate::remote::{Remote, read_guarded};
use crate::snapshot::Snapshot;
use crate::track::ranges;
use holo_abi::sysno;
use holo_image::{EpochWriter, Names, PageKey};

/// Bytes read from the snapshot and stored at once.
const CHUNK_BYTES: u64 = 4 << 20;

/// What is to be read from a snapshot.
pub(crate) fn wanted(
    snapshot: &Snapshot,
    zones: &[Zone],
    by_hand: &[(u64, u64)],
    plan: Option<&Plan>,
) -> RmResult<Vec<(u64, u64)>> {
    let mut pagemap = Pagemap::open(snapshot.pid).on("opening", "the snapshot's pagemap")?;
    let mut all = plan.map(|plan| plan.read.clone()).unwrap_or_default();
    if plan.is_none() {
        for zone in zones.iter().filter(|zone| zone.is_private()) {
            all.extend(pagemap.own_ranges(zone.start, zone.end).on("reading", "the snapshot's pagemap")?);
        }
    }
    Ok(ranges::without(&ranges::normal(all), by_hand))
}

pub(crate) fn read_snapshot(
    snapshot: &Snapshot,
    wanted: &[(u64, u64)],
    writer: &mut EpochWriter,
    runs: &mut Runs,
) -> RmResult<()> {
    writer.expect(ranges::bytes(wanted));
    let mut buffer = vec![0; CHUNK_BYTES.min(ranges::bytes(wanted)) as usize];
    for chunk in chunks(wanted) {
        let mut filled = 0;
        for (start, end) in &chunk {
            let room = &mut buffer[filled..filled + (end - start) as usize];
            snapshot.read(*start, room).map_err(|cause| unreadable(*start, cause))?;
            filled += room.len();
        }
        let mut keys = writer.put_page_bytes(&buffer[..filled])?.into_iter();
        for (start, end) in chunk {
            runs.insert(start, keys.by_ref().take(((end - start) / PAGE) as usize).collect());
        }
    }
    Ok(())
}

/// Why memory that is there cannot be read.
fn unreadable(at: u64, source: std::io::Error) -> RmError {
    if source.raw_os_error() == Some(libc::EIO) {
        let what = format!("memory at {at:#x} has guards (MADV_GUARD_INSTALL) or a page that failed");
        return RmError::Unsupported(what);
    }
    RmError::Kernel { operation: "reading", object: format!("the snapshot at {at:#x}"), source }
}

/// Ranges in groups of [`CHUNK_BYTES`], the last one of what is left.
pub(crate) fn chunks(ranges: &[(u64, u64)]) -> Vec<Vec<(u64, u64)>> {
    let (mut out, mut room) = (Vec::<Vec<_>>::new(), 0);
    for &(mut start, end) in ranges {
        while start < end {
            if room == 0 {
                out.push(Vec::new());
                room = CHUNK_BYTES;
            }
            let until = end.min(start + room);
            if let Some(chunk) = out.last_mut() {
                chunk.push((start, until));
            }
            room -= until - start;
            start = until;
        }
    }
    out
}

/// Compares what an epoch has with a full scan of a snapshot of the same cut: every own page is named, and what
/// was kept by name has the content of that name.
pub(crate) fn check(
    snapshot: &Snapshot,
    zones: &[Zone],
    by_hand: &[(u64, u64)],
    names: &Names,
    keep: &[(u64, u64)],
) -> RmResult<()> {
    let wrong =
        |at: u64, what: &str| RmError::BadSection { kind: NAME, what: format!("page {at:#x} {what}") };
    let mut pagemap = Pagemap::open(snapshot.pid).on("opening", "the snapshot's pagemap")?;
    let mut own = Vec::new();
    for zone in zones.iter().filter(|zone| zone.is_private()) {
        own.extend(pagemap.own_ranges(zone.start, zone.end).on("reading", "the snapshot's pagemap")?);
    }
    let own = ranges::without(&ranges::normal(own), by_hand);
    let mut page = vec![0; PAGE as usize];
    for (start, end) in ranges::without(&own, &named(names)) {
        for at in (start..end).step_by(PAGE as usize) {
            snapshot.read(at, &mut page).on("checking", format!("page {at:#x}"))?;
            if page.iter().any(|byte| *byte != 0) {
                return Err(wrong(at, "is not in the increment"));
            }
        }
    }
    for (start, end) in ranges::without(keep, by_hand) {
        for at in (start..end).step_by(PAGE as usize) {
            snapshot.read(at, &mut page).on("checking", format!("page {at:#x}"))?;
            if names.get(SPACE, at).as_ref() != PageKey::of_all(&page).first() {
                return Err(wrong(at, "changed without being tracked"));
            }
        }
    }
    Ok(())
}

/// Pages of a shared zone that exist: by `mincore`, so that holes are not filled by looking. To it a page that is swapped out is
/// a hole: where there are any, all are read.
pub(crate) fn resident(remote: &Remote, zone: &Zone) -> RmResult<Vec<(u64, u64)>> {
    if swaps() && has_swapped(&remote.proc_text("smaps").on("reading", "smaps")?, zone.start) {
        return Ok(vec![(zone.start, zone.end)]);
    }
    const STEP: u64 = 128 * 1024 * PAGE;
    let mut out: Vec<(u64, u64)> = Vec::new();
    let _hands = remote.page.hands();
    let mut at = zone.start;
    while at < zone.end {
        let bytes = (zone.end - at).min(STEP);
        let vector_at = remote.page.scratch_address(0);
        remote
            .call(sysno::mincore, &[at, bytes, vector_at])
            .on("looking at", format!("shared zone {:#x}", zone.start))?;
        for (index, byte) in remote.page.take(0, (bytes / PAGE) as usize).iter().enumerate() {
            if byte & 1 == 0 {
                continue;
            }
            let page = at + index as u64 * PAGE;
            match out.last_mut() {
                Some(last) if last.1 == page => last.1 = page + PAGE,
                _ => out.push((page, page + PAGE)),
            }
        }
        at += bytes;
    }
    Ok(out)
}

/// Whether anything of this machine's memory is swapped out.
fn swaps() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    value("SwapTotal:") != value("SwapFree:")
}

/// Whether pages of the zone at `start` are swapped out, by `smaps`.
fn has_swapped(smaps: &str, start: u64) -> bool {
    let begin = format!("{start:08x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin));
    let swap = lines.find_map(|line| line.strip_prefix("Swap:"));
    swap.is_some_and(|swap| swap.trim() != "0 kB")
}

/// A zone of a deleted file, up to the end of the file.
pub(crate) fn whole(remote: &Remote, zone: &Zone) -> Vec<(u64, u64)> {
    let mut probe = vec![0; PAGE as usize];
    let mut is_there = |at: u64| match zone.prot & 1 {
        0 => read_guarded(remote.face, at, &mut probe).is_ok(),
        _ => remote.read(at, &mut probe).is_ok(),
    };
    let mut end = zone.start;
    while end < zone.end && is_there(end) {
        end += PAGE;
    }
    if end > zone.start { vec![(zone.start, end)] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: of the zone that is asked for, and no other. Method: a text with two.
    #[test]
    fn swapped_pages_are_told() {
        let smaps = "7f0000001000-7f0000002000 rw-s 0 00:01 7 /dev/zero (deleted)\nRss: 4 kB\nSwap:                  0 kB\n\
                     7f0000003000-7f0000009000 rw-s 0 00:01 8 /dev/zero (deleted)\nSwap:                 16 kB\nVmFlags: rd\n";
        assert!(!has_swapped(smaps, 0x7f00_0000_1000));
        assert!(has_swapped(smaps, 0x7f00_0000_3000));
        assert!(!has_swapped(smaps, 0x7f00_0000_2000));
    }

    // Goal: groups are full, in order, and have all of every range. Method: ranges around the bound.
    #[test]
    fn ranges_in_groups() {
        let big = 3 * CHUNK_BYTES;
        let all = [(0, PAGE), (2 * PAGE, 2 * PAGE + CHUNK_BYTES), (big, big + 2 * CHUNK_BYTES)];
        let groups = chunks(&all);
        let sizes: Vec<u64> = groups.iter().map(|group| ranges::bytes(group)).collect();
        assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, PAGE]);
        assert_eq!(ranges::normal(groups.concat()), all);
        assert!(chunks(&[]).is_empty());
    }
}
