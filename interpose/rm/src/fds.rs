//! What a process has open, as `/proc` shows it: read once in a stop, several kinds ask for it.

use crate::kinds::fdinfo::FdInfo;
use crate::kinds::kernel;
use crate::manager::{Context, RmResult};
use crate::remote::Remote;
use crate::tree::start_time;
use holo_abi::sysno;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A descriptor number.
pub struct Fd {
    /// The number.
    pub number: i32,
    /// Where its link leads.
    pub link: OsString,
    pub(crate) info: FdInfo,
}

impl Fd {
    /// Its status flags, and `O_CLOEXEC` of this very number, which for a socket means that it may be set.
    #[must_use]
    pub fn flags(&self) -> i32 {
        self.info.flags
    }

    /// Its mount, and its inode there (Linux 5.14).
    #[must_use]
    pub fn file(&self) -> Option<(u64, u64)> {
        Some((self.info.number("mnt_id:", 10)?, self.info.number("ino:", 10)?))
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

/// The directories of `/proc` that show what a process has open. Open once: walking from the root costs more than all else that is asked of
/// a descriptor.
struct Shown {
    path: PathBuf,
    links: OwnedFd,
    infos: OwnedFd,
}

impl Shown {
    fn of(remote: &Remote) -> RmResult<Self> {
        let path = remote.proc("fd");
        let open_dir = |path: &Path| kernel::open(path, libc::O_RDONLY | libc::O_DIRECTORY, 0);
        let links = open_dir(&path).on("opening", path.display())?;
        let infos = open_dir(&remote.proc("fdinfo")).on("opening", "fdinfo")?;
        Ok(Self { path, links, infos })
    }

    /// Numbers, also as names, in rising order.
    fn numbers(&self) -> RmResult<Vec<(i32, CString)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.path).on("listing", self.path.display())? {
            let name = entry.on("listing", self.path.display())?.file_name();
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            all.push((number, CString::new(name.as_bytes()).unwrap_or_default()));
        }
        all.sort_unstable();
        Ok(all)
    }

    fn link(&self, name: &CStr) -> RmResult<OsString> {
        kernel::link_at(&self.links, name).on("reading link of descriptor", name.to_string_lossy())
    }

