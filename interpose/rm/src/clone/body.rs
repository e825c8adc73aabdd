//! The processes of a clone, made and waiting, before they have anything of the application's.

use super::late::Late;
use super::{PATIENCE, page_path};
use crate::grow::{Ground, grow, spare_pids};
use crate::install::Channel;
use crate::kinds::laid::Laid;
use crate::kinds::pidfd::pidfd;
use crate::kinds::process::{self, ProcessState, clock_ns};
use crate::kinds::ptys::{self, Terminals, TerminalsState};
use crate::kinds::stops::{self, StopsState};
use crate::kinds::threads::{self, ThreadsState};
use crate::kinds::tree::{self, TreeState};
use crate::manager::{Context, RmError, RmResult, section, section_of};
use crate::page::Page;
use crate::remote::{Remote, call};
use holo_abi::control::{CONTROL_BYTES, Control, Header, slot};
use holo_abi::sysno;
use holo_image::EpochReader;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

/// Ticks of patience while a clone is made: longer than any step.
const TICKS_RESTORE: u32 = 1200;
/// What two nodes' clocks may drift apart while a body waits.
const CLOCK_DRIFT_NS: i64 = 1_000_000_000;
/// The page's and the channel's numbers are this far above the application's descriptors, of which there may be more later.
const FDS_ABOVE: i32 = 20;

/// A clone in the making; killed when dropped.
pub(super) struct Clone {
    pub(super) keeper: Option<Child>,
    pub(super) init: i32,
}

impl Clone {
    /// Adds to an error how the clone ended, if it did.
    pub(super) fn obituary(&mut self, cause: RmError) -> RmError {
        std::thread::sleep(Duration::from_millis(20));
        match self.keeper.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => RmError::Unsupported(format!("{cause}; the clone ended with {status}")),
            _ => cause,
        }
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            if self.init > 0 {
                // SAFETY: our own process, not reaped while its keeper lives.
                unsafe { libc::kill(self.init, libc::SIGKILL) };
            }
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

/// This process's offset of a clock from the host's, nanoseconds.
fn own_offset_ns(clock: &str) -> i64 {
    let text = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == clock).then_some(())?;
            let seconds: i64 = words.next()?.parse().ok()?;
            let ns: i64 = words.next()?.parse().ok()?;
            Some(seconds * 1_000_000_000 + ns)
        })
        .unwrap_or(0)
}

/// Offsets (monotonic, boot) that a clone's clocks need so that they go on from the image's: never backwards,
/// and ahead by the time that it was down. Zero where this node's own clock does.
fn clock_offsets_ns(state: &ProcessState) -> [i64; 2] {
    let down = (clock_ns(libc::CLOCK_REALTIME) - state.clocks_ns[2]).max(0);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    [(libc::CLOCK_MONOTONIC, "monotonic", 0), (libc::CLOCK_BOOTTIME, "boottime", 1)].map(
        |(clock, name, index)| {
            let host = clock_ns(clock) - own_offset_ns(name);
            let wanted = state.clocks_ns[index] + down;
            let same_boot = boot_id.trim() == state.boot_id;
            if same_boot && (wanted - host).abs() < 1_000_000_000 && host >= state.clocks_ns[index] {
                0
            } else {
                wanted - host
            }
        },
    )
}

fn only_child(pid: i32) -> io::Result<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    list.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::Error::other(format!("process {pid} has no child")))
}

