//! What `/proc` says of the threads of a parked process, read once in a stop: several kinds ask for it.

use crate::kinds::kernel;
use crate::proc_file;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// Its id on this node.
    pub tid: i32,
    /// Its id as it sees itself.
    pub inner: i32,
    /// Its name.
    pub name: Vec<u8>,
    /// Signals that wait for it.
    pub pending: u64,
    /// Signals that wait for any thread of its process.
    pub shared_pending: u64,
}

/// All threads of a process, and the file of its thread `face`, which was read for that.
///
/// # Errors
/// The process is gone.
pub(crate) fn read(pid: i32, face: i32) -> io::Result<(Vec<Task>, String)> {
    let (mut out, mut text) = (Vec::new(), String::new());
    each(pid, c"status", &mut |tid, status| {
        if tid == face {
            text = String::from_utf8_lossy(status).into_owned();
        }
        out.push(parse(tid, status));
    })?;
    Ok((out, text))
}

/// One thread of a process.
///
/// # Errors
/// It is gone.
pub(crate) fn one(pid: i32, tid: i32) -> io::Result<Task> {
    Ok(parse(tid, &proc_file::read(format!("/proc/{pid}/task/{tid}/status"))?))
}

/// Calls `then` with a file of each thread of a process. One that ended meanwhile is not there.
///
/// # Errors
/// The process is gone.
pub(crate) fn each(pid: i32, name: &CStr, then: &mut dyn FnMut(i32, &[u8])) -> io::Result<()> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    // Open once: walking from the root takes about as long as reading.
    let dir = kernel::open(&path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let mut room = vec![0; 4096];
    for entry in fs::read_dir(&path)? {
        let file = entry?.file_name();
        let Some(tid) = file.to_str().and_then(|name| name.parse().ok()) else { continue };
        let mut place = file.into_vec();
        place.push(b'/');
        place.extend(name.to_bytes());
        let Ok(place) = CString::new(place) else { continue };
        if let Ok(bytes) = read_at(&dir, &place, &mut room) {
            then(tid, &room[..bytes]);
        }
    }
    Ok(())
}

/// Reads all of a file into a buffer that grows, up to its end: a list ends each read with a whole entry.
fn read_at(dir: &OwnedFd, name: &CStr, room: &mut Vec<u8>) -> io::Result<usize> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: a terminated name.
    let mut file = File::from(kernel::owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags) })?);
    let mut filled = 0;
    loop {
        match file.read(&mut room[filled..])? {
            0 => return Ok(filled),
            bytes => filled += bytes,
        }
        if room.len() - filled < 64 {
            room.resize(room.len() * 2, 0);
        }
    }
}

fn parse(tid: i32, status: &[u8]) -> Task {
    let mut task = Task { tid, inner: tid, ..Task::default() };
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim().to_owned();
    let bits = |value: &[u8]| u64::from_str_radix(&text(value), 16).unwrap_or(0);
    for line in status.split(|byte| *byte == b'\n') {
        if let Some(name) = line.strip_prefix(b"Name:\t") {
            task.name = unescape(name);
        } else if let Some(ids) = line.strip_prefix(b"NSpid:") {
            task.inner = text(ids).split_whitespace().last().and_then(|id| id.parse().ok()).unwrap_or(tid);
        } else if let Some(set) = line.strip_prefix(b"SigPnd:") {
            task.pending = bits(set);
        } else if let Some(set) = line.strip_prefix(b"ShdPnd:") {
            task.shared_pending = bits(set);
        }
    }
    task
}

/// The kernel writes `\\n` for a newline and `\\\\` for a backslash.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.iter();
    while let Some(byte) = rest.next() {
        out.push(match (byte, byte == &b'\\') {
            (_, true) => match rest.next() {
                Some(b'n') => b'\n',
                Some(other) => *other,
                None => b'\\',
            },
            (byte, false) => *byte,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: every field is found, whatever the name. Method: a status with a name that looks like one of its lines.
    #[test]
    fn fields_of_a_status() {
        let status = b"Name:\ta\\nSigPnd:\\\\b\nUmask:\t0022\nNSpid:\t4711\t12\t3\nSigPnd:\t0000000000000400\nShdPnd:\t0000000180000000\n";
        let task = parse(4711, status);
        assert_eq!((task.tid, task.inner, task.pending), (4711, 3, 0x400));
        assert_eq!((task.shared_pending, task.name.as_slice()), (0x1_8000_0000, b"a\nSigPnd:\\b".as_slice()));
    }

    // Goal: long lists are read whole. Method: a thread with more children than fit into the first room.
    #[test]
    fn many_children() {
        let mut all = Vec::new();
        for _ in 0..900 {
            // SAFETY: the child only waits for its end.
            match unsafe { libc::fork() } {
                0 => loop {
                    // SAFETY: no memory is passed.
                    unsafe { libc::pause() };
                },
                pid => all.push(pid),
            }
        }
        let found = crate::tree::children(std::process::id() as i32);
        for pid in &all {
            // SAFETY: our own children.
            unsafe {
                libc::kill(*pid, libc::SIGKILL);
                libc::waitpid(*pid, std::ptr::null_mut(), 0);
            }
        }
        assert!(all.iter().all(|pid| found.contains(pid)), "{} of {}", found.len(), all.len());
    }

    // Goal: names are those that the threads gave themselves. Method: a thread with a name that is escaped.
    #[test]
    fn own_threads() {
        let name = b"x\\y\nz";
        let (told, wait) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let (tell, end) = (told.0, wait.1);
        let thread = std::thread::spawn(move || {
            // SAFETY: a name with its final zero.
            unsafe { libc::prctl(libc::PR_SET_NAME, c"x\\y\nz".as_ptr()) };
            // SAFETY: no memory is passed.
            tell.send(unsafe { libc::gettid() }).unwrap();
            let _ = end.recv();
        });
        let tid = told.1.recv().unwrap();
        let me = std::process::id() as i32;
        let (tasks, status) = read(me, me).unwrap();
        assert!(status.contains(&format!("\nTgid:\t{}\n", std::process::id())));
        let task = tasks.iter().find(|task| task.inner == tid).unwrap();
        assert_eq!(task.name, name);
        drop(wait.0);
        thread.join().unwrap();
    }
}