    fn info(&self, name: &CStr) -> RmResult<FdInfo> {
        let text = kernel::read_at(&self.infos, name);
        let text = text.on("reading fdinfo of descriptor", name.to_string_lossy())?;
        Ok(FdInfo::parse(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Whether a link of `/proc` leads to a socket.
pub(crate) fn is_socket(link: &OsStr) -> bool {
    link.as_bytes().starts_with(b"socket:[")
}

/// All of a process, in rising order.
fn read(remote: &Remote) -> RmResult<Vec<Fd>> {
    let shown = Shown::of(remote)?;
    let named = |(number, name): (i32, CString)| Ok((number, shown.link(&name)?, name));
    let all = shown.numbers()?.into_iter().map(named).collect::<RmResult<Vec<_>>>()?;
    let are_many = all.iter().filter(|(_, link, _)| is_socket(link)).count() >= MANY_SOCKETS;
    let fd = |(number, link, name): (i32, OsString, CString)| {
        let asked = if are_many && is_socket(&link) { socket_info(remote, number) } else { None };
        let info = asked.map_or_else(|| shown.info(&name), Ok)?;
        Ok(Fd { number, link, info })
    };
    all.into_iter().map(fd).collect()
}

/// So many sockets of a process are asked themselves for what `fdinfo` shows: that takes a tenth of the time. What they do not know, each
/// number's `O_CLOEXEC`, the process is asked for, which costs as much as a few of them.
const MANY_SOCKETS: usize = 8;

/// What `fdinfo` would show of a socket, as if `O_CLOEXEC` were set: whether it is, only the process knows. `None`: it must be read, since it
/// cannot be asked, or record locks are shown there.
fn socket_info(remote: &Remote, number: i32) -> Option<FdInfo> {
    let fd = remote.borrow_fd(number).ok()?;
    let flags = kernel::fcntl(&fd, libc::F_GETFL, 0).ok()?;
    (!kernel::is_locked(&fd)).then(|| FdInfo::of_socket(flags | libc::O_CLOEXEC))
}

/// How long the kernel is taken to keep the tables by which it shows what it has shown before.
const READY_FOR: Duration = Duration::from_secs(5);

/// What a process had open when it was looked at while it ran.
pub(crate) struct Look {
    at: Instant,
    numbers: Vec<i32>,
    /// What the kernel tells of its inotify instances.
    pub(crate) watching: Vec<FdInfo>,
}

impl Look {
    /// Looks at what a running process has open, and makes the kernel's own tables ready for the stop, where a first look at a descriptor
    /// costs several times as much as the next ones. Those of the look before were looked at in the stop that followed it.
    pub(crate) fn at(remote: &Remote, before: Option<&Self>) -> RmResult<Self> {
        let before = before.filter(|before| before.at.elapsed() < READY_FOR);
        let shown = Shown::of(remote)?;
        let (mut numbers, mut watching) = (Vec::new(), Vec::new());
        for (number, name) in shown.numbers()? {
            // It may be closed at any time.
            let Ok(link) = shown.link(&name) else { continue };
            let watches = link == "anon_inode:inotify";
            let is_ready = before.is_some_and(|before| before.numbers.binary_search(&number).is_ok());
            if (watches || !is_ready)
                && let Ok(info) = shown.info(&name)
            {
                watching.extend(Some(info).filter(|_| watches));
            }
            numbers.push(number);
        }
        Ok(Self { at: Instant::now(), numbers, watching })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::page::Page;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    // Goal: instances that watch are told of at each look, also where their number is ready, or was another file's; what was closed is
    // forgotten. Method: our own descriptors.
    #[test]
    fn instances_that_watch_are_seen_at_each_look() {
        let page = Arc::new(Page::create().unwrap());
        let remote = Remote::new(page, std::process::id().cast_signed(), 0).unwrap();
        let first = File::open("/dev/null").unwrap();
        let look = Look::at(&remote, None).unwrap();
        assert!(look.numbers.contains(&first.as_raw_fd()));
        let before = look.watching.len();
        // SAFETY: no memory is passed; a new descriptor.
        let watch = unsafe { OwnedFd::from_raw_fd(libc::inotify_init1(libc::IN_CLOEXEC)) };
        // SAFETY: both are ours: the number becomes that of the instance.
        assert!(unsafe { libc::dup2(watch.as_raw_fd(), first.as_raw_fd()) } >= 0);
        let look = Look::at(&remote, Some(&look)).unwrap();
        assert_eq!(look.watching.len(), before + 2);
        let look = Look::at(&remote, Some(&look)).unwrap();
        assert_eq!(look.watching.len(), before + 2);
        drop(first);
        let look = Look::at(&remote, Some(&look)).unwrap();
        assert_eq!(look.watching.len(), before + 1);
    }

    // Goal: of many sockets the same is told as `fdinfo` shows, and record locks are seen. Method: a child with sockets of both sorts of
    // flags, which locks one of them.
    #[test]
    fn many_sockets_are_asked_themselves() {
        let sockets: Vec<UnixStream> =
            (0..MANY_SOCKETS).flat_map(|_| <[UnixStream; 2]>::from(UnixStream::pair().unwrap())).collect();
        sockets.iter().step_by(3).for_each(|socket| socket.set_nonblocking(true).unwrap());
        // SAFETY: a `flock` of zeros is valid.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_WRLCK as i16;
        // SAFETY: the child makes raw calls only, and waits to be killed.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; one `flock`.
            unsafe {
                libc::fcntl(sockets[0].as_raw_fd(), libc::F_SETLK, &raw const lock);
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
        }
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WUNTRACED) };
        let remote = Remote::new(Arc::new(Page::create().unwrap()), pid, 0).unwrap();
        let (all, shown) = (read(&remote), Shown::of(&remote).unwrap());
        for (at, socket) in sockets.iter().enumerate() {
            let fd = all.as_ref().unwrap().iter().find(|fd| fd.number == socket.as_raw_fd()).unwrap();
            let read = shown.info(&CString::new(fd.number.to_string()).unwrap()).unwrap();
            assert_eq!(fd.flags(), read.flags);
            assert_eq!(fd.info.field("lock:").is_some(), at == 0);
            assert_eq!(fd.info.field("mnt_id:").is_some(), at == 0);
        }
        // SAFETY: our own child.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
}
