//! What a process has open, as `/proc` shows it: read once in a stop, several kinds ask for it.

use crate::kinds::fdinfo::FdInfo;
use crate::kinds::kernel;
use crate::manager::{Context, RmResult};
use crate::remote::Remote;
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
