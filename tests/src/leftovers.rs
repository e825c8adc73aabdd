//! Shared memory of killed programs, which the kernel keeps for ever: `/dev/shm`, and System V without a process.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What processes had that were killed.
static NOTED: Mutex<(BTreeSet<PathBuf>, BTreeSet<i32>)> = Mutex::new((BTreeSet::new(), BTreeSet::new()));

fn ipc_namespace(pid: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/ipc")).ok()
}

/// Notes what a process has that is about to be killed.
pub(crate) fn note(pid: u32) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let is_here = ipc_namespace(&pid.to_string()).is_some_and(|own| Some(own) == ipc_namespace("self"));
    let mut noted = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(inode), Some(path)) = (words.nth(4), words.next()) else { continue };
        if path.starts_with("/SYSV") && is_here {
            noted.1.extend(inode.parse::<i32>());
        } else if path.starts_with("/dev/shm/")
            // Not of another mount namespace. Control pages are the agent's.
            && !path.starts_with("/dev/shm/holo-")
            && fs::metadata(path).is_ok_and(|meta| meta.ino().to_string() == inode)
        {
            noted.0.insert(path.into());
        }
    }
}

/// Removes what was noted; nobody has it any more.
pub(crate) fn remove() {
    let (files, segments) = std::mem::take(&mut *NOTED.lock().unwrap_or_else(PoisonError::into_inner));
    files.iter().for_each(|file| drop(fs::remove_file(file)));
    for id in segments {
        // SAFETY: no memory is passed.
        unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}
