//! Shared memory objects without a name, made anew as memory files.

use crate::install::{Install, install};
use crate::kinds::shared::{SharedObjects, content_name};
use crate::manager::{Context, RmResult, SwitchCx};
use holo_abi::sysno;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Objects on their way get descriptor numbers this far above all others of the clone.
const PLACE: i32 = 16;

/// Makes the object in the clone, filled from `space` of the image; its descriptor there.
///
/// One that a descriptor holds too comes from the common set, so that it is one object again.
pub(crate) fn make(
    cx: &SwitchCx,
    shared: &SharedObjects,
    key: (u64, u64),
    path: &[u8],
    bytes: u64,
    space: u64,
) -> RmResult<u64> {
    if cx.blobs.contains_key(&content_name(key)) {
        let name = path.strip_prefix(b"/memfd:").unwrap_or(path);
        let fd = shared.memfd(key, name, libc::MFD_ALLOW_SEALING, cx)?;
        let at = cx.channel_fd + PLACE + space as i32;
        install(cx, &[Install { fd: fd.as_fd(), at, cloexec: true }])?;
        return Ok(at as u64);
    }
    let stem = path.strip_prefix(b"/memfd:").unwrap_or(b"holo-shared");
    let mut name: Vec<u8> = stem.iter().copied().filter(|byte| *byte != 0).take(200).collect();
    name.push(0);
    let at = cx.remote.page.put(0, &name);
    let fd = cx.remote.call(sysno::memfd_create, &[at, 3]).on("making", "a shared object")?;
    cx.remote.call(sysno::ftruncate, &[fd, bytes]).on("sizing", "a shared object")?;
    let file = std::fs::File::from(cx.remote.borrow_fd(fd as i32).on("borrowing", "a shared object")?);
    let mut buffer = vec![0; 1 << 20];
    for run in cx.image.pages().filter(|run| run.space == space) {
        let mut first = 0;
        while first < run.keys.len() {
            let pages = (run.keys.len() - first).min(256);
            let part = &mut buffer[..pages * 4096];
            cx.image.read_run(run, first, part)?;
            cx.remote.page.keep_alive();
            let at = run.address + first as u64 * 4096;
            let end = bytes.saturating_sub(at).min(part.len() as u64) as usize;
            write(&file, &part[..end], at).on("filling", "a shared object")?;
            first += pages;
        }
    }
    Ok(fd)
}

fn write(file: &std::fs::File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at)
}
