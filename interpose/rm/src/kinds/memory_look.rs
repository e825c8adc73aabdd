//! What is known of a process's memory without reading it: zones, places of its parts, how much it is.

use crate::asks::Asked;
use crate::kinds::memory::Layout;
use crate::kinds::zones::{self, Zone, ZoneKind};
use crate::manager::{Context, DumpCx, RmError, RmResult};
use crate::proc_file;
use crate::remote::{Remote, outcome};
use std::io;
use std::sync::atomic::Ordering;

/// The end of the break among [`Layout::words`], which only the process itself can tell.
const BREAK: usize = 5;

/// Layout out of `/proc/<pid>/stat` and `brk`.
///
/// With it, the process's start time, which tells it from others of the same pid.
pub(crate) fn layout(cx: &DumpCx, asked: &Asked) -> RmResult<(Layout, u64)> {
    let gone = || std::io::Error::from_raw_os_error(libc::ESRCH);
    let stat = cx.remote.stat().ok_or_else(gone).on("reading", "stat")?;
    let brk = cx.remote.answers().and_then(|answers| outcome(&answers.of(asked)?.0[0]));
    let brk = brk.on("asking for", "brk")?;
    let mut words = stat.parts;
    words[BREAK] = brk;
    let auxv = cx.remote.auxv().on("reading", "auxv")?.to_vec();
    Ok((Layout { words, auxv }, stat.started))
}

/// Where holo's own zones begin.
pub(crate) fn own(remote: &Remote) -> [u64; 2] {
    [remote.page.address(), remote.page.changes_at()]
}

/// Calls so far that change flags of zones.
pub(crate) fn advised(remote: &Remote) -> u32 {
    remote.page.control().header.advised.load(Ordering::SeqCst)
}

/// Bytes of memory without a file that it has.
pub(crate) fn own_bytes(remote: &Remote) -> u64 {
    let status = remote.proc_text("status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// All but holo's own, which begin at `own`; of a process, or of that of a thread.
pub(crate) fn read_zones(tid: i32, own: [u64; 2]) -> RmResult<Vec<Zone>> {
    let path = format!("/proc/{tid}/maps");
    let text = proc_file::read(&path).and_then(|text| match text.is_empty() {
        // That of one that has ended.
        true => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        false => Ok(text),
    });
    parse_zones(&text.on("reading", &path)?, own)
}

pub(crate) fn parse_zones(text: &[u8], own: [u64; 2]) -> RmResult<Vec<Zone>> {
    let mut all = zones::parse(text).map_err(RmError::Unsupported)?;
    all.retain(|zone| !own.contains(&zone.start) && zone.kind != ZoneKind::Vsyscall);
    Ok(all)
}