/// The restorer, started: the clone, the pid of its first process, and the number of the channel there.
fn spawn(
    restorer: &Path,
    image: &Image,
    page: &Page,
    seed: i32,
    channel: &UnixStream,
    vault: &(UnixStream, UnixStream),
) -> RmResult<(Clone, i32, i32)> {
    let state = &image.states[0];
    let page_fd = image.fd_max() + FDS_ABOVE;
    let channel_fd = page_fd + 1;
    let vault_fd = channel_fd + 1;
    // SAFETY: no memory is passed.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let new_user = uid != 0;
    let split = |ns: i64| [ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000)];
    let [mono, boot] = clock_offsets_ns(state).map(split);
    let slot_offset = std::mem::offset_of!(Control, slots);
    let arguments: [i64; 15] = [
        i64::from(page_fd),
        state.page_address.cast_signed(),
        CONTROL_BYTES as i64,
        0,
        i64::from(seed),
        slot_offset as i64,
        i64::from(new_user),
        mono[0],
        mono[1],
        boot[0],
        boot[1],
        i64::from(uid),
        i64::from(gid),
        i64::from(state.pid),
        i64::from(!image.terminals.ptys.is_empty()),
    ];
    let own = [
        (page.fd().as_raw_fd(), page_fd),
        (channel.as_raw_fd(), channel_fd),
        (vault.0.as_raw_fd(), vault_fd),
        (vault.1.as_raw_fd(), vault_fd + 1),
    ];
    let mut command = Command::new(restorer);
    command
        .args(arguments.map(|argument| argument.to_string()))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: only calls that are safe between fork and exec. The targets may be in use, by each other even: copies go by way of
    // numbers above all of them.
    unsafe {
        command.pre_exec(move || {
            let copies = own.map(|(from, _)| libc::fcntl(from, libc::F_DUPFD, vault_fd + 2));
            for (copy, (_, to)) in copies.into_iter().zip(own) {
                if copy < 0 || libc::dup2(copy, to) < 0 {
                    return Err(io::Error::last_os_error());
                }
                libc::close(copy);
            }
            Ok(())
        });
    }
    let child = command.spawn().on("starting", restorer.display())?;
    let keeper = child.id() as i32;
    let mut made = Clone { keeper: Some(child), init: 0 };
    let since = Instant::now();
    loop {
        if page.wait_state(0, Duration::from_millis(20), |now| now == slot::DONE).is_ok() {
            break;
        }
        let Some(child) = made.keeper.as_mut() else { break };
        let ended = child.try_wait().on("watching", "the restorer")?;
        if ended.is_some() || since.elapsed() > PATIENCE {
            let _ = child.kill();
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            let said = said.trim();
            return Err(RmError::Unsupported(format!(
                "the clone could not be started: {}; `holo doctor` tells what this host lacks",
                if said.is_empty() { "no answer" } else { said }
            )));
        }
    }
    made.init = only_child(keeper).on("finding", "the clone's init")?;
    let pid = only_child(made.init).on("finding", "the clone")?;
    Ok((made, pid, channel_fd))
}

fn prepare_page(address: u64, path: &Path) -> io::Result<Page> {
    let page = Page::create_at(path)?;
    let header: *mut Header = page.header();
    // SAFETY: nobody else has the page yet.
    unsafe {
        (*header).address = address;
        (*header).ticks_max = TICKS_RESTORE;
        // See `spawn`.
        (*header).lone = AtomicU32::new(u32::from(libc::geteuid() != 0));
    }
    Ok(page)
}

/// What of an image says who is there.
pub(super) struct Image {
    pub(super) tree: TreeState,
    pub(super) states: Vec<ProcessState>,
    pub(super) threads: Vec<ThreadsState>,
    pub(super) stops: StopsState,
    pub(super) terminals: TerminalsState,
}

impl Image {
    pub(super) fn read(image: &EpochReader) -> RmResult<Self> {
        let tree: TreeState = section(image, tree::NAME, tree::VERSION)?;
        tree.check()?;
        let (mut states, mut threads) = (Vec::new(), Vec::new());
        for (index, branch) in tree.processes.iter().enumerate() {
            let state: ProcessState = section_of(image, "process", index, process::VERSION)?;
            if state.pid != branch.pid {
                let what = format!("process {} has the state of {}", branch.pid, state.pid);
                return Err(RmError::BadSection { kind: tree::NAME, what });
            }
            check(&state)?;
            states.push(state);
            threads.push(section_of(image, "threads", index, threads::VERSION)?);
        }
        let stops: StopsState = section(image, stops::NAME, stops::VERSION)?;
        stops.check(&states.iter().map(|state| state.pid).collect::<Vec<_>>())?;
        let terminals: TerminalsState = section(image, ptys::NAME, ptys::VERSION)?;
        terminals.check(states.len())?;
        Ok(Self { tree, states, threads, stops, terminals })
    }

