//! The process itself: identity, directories, limits, credentials, what `prctl` set.

use super::kernel::bytes_of;
use super::settings::{self, Files, Settings};
use crate::asks::{Asked, Asking};
use crate::filters::has_own;
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::remote::{Remote, call, outcome};
use crate::traced;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

const NAME: &str = "process";
/// Version of the section.
pub(crate) const VERSION: u16 = 3;
const LIMITS: u64 = 16;
/// Where in what the calls write they are.
const LIMITS_AT: usize = 64;

/// `prctl` options that are read and set alike: get, set.
const OPTIONS: &[(u64, u64)] = &[(7, 8), (27, 28), (30, 29), (42, 41)];
const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_DUMPABLE: u64 = 4;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_GET_PDEATHSIG: u64 = 2;
const PR_SET_NO_NEW_PRIVS: u64 = 38;

/// State of the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessState {
    /// Pid as the application sees it.
    pub pid: i32,
    /// Parent as the application saw it.
    pub ppid: i32,
    /// Process group and session, in the application's eyes.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Executable.
    #[serde(with = "holo_image::wire::bytes")]
    pub exe: Vec<u8>,
    /// Size of it, to notice another one on another node.
    pub exe_bytes: u64,
    /// Working directory.
    #[serde(with = "holo_image::wire::bytes")]
    pub cwd: Vec<u8>,
    /// `umask`.
    pub umask: u32,
    /// Soft and hard limits by number.
    pub limits: Vec<(u64, u64)>,
    /// Real, effective, saved, file-system ids.
    pub uids: [u32; 4],
    /// Groups likewise.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective capabilities.
    pub capabilities: [u64; 3],
    /// Its bounding set.
    pub bounds: u64,
    /// Ambient capabilities.
    pub ambient: u64,
    /// `personality`.
    pub personality: u64,
    /// Values of the `prctl` options that are read and set alike.
    pub options: Vec<u64>,
    /// Dumpable flag.
    pub dumpable: u64,
    /// Child subreaper flag.
    pub subreaper: u32,
    /// Signal at the parent's death.
    pub pdeathsig: u32,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Words of the control page that libholo filled in: `serve_at`, start and end of libholo.
    pub holo: [u64; 3],
    /// Ways in.
    pub ways: u32,
    /// Address of the control page.
    pub page_address: u64,
    /// Processor features of the node that a program may have chosen its code by.
    pub features: Vec<String>,
    /// Highest descriptor number in use.
    pub fd_max: i32,
    /// Kernel's boot id and clocks (monotonic, boot, real; nanoseconds) at the cut.
    pub boot_id: String,
    /// See `boot_id`.
    pub clocks_ns: [i64; 3],
    /// What it asked the kernel for once.
    pub settings: Settings,
}

/// Reads the clocks of this node, as the process sees them if it is not in a time namespace of its own.
#[must_use]
pub fn clock_ns(clock: libc::clockid_t) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// A line of `/proc/<pid>/status`.
fn status<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn numbers<T: std::str::FromStr>(text: Option<&str>) -> Vec<T> {
    text.unwrap_or("").split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn innermost(text: &str, name: &str) -> i32 {
    numbers::<i32>(status(text, name)).last().copied().unwrap_or(0)
}

/// Features that user code asks for, by their names in `/proc/cpuinfo`; those that begin with one of these.
const FEATURES: [&str; 31] = [
    "pni",
    "ssse3",
    "sse4",
    "popcnt",
    "avx",
    "fma",
    "bmi1",
    "bmi2",
    "movbe",
    "f16c",
    "abm",
    "aes",
    "vaes",
    "pclmulqdq",
    "vpclmulqdq",
    "gfni",
    "sha_ni",
    "rdrand",
    "rdseed",
    "adx",
    "xsave",
    "clwb",
    "clflushopt",
    "amx",
    "fsrm",
    "erms",
    "rtm",
    "cx16",
    "lahf_lm",
    "pku",
    "rdpid",
];

/// What this node's processor has of [`FEATURES`]: found once, which takes longer than all else here.
fn processor_features() -> Vec<String> {
    static FOUND: OnceLock<Vec<String>> = OnceLock::new();
    FOUND.get_or_init(look_for_features).clone()
}

/// It is the same for as long as we live.
fn boot_id() -> String {
    static FOUND: OnceLock<String> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    FOUND.get_or_init(read).clone()
}

fn look_for_features() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags =
        text.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':').map(|(_, flags)| flags));
    flags
        .unwrap_or("")
        .split_whitespace()
        .filter(|flag| FEATURES.iter().any(|feature| flag.starts_with(feature)))
        .map(str::to_owned)
        .collect()
}

