//! Shared memory objects without a name, made anew as memory files.

use crate::install::{Install, install};
use crate::kinds::kernel::owned;
use crate::kinds::shared::{SharedObjects, content_name};
use crate::manager::{Context, RmResult, SwitchCx};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Objects on their way get descriptor numbers this far above all others of the clone.
const PLACE: i32 = 16;

/// Gives the process the object, made at its first zone in any process and filled from space `local` of the image;
/// its descriptor there.
///
/// One that a descriptor holds too comes from the common set, so that it is one object again.
pub(crate) fn make(
    cx: &SwitchCx,
    shared: &SharedObjects,
    key: (u64, u64),
    path: &[u8],
    bytes: u64,
    local: u64,
) -> RmResult<u64> {
    let fd = if cx.blobs.contains_key(&content_name(key)) {
        let name = path.strip_prefix(b"/memfd:").unwrap_or(path);
        shared.memfd(key, name, libc::MFD_ALLOW_SEALING, cx)?
    } else {
        let fd = shared.get_or_make(key, || {
            let stem = path.strip_prefix(b"/memfd:").unwrap_or(b"holo-shared");
            let name: Vec<u8> = stem.iter().copied().filter(|byte| *byte != 0).take(200).collect();
            let name = CString::new(name).unwrap_or_default();
            // SAFETY: a terminated name.
            let made =
                unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
            owned(made).on("making", "a shared object")
        })?;
        let file = File::from(fd);
        // Processes may reach differently far into it.
        if file.metadata().on("sizing", "a shared object")?.len() < bytes {
            file.set_len(bytes).on("sizing", "a shared object")?;
        }
        fill(cx, &file, bytes, cx.space(local))?;
        file.into()
    };
    let at = cx.channel_fd + PLACE + local as i32;
    install(&cx.way(), cx.remote, &[Install { fd: fd.as_fd(), at, cloexec: true }])?;
    Ok(at as u64)
}

fn fill(cx: &SwitchCx, file: &File, bytes: u64, space: u64) -> RmResult<()> {
    let mut buffer = vec![0; 1 << 20];
    for run in cx.image.pages_of(space) {
        let mut first = 0;
        while first < run.keys.len() {
            let pages = (run.keys.len() - first).min(256);
            let part = &mut buffer[..pages * 4096];
            cx.image.read_run(run, first, part)?;
            cx.remote.page.keep_alive();
            let at = run.address + first as u64 * 4096;
            let end = bytes.saturating_sub(at).min(part.len() as u64) as usize;
            file.write_all_at(&part[..end], at).on("filling", "a shared object")?;
            first += pages;
        }
    }
    Ok(())
}
