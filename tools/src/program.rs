//! Can a preload reach this program? What neither symbols nor call sites reach is refused or run untouched, never
//! silently: static executables, foreign architectures and C libraries, programs that gain privileges.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Interpreters in a row that the kernel follows (`BINPRM_BUF_SIZE` bytes of each first line count).
const SCRIPTS_MAX: usize = 5;
const HEAD_BYTES: usize = 256;
/// Program headers looked at: more than any linker writes, and a bound for hostile files.
const SEGMENTS_MAX: usize = 512;
const INTERPRETER_BYTES_MAX: usize = 4096;

/// Why libholo would not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// No dynamic loader runs.
    #[error("{0} is statically linked: no library can be preloaded into it")]
    Static(PathBuf),
    /// Another machine or word size.
    #[error("{0} is not an x86-64 program")]
    Foreign(PathBuf),
    /// Not glibc's loader.
    #[error("{0} runs with the loader {1}, not with glibc's: libholo.so does not fit its C library")]
    OtherLoader(PathBuf, String),
    /// The loader ignores `LD_PRELOAD` in secure mode.
    #[error("{0} is a set-user-id or set-group-id program: the loader ignores LD_PRELOAD for it")]
    SetId(PathBuf),
    /// As above.
    #[error("{0} has file capabilities: the loader ignores LD_PRELOAD for it")]
    Capabilities(PathBuf),
}

/// The credentials that decide whether an `exec` gains privileges.
#[derive(Clone, Copy, Debug)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// `PR_SET_NO_NEW_PRIVS` is set: set-id bits and file capabilities do nothing.
    pub no_new_privs: bool,
}

impl Credentials {
    /// Of this process.
    #[must_use]
    pub fn of_process() -> Self {
        // SAFETY: a query without pointers.
        let no_new_privs = unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1;
        Self { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw(), no_new_privs }
    }
}

/// Examines a program as `exec` would, following `#!` lines. A file that cannot be read is given the benefit of the
/// doubt: the kernel will say what is wrong with it, and the agent sees whether it joins.
#[must_use]
pub fn unreachable(path: &Path, who: Credentials) -> Option<Unreachable> {
    let mut path = path.to_owned();
    for _ in 0..=SCRIPTS_MAX {
        let Ok(file) = File::open(&path) else {
            return privileged(&path, who);
        };
        let mut head = [0; HEAD_BYTES];
        let read = read_head(&file, &mut head).ok()?;
        match script_interpreter(&head[..read]) {
            // The set-id bits of a script do nothing.
            Some(interpreter) => path = interpreter,
            None => return privileged(&path, who).or_else(|| examine_elf(&path, &file, &head[..read])),
        }
    }
    None
}

fn read_head(mut file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < head.len() {
        match file.read(&mut head[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// The interpreter of a `#!` line.
fn script_interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let word = line.split(|&b| b == b' ' || b == b'\t' || b == 0).find(|word| !word.is_empty())?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(word)))
}

fn privileged(path: &Path, who: Credentials) -> Option<Unreachable> {
    let meta = path.metadata().ok()?;
    let nosuid = nix::sys::statvfs::statvfs(path)
        .is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_NOSUID));
    if who.no_new_privs || nosuid {
        return None;
    }
    // A set-group-id bit without group execution was mandatory locking.
    let set_gid = meta.mode() & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP;
    let gains_user = meta.mode() & libc::S_ISUID != 0 && meta.uid() != who.uid;
    if gains_user || (set_gid && meta.gid() != who.gid) {
        return Some(Unreachable::SetId(path.to_owned()));
    }
    // For a real root the loader stays in its normal mode.
    (who.uid != 0 && has_capabilities(path)).then(|| Unreachable::Capabilities(path.to_owned()))
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end with a zero; a size query writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

fn examine_elf(path: &Path, file: &File, head: &[u8]) -> Option<Unreachable> {
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u16 = 62;
    // Not ELF: the kernel's business, or a shell script without a first line.
    if head.len() < 64 || !head.starts_with(b"\x7fELF") {
        return None;
    }
    if head[4] != CLASS_64 || u16_at(head, 18)? != MACHINE_X86_64 {
        return Some(Unreachable::Foreign(path.to_owned()));
    }
    match interpreter(file, head) {
        Ok(Some(loader)) if is_glibc_loader(&loader) => None,
        Ok(Some(loader)) => Some(Unreachable::OtherLoader(path.to_owned(), loader)),
        // The loader itself, run as a program, preloads like any other time.
        Ok(None) if path.canonicalize().is_ok_and(|p| is_glibc_loader(&p.to_string_lossy())) => None,
        Ok(None) => Some(Unreachable::Static(path.to_owned())),
        Err(_) => None,
    }
}

fn is_glibc_loader(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "ld-linux-x86-64.so.2" || (name.starts_with("ld-2.") && name.ends_with(".so"))
}

/// The `PT_INTERP` path of a 64-bit little-endian ELF file.
fn interpreter(file: &File, head: &[u8]) -> io::Result<Option<String>> {
    const PT_INTERP: u32 = 3;
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let offset = u64_at(head, 32).ok_or_else(short)?;
    let entry_bytes = usize::from(u16_at(head, 54).ok_or_else(short)?);
    let count = usize::from(u16_at(head, 56).ok_or_else(short)?).min(SEGMENTS_MAX);
    if entry_bytes < 56 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut table = vec![0; entry_bytes * count];
    file.read_exact_at(&mut table, offset)?;
    for entry in table.chunks_exact(entry_bytes) {
        if u32_at(entry, 0) != Some(PT_INTERP) {
            continue;
        }
        let at = u64_at(entry, 8).ok_or_else(short)?;
        let bytes = usize::try_from(u64_at(entry, 32).ok_or_else(short)?).unwrap_or(usize::MAX);
        let mut text = vec![0; bytes.min(INTERPRETER_BYTES_MAX)];
        file.read_exact_at(&mut text, at)?;
        let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        return Ok(Some(String::from_utf8_lossy(&text[..end]).into_owned()));
    }
    Ok(None)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