/// The manager.
#[derive(Default)]
pub struct Process {
    asked: Option<Asked>,
    settings: Option<Asked>,
    /// Read before the stop.
    files: Option<Files>,
}

/// Where a limit is in what the calls write.
fn limit_at(resource: u64) -> usize {
    LIMITS_AT + resource as usize * 16
}

/// What is not built yet.
fn obstacles(cx: &DumpCx, status_text: &str) -> RmResult<()> {
    let pid = cx.remote.pid;
    if has_own(status_text) {
        return Err(RmError::Unsupported(format!("process {pid} has a seccomp filter of its own")));
    }
    if let Some(tracer) = traced::tracer(status_text) {
        return Err(RmError::Unsupported(format!("process {pid} is traced by {tracer}")));
    }
    Ok(())
}

impl ResourceManager for Process {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.files = Some(Files::of(cx.remote));
        let text = cx.remote.proc_text("status").on("reading", "status")?;
        obstacles(cx, &text)
    }

    fn ask(&mut self, _: &Remote, asking: &mut Asking) {
        self.asked = asking.add(limit_at(LIMITS), |at| {
            let clock_at = |index: u64| at + 16 + index * 16;
            let mut calls: Vec<_> = OPTIONS.iter().map(|(get, _)| call(sysno::prctl, &[*get])).collect();
            calls.extend([
                call(sysno::prctl, &[PR_GET_DUMPABLE]),
                call(sysno::prctl, &[PR_GET_CHILD_SUBREAPER, at]),
                call(sysno::prctl, &[PR_GET_PDEATHSIG, at + 8]),
                call(sysno::personality, &[0xffff_ffff]),
                call(sysno::clock_gettime, &[libc::CLOCK_MONOTONIC as u64, clock_at(0)]),
                call(sysno::clock_gettime, &[libc::CLOCK_BOOTTIME as u64, clock_at(1)]),
                call(sysno::clock_gettime, &[libc::CLOCK_REALTIME as u64, clock_at(2)]),
                call(sysno::getppid, &[]),
                call(sysno::getpgid, &[0]),
                call(sysno::getsid, &[0]),
            ]);
            // By itself: of another user's process only who may change limits can ask.
            let limit = |resource| call(sysno::prlimit64, &[0, resource, 0, at + limit_at(resource) as u64]);
            calls.extend((0..LIMITS).map(limit));
            calls
        });
        self.settings = asking.add(settings::BYTES, settings::calls);
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let remote = cx.remote;
        let text = remote.status().on("reading", "status")?;
        obstacles(cx, text)?;
        let asked = self.asked.take().unwrap_or_default();
        let answers = remote.answers().and_then(|answers| answers.of(&asked));
        let (calls, scratch) = answers.on("asking", "the process")?;
        let asked = self.settings.take().unwrap_or_default();
        let (made, bytes) =
            remote.answers().and_then(|answers| answers.of(&asked)).on("asking", "the process")?;
        let files = self.files.take().unwrap_or_else(|| Files::of(remote));
        let settings = Settings::of(remote.pid, made, bytes, files)?;
        let base = OPTIONS.len();
        let value = |index: usize| outcome(&calls[index]).unwrap_or(0);
        let word = |at: usize| i64::from_le_bytes(scratch[at..at + 8].try_into().unwrap_or([0; 8]));
        let clock = |index: usize| word(16 + index * 16) * 1_000_000_000 + word(24 + index * 16);
        let link = |name: &str| {
            fs::read_link(remote.proc(name))
                .map(|path| path.as_os_str().as_bytes().to_vec())
                .on("reading", format!("/proc/{}/{name}", remote.pid))
        };
        let exe = link("exe")?;
        let cwd = link("cwd")?;
        for made in &calls[calls.len() - LIMITS as usize..] {
            outcome(made).on("asking", "for a limit")?;
        }
        let limits = (0..LIMITS)
            .map(|resource| [0, 8].map(|part| word(limit_at(resource) + part).cast_unsigned()).into())
            .collect();
        let four = |name: &str| {
            let ids = numbers::<u32>(status(text, name));
            <[u32; 4]>::try_from(ids).unwrap_or_default()
        };
        let hex = |name: &str| u64::from_str_radix(status(text, name).unwrap_or("0"), 16).unwrap_or(0);
        let header = remote.page.header();
        // SAFETY: plain words, constant since the process joined.
        let (holo, page_address) =
            unsafe { ([(*header).serve_at, (*header).holo_start, (*header).holo_end], (*header).address) };
        let pid = innermost(text, "NStgid");
        // SAFETY: a plain word, constant since the process joined.
        let kept_parent = match unsafe { (*header).pid as i32 } == pid {
            true => remote.page.control().header.ppid.load(Ordering::Relaxed) as i32,
            false => 0,
        };
        let state = ProcessState {
            pid,
            ppid: if kept_parent != 0 { kept_parent } else { value(base + 7) as i32 },
            pgid: value(base + 8) as i32,
            sid: value(base + 9) as i32,
            exe_bytes: fs::metadata(remote.proc("exe")).map(|meta| meta.size()).unwrap_or(0),
            exe,
            cwd,
            umask: status(text, "Umask").and_then(|mask| u32::from_str_radix(mask, 8).ok()).unwrap_or(0o22),
            limits,
            uids: four("Uid"),
            gids: four("Gid"),
            groups: numbers(status(text, "Groups")),
            capabilities: [hex("CapInh"), hex("CapPrm"), hex("CapEff")],
            bounds: hex("CapBnd"),
            ambient: hex("CapAmb"),
            personality: value(base + 3),
            options: (0..base).map(value).collect(),
            dumpable: value(base),
            subreaper: word(0) as u32,
            pdeathsig: word(8) as u32,
            no_new_privs: status(text, "NoNewPrivs") == Some("1"),
            holo,
            ways: remote.page.control().header.ways.load(Ordering::Relaxed),
            page_address,
            features: processor_features(),
            fd_max: remote.fds()?.last().map_or(2, |fd| fd.number),
            boot_id: boot_id(),
            clocks_ns: [clock(0), clock(1), clock(2)],
            settings,
        };
        cx.put(NAME, VERSION, &state)
    }

    /// A program chose its code by what the processor could do, when it started.
    fn pre_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: ProcessState = cx.section(NAME, VERSION)?;
        let ours = processor_features();
        let missing: Vec<&str> =
            state.features.iter().filter(|flag| !ours.contains(flag)).map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(RmError::Unsupported(format!(
            "this node's processor lacks {}, which the application may use; restore it on one that has them",
            missing.join(", ")
        )))
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: ProcessState = cx.section(NAME, VERSION)?;
        let page = &cx.remote.page;
        let is_there = Path::new(OsStr::from_bytes(&state.cwd)).exists();
        let gone = state.cwd.strip_suffix(b" (deleted)").filter(|_| !is_there).map(Gone::make).transpose();
        let gone = gone.on("making", "a working directory that was removed")?;
        let mut cwd =
            gone.as_ref().map_or_else(|| state.cwd.clone(), |gone| gone.0.as_os_str().as_bytes().to_vec());
        cwd.push(0);
        if cwd.len() > 4096 {
            return Err(RmError::BadSection {
                kind: NAME,
                what: "a working directory longer than a path".into(),
            });
        }
        let cwd_at = page.put(0, &cwd);
        let mut calls = vec![call(sysno::chdir, &[cwd_at]), call(sysno::umask, &[u64::from(state.umask)])];
        if state.personality != 0 {
            calls.push(call(sysno::personality, &[state.personality]));
        }
        cx.remote.run_all(&mut calls).on("restoring", "directory, umask, group")?;
        state.settings.begin(cx.remote, cx.remarks)?;
        // The first process of a page: its parent is not in the clone's namespace.
        if cx.index == 0 {
            page.control().header.ppid.store(state.ppid as u32, Ordering::SeqCst);
        }
        let mut calls: Vec<_> = OPTIONS
            .iter()
            .zip(&state.options)
            .filter(|(_, value)| **value != 0)
            .map(|((_, set), value)| call(sysno::prctl, &[*set, *value]))
            .collect();
        calls.push(call(sysno::prctl, &[PR_SET_CHILD_SUBREAPER, u64::from(state.subreaper)]));
        if state.pdeathsig != 0 && cx.index == 0 {
            let what = "the signal at the parent's death is kept, but the parent is holo's init now";
            cx.remarks.push(what.into());
        }
        if state.no_new_privs {
            calls.push(call(sysno::prctl, &[PR_SET_NO_NEW_PRIVS, 1]));
        }
        cx.remote.run(&mut calls, false).on("restoring", "process options")
    }

    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: ProcessState = cx.section(NAME, VERSION)?;
        let remote = cx.remote;
        for (resource, (soft, hard)) in state.limits.iter().enumerate() {
            let set = |soft: u64, hard: u64| {
                let at = remote.page.put(0, bytes_of(&[soft, hard]));
                remote.call(sysno::prlimit64, &[0, resource as u64, at, 0])
            };
            if set(*soft, *hard).is_ok() {
                continue;
            }
            let at = remote.page.scratch_address(16);
            remote.call(sysno::prlimit64, &[0, resource as u64, 0, at]).on("asking", "for a limit")?;
            let ours = remote.page.take(16, 16);
            let most = u64::from_le_bytes(ours[8..].try_into().unwrap_or([0; 8]));
            set((*soft).min(most), (*hard).min(most)).on("setting", format!("limit {resource}"))?;
            cx.remarks.push(format!("limit {resource} is lower on this node"));
        }
        state.settings.end(remote, cx.remarks)?;
        // A clone in a user namespace of its own has every capability there; the application had none.
        let mut calls = vec![call(sysno::prctl, &[PR_SET_DUMPABLE, state.dumpable & 1])];
        cx.remote.run(&mut calls, false).on("restoring", "the dumpable flag")
    }
}

/// A directory that is there for a moment.
struct Gone(PathBuf);

impl Gone {
    fn make(path: &[u8]) -> io::Result<Self> {
        let path = Path::new(OsStr::from_bytes(path));
        if fs::create_dir(path).is_ok() {
            return Ok(Self(path.to_path_buf()));
        }
        let elsewhere = std::env::temp_dir().join(format!("holo-gone-{}", std::process::id()));
        fs::create_dir(&elsewhere).map(|()| Self(elsewhere))
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A set of capabilities of a process, as it is now; empty where it cannot be read.
pub(crate) fn capability_set(remote: &Remote, name: &str) -> u64 {
    let text = remote.proc_text("status").unwrap_or_default();
    u64::from_str_radix(status(&text, name).unwrap_or("0"), 16).unwrap_or(0)
}
