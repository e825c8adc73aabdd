//! Descriptors on their way through unix sockets (`SCM_RIGHTS`): descriptions that queues hold, perhaps nothing else.

use super::fdinfo::FdInfo;
use super::kernel::{self, compare, kcmp};
use super::open::Open;
use crate::manager::{Context, RmResult};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

/// The number of a description that no process has at any.
pub(crate) const NOWHERE: i32 = -1;

/// All descriptions of a capture, to find those in queues again.
#[derive(Default)]
pub(crate) struct Passed {
    /// By object: descriptor of ours, index.
    known: BTreeMap<(u64, u64), Vec<(RawFd, u32)>>,
    count: u32,
    /// Those that are only in queues, in the order of their indexes.
    found: Vec<Open>,
}

impl Passed {
    /// A set that knows what processes have open; `opens` must outlive it.
    pub(crate) fn new(opens: &[Open]) -> Self {
        let mut passed = Self::default();
        opens.iter().for_each(|open| passed.know(open));
        passed
    }

    fn know(&mut self, open: &Open) {
        self.known.entry(open.key()).or_default().push((open.as_raw_fd(), self.count));
        self.count += 1;
    }

    /// Index of the description of a descriptor that was peeked out of a queue of `process`.
    pub(crate) fn index_of(&mut self, fd: OwnedFd, process: usize) -> RmResult<u32> {
        let stat = kernel::stat(&fd).on("reading", "a descriptor on its way")?;
        let me = std::process::id() as i32;
        for (known, index) in self.known.get(&(stat.st_dev, stat.st_ino)).into_iter().flatten() {
            let order = kcmp((me, me), compare::FILE, *known as u64, fd.as_raw_fd() as u64);
            if order.on("comparing", "a descriptor on its way")? == Ordering::Equal {
                return Ok(*index);
            }
        }
        let own = |dir: &str| format!("/proc/self/{dir}/{}", fd.as_raw_fd());
        let link = std::fs::read_link(own("fd")).on("reading link of", "a descriptor on its way")?.into();
        let info = own_info(&fd)?;
        let socket = OnceLock::new();
        let open = Open { process, number: NOWHERE, fd, link, info, stat, socket };
        self.know(&open);
        self.found.push(open);
        Ok(self.count - 1)
    }

    /// What was found since the last time.
    pub(crate) fn take(&mut self) -> Vec<Open> {
        std::mem::take(&mut self.found)
    }
}

/// `fdinfo` of a descriptor of ours.
pub(crate) fn own_info(fd: &impl AsRawFd) -> RmResult<FdInfo> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(Path::new(&path)).on("reading", &path)?;
    Ok(FdInfo::parse(text))
}