    pub(super) fn pids(&self) -> Vec<i32> {
        self.states.iter().map(|state| state.pid).collect()
    }

    /// For each process the place of its parent, if that is of the application.
    pub(super) fn parents(&self) -> Vec<Option<usize>> {
        let pids = self.pids();
        let parent = |(index, state): (usize, &ProcessState)| {
            let place = pids.iter().position(|pid| *pid == state.ppid);
            // The first process's parent is shown to it, and may by chance have the number of another.
            place.filter(|place| index > 0 && *place != index)
        };
        self.states.iter().enumerate().map(parent).collect()
    }

    /// Highest descriptor number of any process.
    pub(super) fn fd_max(&self) -> i32 {
        self.states.iter().map(|state| state.fd_max).max().unwrap_or(0).max(2)
    }

    fn tids(&self) -> BTreeSet<i32> {
        self.threads.iter().flat_map(|threads| &threads.threads).map(|thread| thread.tid).collect()
    }

    fn make_pages(&self, path: &Path) -> RmResult<Vec<Arc<Page>>> {
        let mut pages = Vec::new();
        for number in 0..self.tree.pages.len() {
            let user = self.tree.processes.iter().position(|branch| branch.page as usize == number);
            let address = user.map_or(0, |index| self.states[index].page_address);
            let page = prepare_page(address, &page_path(path, number));
            pages.push(Arc::new(page.on("making", "a control page")?));
        }
        Ok(pages)
    }
}

fn check(state: &ProcessState) -> RmResult<()> {
    // SAFETY: no memory is passed.
    let uid = unsafe { libc::geteuid() };
    if uid != 0 && state.uids.iter().any(|id| *id != uid) {
        return Err(RmError::Unsupported(format!(
            "the application ran as user {}, the agent runs as {uid}",
            state.uids[0]
        )));
    }
    Ok(())
}

/// Nothing of the restorer's surroundings goes into the clone: its processes are forked from this one.
fn empty(seed: &Remote, channel_fd: i32) -> RmResult<()> {
    let all = seed.page.put(0, &[0xff; 8]);
    let mut calls = [
        call(sysno::rt_sigprocmask, &[2, all, 0, 8]),
        call(sysno::close_range, &[0, (channel_fd - 2) as u64, 0]),
        call(sysno::close_range, &[(channel_fd + 1) as u64, u64::from(u32::MAX), 0]),
    ];
    seed.run_all(&mut calls).on("emptying", "the clone")
}

/// Processes that serve calls and have nothing yet but their ids, groups, sessions and terminals. Dropping it kills them.
pub(super) struct Body {
    /// What it was made from, or the epoch that it is as of since.
    pub(super) told: Image,
    pub(super) pages: Vec<Arc<Page>>,
    pub(super) clone: Clone,
    pub(super) remotes: Vec<Remote>,
    /// The way to the processes: our end, and the number of theirs.
    pub(super) ours: UnixStream,
    pub(super) channel_fd: i32,
    /// What is put into the first end waits at the other one; the clone's init has both, too.
    vault: Option<(UnixStream, UnixStream)>,
    pub(super) terminals: Terminals,
    pub(super) page_path: PathBuf,
    /// Memory of each process.
    pub(super) laid: Vec<Option<Laid>>,
    /// What could not be kept.
    pub(super) remarks: Vec<String>,
    /// What its clocks are ahead of the host's, monotonic and boot.
    offsets_ns: [i64; 2],
}

