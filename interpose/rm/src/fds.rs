//! What a process has open, as `/proc` shows it: read once in a stop, several kinds ask for it.

use crate::kinds::fdinfo::FdInfo;
use crate::kinds::kernel;
use crate::manager::{Context, RmResult};
use crate::remote::Remote;
use crate::tree::start_time;
use holo_abi::sysno;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A descriptor number.
pub struct Fd {
    /// The number.
    pub number: i32,
    /// Where its link leads.
    pub link: OsString,
    pub(crate) info: FdInfo,
}

impl Fd {
    /// Its status flags, and `O_CLOEXEC` of this very number.
    #[must_use]
    pub fn flags(&self) -> i32 {
        self.info.flags
    }
}

/// All of a parked process, without what an agent that was killed had it make.
pub(crate) fn read_parked(remote: &Remote) -> RmResult<Vec<Fd>> {
    let mut all = read(remote)?;
    if all.iter().any(is_unused_userfaultfd) && is_older_than_we(remote) {
        all.retain(|fd| {
            !is_unused_userfaultfd(fd)
                || remote.call(sysno::close, &[fd.number.unsigned_abs().into()]).is_err()
        });
    }
    Ok(all)
}

/// As `track::userfaultfd` has a process make one, to take it away at once: nobody has said yet what it is for. One that the
/// application makes is in that state for as long as from one call to the next.
fn is_unused_userfaultfd(fd: &Fd) -> bool {
    let features = || fd.info.field("API:").and_then(|api| api.split(':').nth(1));
    fd.link == "anon_inode:[userfaultfd]" && fd.flags() & libc::O_CLOEXEC != 0 && features() == Some("0")
}

/// Was it there when this agent was started, so that another one may have been killed in the middle of something?
fn is_older_than_we(remote: &Remote) -> bool {
    let ours = start_time(std::process::id().cast_signed());
    start_time(remote.pid).is_some_and(|at| ours.is_some_and(|ours| at <= ours))
}

/// All of a process, in rising order.
pub(crate) fn read(remote: &Remote) -> RmResult<Vec<Fd>> {
    let dir = remote.proc("fd");
    // Open once: walking from the root costs more than all else that is asked of a descriptor.
    let open_dir = |path: &Path| kernel::open(path, libc::O_RDONLY | libc::O_DIRECTORY, 0);
    let links = open_dir(&dir).on("opening", dir.display())?;
    let infos = open_dir(&remote.proc("fdinfo")).on("opening", "fdinfo")?;
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&dir).on("listing", dir.display())? {
        let entry = entry.on("listing", dir.display())?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let name = CString::new(entry.file_name().as_bytes()).unwrap_or_default();
        let link = kernel::link_at(&links, &name).on("reading link of descriptor", number)?;
        let text = kernel::read_at(&infos, &name).on("reading fdinfo of descriptor", number)?;
        let info = FdInfo::parse(String::from_utf8_lossy(&text).into_owned());
        all.push(Fd { number, link, info });
    }
    all.sort_by_key(|fd| fd.number);
    Ok(all)
}
