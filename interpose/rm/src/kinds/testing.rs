//! Helpers of the kinds' tests: another process that holds descriptors, and restores without a clone.

#![allow(clippy::unwrap_used)]

use super::descriptors::{self, State};
use super::known_options::KnownOptions;
use super::open::{Making, Place};
use super::shared::{Contents, SharedObjects};
use super::watched::{self, Names};
use crate::fds::Look;
use crate::manager::{Context, DumpCx, RmResult, Sections, Staged, SwitchCx};
use crate::page::Page;
use crate::remote::Remote;
use crate::tree::Process;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

/// A python process that ran `script` and now waits; it ends when this is dropped.
pub(crate) struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Holder {
    pub(crate) fn new(script: &str) -> Self {
        let body = format!(
            "import os,sys,socket\nos.closerange(3,1000)\nimport socket,fcntl,struct,select,ctypes,tempfile\nlibc=ctypes.CDLL(None,use_errno=True)\n\
             {script}\nsys.stdout.write('r')\nsys.stdout.flush()\nsys.stdin.read()\n"
        );
        let mut command = Command::new("python3");
        command.args(["-c", &body]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = [0];
        if child.stdout.as_mut().unwrap().read(&mut ready).unwrap() == 0 {
            let mut text = String::new();
            child.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
            panic!("{text}");
        }
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn captured(&self) -> Captured {
        capture(self.pid()).unwrap()
    }

    /// Ends it, as a crash would.
    pub(crate) fn kill(mut self) {
        self.stdin = None;
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A capture with its contents.
pub(crate) struct Captured {
    pub(crate) state: State,
    pub(crate) remarks: Vec<String>,
    staged: Vec<Staged>,
}

pub(crate) fn capture(pid: i32) -> RmResult<Captured> {
    let page = Arc::new(Page::create().on("making", "page")?);
    let remote = Remote::new(page, pid, 0).on("opening", pid)?;
    let (mut sections, mut remarks, mut staged) = (Sections::default(), Vec::new(), Vec::new());
    let mut names = Names::default();
    let look = Look::at(&remote, None)?;
    watched::search(&remote, &look.watching, &mut names);
    let processes = [Process { remote, pid, slots: vec![0], stopped: false }];
    let mut cx = DumpCx {
        remote: &processes[0].remote,
        slots: &[0],
        processes: &processes,
        index: 0,
        sections: &mut sections,
        remarks: &mut remarks,
        unsettled: &mut Vec::new(),
        staged: &mut staged,
        staging_dir: &std::env::temp_dir(),
        writer: None,
        files_changed: 0,
    };
    // Holders have no server of calls, and no descriptor with the flag.
    let ask = |_: &Remote, numbers: &[i32]| Ok(vec![false; numbers.len()]);
    let (shared, mut options) = (SharedObjects::new(), KnownOptions::default());
    let state = descriptors::capture(&mut cx, &shared, &names, &mut options, &ask)?;
    Ok(Captured { state, remarks, staged })
}

struct Copies<'a>(&'a [Staged]);

impl Contents for Copies<'_> {
    fn fill(&self, name: &str, mut file: &File) -> RmResult<()> {
        use std::os::unix::fs::FileExt;
        let found = self.0.iter().find(|staged| staged.name == name).unwrap();
        let mut bytes = vec![0; found.copy.metadata().unwrap().len() as usize];
        found.copy.read_exact_at(&mut bytes, 0).unwrap();
        file.set_len(0).unwrap();
        file.write_all(&bytes).on("filling", name)
    }
}

/// Descriptions made again in this process.
pub(crate) struct Remade {
    pub(crate) made: BTreeMap<u32, OwnedFd>,
    pub(crate) replaced: BTreeMap<Place, OwnedFd>,
    pub(crate) remarks: Vec<String>,
    /// Where output went.
    pub(crate) output: PathBuf,
    numbers: BTreeMap<i32, u32>,
}

impl Captured {
    pub(crate) fn remake(&self) -> Remade {
        let shared = SharedObjects::new();
        let numbers = self.state.numbers_of();
        super::place::check(&self.state, 1).unwrap();
        let pids = [(self.state.pids[0], self.state.pids[0])];
        let output = temporary("output");
        let mut remarks = Vec::new();
        let mut making = Making {
            common: &self.state.common,
            made: BTreeMap::new(),
            replaced: BTreeMap::new(),
            reach: BTreeMap::new(),
            numbers: &numbers,
            contents: &Copies(&self.staged),
            shared: &shared,
            terminals: &crate::kinds::ptys::Terminals::default(),
            stdio: &[],
            output: &output,
            remarks: &mut remarks,
            clone: None,
            way: None,
            tree: &[],
            pids: &pids,
        };
        descriptors::recreate(&self.state, &mut making).unwrap();
        let (made, replaced) = (making.made, making.replaced);
        for (index, timer) in &self.state.timers {
            timer.arm(&made[index], std::process::id() as i32).unwrap();
        }
        let numbers = self.state.numbers.iter().map(|one| (one.number, one.description)).collect();
        Remade { made, replaced, remarks, output, numbers }
    }
}

impl Drop for Remade {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.output);
    }
}