impl Body {
    /// Makes the processes; files of their control pages are at `page_path`.
    pub(super) fn make(told: Image, restorer: &Path, page_path: &Path) -> RmResult<Self> {
        let pages = told.make_pages(page_path)?;
        let page = &pages[told.tree.processes[0].page as usize];
        let first = page.reserve().filter(|index| *index == 0);
        let first = first.ok_or_else(|| RmError::Unsupported("a new page is in use".into()))?;
        // SAFETY: reserved by us.
        unsafe { (*page.slot(first)).leave = 1 };
        let (ours, theirs) = UnixStream::pair().on("making", "a channel")?;
        let vault = UnixStream::pair().on("making", "a vault")?;
        let [seed_pid, spare] = spare_pids(&told.states, &told.tree, &told.tids());
        let offsets_ns = clock_offsets_ns(&told.states[0]);
        let (mut clone, seed, channel_fd) = spawn(restorer, &told, page, seed_pid, &theirs, &vault)?;
        drop(theirs);
        let seed = Remote::new(Arc::clone(page), seed, first).on("opening", "the clone")?;
        empty(&seed, channel_fd)?;
        let terminals = Terminals::make(told.terminals.clone(), clone.init)?;
        let ground = Ground {
            init: clone.init,
            seed: &seed,
            spare,
            tree: &told.tree,
            states: &told.states,
            pages: &pages,
            terminals: &terminals,
            channel: Channel { ours: &ours, theirs: channel_fd },
        };
        let remotes = grow(&ground).map_err(|cause| clone.obituary(cause))?;
        let laid = remotes.iter().map(|_| None).collect();
        let page_path = page_path.to_owned();
        let remarks = Vec::new();
        Ok(Self {
            told,
            pages,
            clone,
            remotes,
            ours,
            channel_fd,
            vault: Some(vault),
            terminals,
            page_path,
            laid,
            remarks,
            offsets_ns,
        })
    }

    /// What takes memory of `image` that is to come while the clone runs; once.
    pub(super) fn late(&mut self, image: &Arc<EpochReader>) -> RmResult<Late> {
        let init = pidfd(self.clone.init, 0).on("opening", "the clone's init")?;
        let vault = self.vault.take().ok_or_else(|| RmError::Unsupported("the vault is in use".into()))?;
        Ok(Late::new(image, init, vault))
    }

    /// Number of the vault in the clone's init.
    pub(super) fn vault_fd(&self) -> i32 {
        self.channel_fd + 1
    }

    /// Why it cannot be the body of `told`, which is a later epoch.
    pub(super) fn differs(&self, told: &Image) -> Option<&'static str> {
        let tree = |image: &Image| TreeState { last_pid: 0, ..image.tree.clone() };
        let ids = |state: &ProcessState| {
            (state.pid, state.ppid, state.pgid, state.sid, state.page_address, state.subreaper)
        };
        if tree(&self.told) != tree(told) || !self.told.states.iter().map(ids).eq(told.states.iter().map(ids))
        {
            return Some("processes came or went");
        }
        // The page's number is that before the channel's.
        if told.fd_max() >= self.channel_fd - 1 {
            return Some("descriptors are where the clone's own are");
        }
        if !told.terminals.ptys.is_empty() || !self.told.terminals.ptys.is_empty() {
            return Some("it has pseudo-terminals");
        }
        let clocks = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].into_iter().zip(["monotonic", "boottime"]);
        let state = &told.states[0];
        for (index, ((clock, name), now)) in clocks.zip(clock_offsets_ns(state)).enumerate() {
            let theirs = clock_ns(clock) - own_offset_ns(name) + self.offsets_ns[index];
            if theirs < state.clocks_ns[index] || (now - self.offsets_ns[index]).abs() > CLOCK_DRIFT_NS {
                return Some("a clock was set");
            }
        }
        None
    }
}
