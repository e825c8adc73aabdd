//! Looks a command up as a shell does and becomes it, handing on everything that this process inherited.

use std::ffi::{CStr, CString, OsStr, OsString, c_char};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};

/// Where `execvp` looks without `PATH`.
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// Why the command did not start.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No such command.
    #[error("'{0}': command not found; give its path, or check PATH")]
    NotFound(String),
    /// No such file.
    #[error("{0}: no such file")]
    NoFile(PathBuf),
    /// It is there, but.
    #[error("{path}: cannot be executed: {source}")]
    NotExecutable {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl ExecError {
    /// As a shell's.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) | Self::NoFile(_) => EXIT_NOT_FOUND,
            Self::NotExecutable { .. } => EXIT_NOT_EXECUTABLE,
        }
    }
}

/// Finds the file that runs for `command`.
pub fn find(command: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, ExecError> {
    if command.as_bytes().contains(&b'/') {
        let path = PathBuf::from(command);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(source) if is_absent(&source) => Err(ExecError::NoFile(path)),
            Err(source) => Err(ExecError::NotExecutable { path, source }),
        };
    }
    if command.is_empty() {
        return Err(ExecError::NotFound(String::new()));
    }
    let mut denied = None;
    let path = path.unwrap_or(OsStr::new(PATH_DEFAULT)).as_bytes();
    for dir in path.split(|&b| b == b':') {
        // An empty element is the current directory.
        let dir = if dir.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(dir)) };
        let candidate = dir.join(command);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(source) if is_absent(&source) => {}
            Err(source) => denied = denied.or(Some(ExecError::NotExecutable { path: candidate, source })),
        }
    }
    Err(denied.unwrap_or_else(|| ExecError::NotFound(command.to_string_lossy().into_owned())))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

fn executable(path: &Path) -> io::Result<()> {
    let meta = path.metadata()?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).map_err(io::Error::from)
}

/// Replaces this process; returns only when that failed. `set` is added to the environment, which is else handed on
/// byte by byte, malformed entries included.
#[must_use]
pub fn exec(path: &Path, argv: &[OsString], set: &[(OsString, OsString)]) -> ExecError {
    let fail = |source| ExecError::NotExecutable { path: path.to_owned(), source };
    let Ok(file) = CString::new(path.as_os_str().as_bytes()) else {
        return fail(io::ErrorKind::InvalidInput.into());
    };
    let argv: Result<Vec<CString>, _> = argv.iter().map(|arg| CString::new(arg.as_bytes())).collect();
    let (Ok(argv), Ok(env)) = (argv, environment(set)) else {
        return fail(io::ErrorKind::InvalidInput.into());
    };
    let error = execve(&file, &argv, &env);
    if error.raw_os_error() != Some(libc::ENOEXEC) {
        return fail(error);
    }
    // No format that the kernel knows: a script without a first line, which execvp and every shell give to sh.
    let shell = [c"/bin/sh".to_owned(), file].into_iter().chain(argv.into_iter().skip(1)).collect::<Vec<_>>();
    fail(execve(c"/bin/sh", &shell, &env))
}

fn execve(file: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: zero-terminated strings in null-terminated arrays, all alive until the call returns.
    unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn environment(set: &[(OsString, OsString)]) -> Result<Vec<CString>, std::ffi::NulError> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut all = Vec::new();
    // SAFETY: the C library's array, ended by a null pointer; this program has one thread here and never calls setenv.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            all.push(CStr::from_ptr(*entry).to_owned());
            entry = entry.add(1);
        }
    }
    all.retain(|entry| {
        let name = entry.as_bytes().split(|&b| b == b'=').next().unwrap_or_default();
        !set.iter().any(|(key, _)| key.as_bytes() == name)
    });
    for (key, value) in set {
        let mut entry = key.clone().into_vec();
        entry.push(b'=');
        entry.extend(value.as_bytes());
        all.push(CString::new(entry)?);
    }
    Ok(all)
}

/// `LD_PRELOAD` with the library first and whatever the user preloads after it.
#[must_use]
pub fn preload(library: &OsStr, present: Option<&OsStr>) -> OsString {
    let mut list = library.to_owned();
    let separator = |b: &u8| *b == b':' || *b == b' ';
    for other in present.unwrap_or_default().as_bytes().split(separator) {
        if !other.is_empty() && !library.as_bytes().split(separator).any(|l| l == other) {
            list.push(":");
            list.push(OsStr::from_bytes(other));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn lookup_follows_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for d in [&a, &b] {
            fs::create_dir(d).unwrap();
        }
        fs::create_dir(a.join("dir")).unwrap();
        fs::write(b.join("tool"), "").unwrap();
        fs::set_permissions(b.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(b.join("text"), "").unwrap();
        let path = std::env::join_paths([&a, &b]).unwrap();
        let look = |name: &str| find(OsStr::new(name), Some(&path));
        assert_eq!(look("tool").unwrap(), b.join("tool"));
        assert_eq!(look("text").unwrap_err().exit_code(), 126);
        assert_eq!(look("dir").unwrap_err().exit_code(), 126);
        assert_eq!(look("absent").unwrap_err().exit_code(), 127);
        assert_eq!(look("").unwrap_err().exit_code(), 127);
        assert_eq!(look("/no/such/file").unwrap_err().exit_code(), 127);
        assert_eq!(look(b.join("text").to_str().unwrap()).unwrap_err().exit_code(), 126);
        assert!(find(OsStr::new("sh"), None).is_ok());
    }

    #[test]
    fn preload_keeps_what_the_user_preloads() {
        let joined = |present: &str| preload(OsStr::new("/l/libholo.so"), Some(OsStr::new(present)));
        assert_eq!(joined(""), "/l/libholo.so");
        assert_eq!(joined("/j.so /k.so"), "/l/libholo.so:/j.so:/k.so");
        assert_eq!(joined("/j.so:/l/libholo.so"), "/l/libholo.so:/j.so");
        assert_eq!(preload(OsStr::new("/x"), None), "/x");
    }

    #[test]
    fn environment_is_replaced_by_name() {
        let set = [(OsString::from("PATH"), OsString::from("/only"))];
        let env = environment(&set).unwrap();
        let paths: Vec<_> = env.iter().filter(|e| e.as_bytes().starts_with(b"PATH=")).collect();
        assert_eq!(paths, [c"PATH=/only"]);
        assert!(environment(&[("A".into(), "x\0y".into())]).is_err());
    }
}