impl Remade {
    /// What stands for a number of the process.
    pub(crate) fn at(&self, number: i32) -> &OwnedFd {
        self.replaced.get(&(0, number)).unwrap_or_else(|| &self.made[&self.numbers[&number]])
    }

    /// A duplicate as a file, for std's reading and writing.
    pub(crate) fn file(&self, number: i32) -> File {
        File::from(self.at(number).try_clone().unwrap())
    }

    /// Captures what was made again, as descriptors of yet another process.
    pub(crate) fn recapture(&self) -> Captured {
        let Self { numbers, .. } = self;
        // SAFETY: the child only sorts its descriptors and waits to be killed; calls are signal-safe.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: as above.
            unsafe {
                let high: Vec<(i32, i32)> = numbers
                    .keys()
                    .map(|number| (*number, libc::fcntl(self.at(*number).as_raw_fd(), libc::F_DUPFD, 1000)))
                    .collect();
                libc::syscall(libc::SYS_close_range, 0, 999, 0);
                for (number, from) in high {
                    libc::dup2(from, number);
                    libc::close(from);
                }
                libc::syscall(libc::SYS_close_range, 1000, u32::MAX, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) };
        let captured = capture(pid);
        // SAFETY: our own child.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, &raw mut status, 0);
        }
        captured.unwrap()
    }
}

/// A name in the directory for temporary files, for this process only.
pub(crate) fn temporary(what: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("holo-rm-{}-{next}-{what}", std::process::id()))
}

/// The number that `name` was given in a script that wrote `name=number` lines to `path`.
pub(crate) fn numbers(path: &Path) -> BTreeMap<String, i32> {
    let text = std::fs::read_to_string(path).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, number)| (name.to_owned(), number.parse().unwrap())).collect()
}

/// Reads what is there, without waiting.
pub(crate) fn read_now(fd: &impl AsRawFd, most: usize) -> std::io::Result<Vec<u8>> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    if unsafe { libc::poll(&raw mut entry, 1, 0) } == 0 {
        return Err(std::io::ErrorKind::WouldBlock.into());
    }
    let mut buffer = vec![0; most];
    // SAFETY: room of the stated size.
    let got = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), most) };
    buffer.truncate(super::kernel::checked(got)? as usize);
    Ok(buffer)
}

/// A process that serves calls and has nothing but the control page and a channel: what the restorer makes.
pub(crate) struct TestClone {
    pub(crate) remote: Remote,
    channel: UnixStream,
    image: holo_image::EpochReader,
    dir: PathBuf,
}

/// The clone's end of the channel.
const CHANNEL: i32 = 900;

impl TestClone {
    pub(crate) fn new() -> Self {
        let page = Arc::new(Page::create().unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let index = page.reserve().unwrap();
        // SAFETY: nobody else has the page; the child has it at the same address.
        unsafe {
            (*page.header()).address = page.header() as u64;
            (*page.header()).ticks_max = 1000;
            (*page.slot(index)).leave = 1;
        }
        page.state(index).store(holo_abi::control::slot::DONE, std::sync::atomic::Ordering::SeqCst);
        // SAFETY: the child makes raw calls only, and serves until it is killed.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above.
            unsafe {
                libc::dup2(theirs.as_raw_fd(), CHANNEL);
                libc::syscall(libc::SYS_close_range, 0, CHANNEL - 1, 0);
                libc::syscall(libc::SYS_close_range, CHANNEL + 1, u32::MAX, 0);
                holo_sys::serve::holo_serve(page.slot(index), page.header());
                libc::_exit(0);
            }
        }
        let dir = temporary("store");
        let app = holo_image::Store::open(&dir).unwrap().app("test").unwrap();
        let epoch = app.begin(1).unwrap().seal(holo_image::EpochMeta::default()).unwrap().meta.epoch;
        let image = app.open_epoch(epoch).unwrap();
        Self { remote: Remote::new(page, pid, index).unwrap(), channel: ours, image, dir }
    }

    /// Places what was made again, and captures it.
    pub(crate) fn place(&self, captured: &Captured, remade: &Remade) -> Captured {
        let (blobs, mut remarks) = (BTreeMap::new(), Vec::new());
        let cx = SwitchCx {
            remote: &self.remote,
            slots: &mut Vec::new(),
            laid: &mut None,
            late: None,
            tree: std::slice::from_ref(&self.remote),
            index: 0,
            image: &self.image,
            blobs: &blobs,
            remarks: &mut remarks,
            channel: &self.channel,
            channel_fd: CHANNEL,
            terminals: &crate::kinds::ptys::Terminals::default(),
            stdio: &[],
            output: &remade.output,
            monotonic_offset_ns: 0,
        };
        super::place::place(&captured.state, &remade.made, &remade.replaced, &cx).unwrap();
        super::place::lock(&captured.state, &cx).unwrap();
        self.remote.call(holo_abi::sysno::close, &[CHANNEL as u64]).unwrap();
        capture(self.remote.pid).unwrap()
    }
}

impl Drop for TestClone {
    fn drop(&mut self) {
        // SAFETY: our own child.
        unsafe {
            libc::kill(self.remote.pid, libc::SIGKILL);
            libc::waitpid(self.remote.pid, std::ptr::null_mut(), 0);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
