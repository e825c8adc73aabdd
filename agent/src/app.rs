//! An application on this node: where it runs, what state it is in, how it is driven.
//!
//! ```text
//! announced --join--> running <--> unprotected (reasons)
//!     running --exit, stop, kill--> stopped --restore--> running
//!     standby --activate--> running
//! ```
//!
//! Locks, in this order: `work` (an epoch, a restore, a stop: long), `cut` (threads are parked), `inner`
//! (short, never across a call that may wait).

use crate::config::Config;
use crate::dump;
use crate::record::{Instance, Record, start_time};
use holo_api::local::{AppInfo, AppState, EpochInfo, ErrorKind};
use holo_image::{AppStore, EpochMeta, Retention};
use holo_rm::manager::ResourceManager;
use holo_rm::page::Page;
use parking_lot::{Mutex, MutexGuard};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A request that failed: class and text, as the command line gets it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Class.
    pub kind: ErrorKind,
    /// What failed, on which object, why, what to do.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Where the agent keeps things.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The state directory.
    pub state: PathBuf,
    /// Records.
    pub records: PathBuf,
    /// Control pages.
    pub pages: PathBuf,
    /// Call-site tables.
    pub sites: PathBuf,
    /// Copies made in the stop.
    pub staging: PathBuf,
    /// What restores replaced, by application.
    pub replaced: PathBuf,
    /// Output of restored applications whose terminal is gone.
    pub output: PathBuf,
}

/// What changes often.
struct Inner {
    record: Record,
    page: Option<Arc<Page>>,
    reasons: Vec<String>,
    standby_of: Option<String>,
    /// Raised whenever an instance comes or goes, so that old watchers end.
    incarnation: u64,
    /// How the last instance ended, for who is attached.
    exit: Option<i32>,
}

/// The managers keep what they know between epochs.
pub(crate) struct Work {
    pub(crate) managers: Vec<Box<dyn ResourceManager>>,
}

/// What an instance was told to be called back with.
pub type Announce = Arc<dyn Fn(&str, u64) + Send + Sync>;

/// An application.
pub struct App {
    /// Name.
    pub name: String,
    /// Its epochs.
    pub store: AppStore,
    /// Places.
    pub paths: Paths,
    /// The agent's settings.
    pub config: Arc<Config>,
    /// Name of this node.
    pub node: String,
    inner: Mutex<Inner>,
    work: Mutex<Work>,
    /// Held while threads are parked.
    pub(crate) cut: Mutex<()>,
    fence: Mutex<Option<Fence>>,
    announce: Announce,
}

/// Threads parked until told otherwise.
struct Fence {
    stop: std::sync::mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl App {
    /// An application with its record.
    pub fn new(
        record: Record,
        store: AppStore,
        paths: Paths,
        config: Arc<Config>,
        node: String,
        announce: Announce,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: record.name.clone(),
            store,
            paths,
            config,
            node,
            work: Mutex::new(Work { managers: Vec::new() }),
            inner: Mutex::new(Inner {
                record,
                page: None,
                reasons: Vec::new(),
                standby_of: None,
                incarnation: 0,
                exit: None,
            }),
            cut: Mutex::new(()),
            fence: Mutex::new(None),
            announce,
        })
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> Record {
        self.inner.lock().record.clone()
    }

    /// Changes and saves the record.
    pub fn change_record(&self, change: impl FnOnce(&mut Record)) {
        let mut inner = self.inner.lock();
        change(&mut inner.record);
        if let Err(cause) = inner.record.save(&self.paths.records) {
            eprintln!("holod: {}: the record is not saved: {cause}", self.name);
        }
    }

    /// The living instance and its page.
    #[must_use]
    pub fn instance(&self) -> Option<(Instance, Arc<Page>)> {
        let inner = self.inner.lock();
        let instance = inner.record.instance.clone()?;
        let page = inner.page.clone()?;
        drop(inner);
        (start_time(instance.real_pid) == Some(instance.started)).then_some((instance, page))
    }

    /// Notes why it is unprotected; empty: it is protected.
    pub fn set_reasons(&self, reasons: Vec<String>) {
        let mut inner = self.inner.lock();
        if inner.reasons != reasons {
            for reason in &reasons {
                eprintln!("holod: {}: unprotected: {reason}", self.name);
            }
            if reasons.is_empty() {
                eprintln!("holod: {}: protected", self.name);
            }
            inner.reasons = reasons;
        }
    }

    /// Notes that this node keeps a clone of it for `owner`; none: it does not.
    pub fn set_standby_of(&self, owner: Option<String>) {
        self.inner.lock().standby_of = owner;
    }

    pub(crate) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock()
    }

    /// A process is this application from now on.
    pub fn adopt(self: &Arc<Self>, instance: Instance, page: Arc<Page>, keeper: Option<Child>) {
        let mut inner = self.inner.lock();
        inner.incarnation += 1;
        let incarnation = inner.incarnation;
        let pid = instance.real_pid;
        inner.record.instance = Some(instance);
        inner.page = Some(page);
        inner.reasons.clear();
        inner.standby_of = None;
        inner.exit = None;
        if let Err(cause) = inner.record.save(&self.paths.records) {
            eprintln!("holod: {}: the record is not saved: {cause}", self.name);
        }
        drop(inner);
        let app = Arc::clone(self);
        thread::spawn(move || app.watch(pid, incarnation, keeper));
    }

    /// Takes epochs by the period until the process ends.
    fn watch(&self, pid: i32, incarnation: u64, keeper: Option<Child>) {
        let every = Duration::from_millis(self.record().options.every_ms);
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
        // SAFETY: just made.
        let pidfd = (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) });
        let mut due = Instant::now() + every;
        loop {
            let wait = if every.is_zero() {
                Duration::from_secs(3600)
            } else {
                due.saturating_duration_since(Instant::now())
            };
            if pidfd.as_ref().is_none_or(|pidfd| ended(pidfd, wait)) {
                break;
            }
            if self.inner.lock().incarnation != incarnation {
                return;
            }
            if !every.is_zero() && Instant::now() >= due {
                if self.fence.lock().is_none() {
                    // What went wrong is in the reasons.
                    let _ = dump::take(self);
                }
                due = (due + every).max(Instant::now());
            }
        }
        let status = keeper
            .and_then(|mut keeper| keeper.wait().ok())
            .map(std::os::unix::process::ExitStatusExt::into_raw);
        let mut inner = self.inner.lock();
        if inner.incarnation == incarnation {
            inner.exit = Some(status.unwrap_or(0));
            if let Some(instance) = inner.record.instance.take() {
                let _ = std::fs::remove_file(&instance.page);
            }
            inner.page = None;
            inner.reasons.clear();
            let _ = inner.record.save(&self.paths.records);
        }
    }

    /// `wait` status of the last instance, once it has ended.
    #[must_use]
    pub fn exit_status(&self) -> Option<i32> {
        self.inner.lock().exit
    }

    /// Takes an epoch now.
    ///
    /// # Errors
    /// Why not.
    pub fn checkpoint(&self) -> Result<EpochInfo, Failure> {
        dump::take(self).map(|meta| epoch_info(&meta))
    }

    /// An epoch is sealed here: tells the cluster, drops old ones.
    pub(crate) fn sealed(&self, epoch: u64) {
        (self.announce)(&self.name, epoch);
        let options = self.record().options;
        let count = if options.keep_epochs == 0 { self.config.keep_epochs } else { options.keep_epochs };
        let retention =
            Retention { keep_count: count as usize, keep_age: Duration::from_secs(options.keep_secs) };
        if let Err(cause) = self.store.retain(&retention) {
            eprintln!("holod: {}: old epochs are not dropped: {cause}", self.name);
        }
    }

    /// Kills every process of the instance and waits until it is gone.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop(&self) -> Result<(), Failure> {
        let _work = self.work();
        self.kill()
    }

    pub(crate) fn kill(&self) -> Result<(), Failure> {
        self.lift_fence();
        let Some((instance, _)) = self.instance() else { return Ok(()) };
        // SAFETY: the start time was just compared.
        unsafe { libc::kill(instance.real_pid, libc::SIGKILL) };
        let until = Instant::now() + Duration::from_secs(10);
        while start_time(instance.real_pid) == Some(instance.started) {
            if Instant::now() > until {
                let message = format!("{}: process {} does not end", self.name, instance.real_pid);
                return Err(Failure::new(ErrorKind::Failed, message));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Parks the instance until [`Self::lift_fence`]; kills it if it cannot be parked within `patience`.
    pub fn put_fence(self: &Arc<Self>, patience: Duration) {
        let mut fence = self.fence.lock();
        if fence.is_some() {
            return;
        }
        let Some((instance, page)) = self.instance() else { return };
        let (stop, stopped) = std::sync::mpsc::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let app = Arc::clone(self);
        let pid = instance.real_pid;
        let thread = thread::spawn(move || {
            let Some(_cut) = app.cut.try_lock_for(patience) else {
                let _ = tell.send(false);
                return;
            };
            match holo_rm::barrier::park(&page, pid, patience) {
                Err(cause) => {
                    eprintln!("holod: {}: cannot be fenced: {cause}", app.name);
                    let _ = tell.send(false);
                }
                Ok(parked) => {
                    let _ = tell.send(true);
                    while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                        stopped.recv_timeout(Duration::from_millis(50))
                    {
                        page.keep_alive();
                    }
                    if let Err(cause) = parked.release() {
                        eprintln!("holod: {}: {cause}", app.name);
                    }
                }
            }
        });
        if told.recv_timeout(patience * 2).unwrap_or(false) {
            *fence = Some(Fence { stop, thread });
        } else {
            eprintln!(
                "holod: {}: killed, since it could not be parked and another node may run it soon",
                self.name
            );
            // SAFETY: our application's process.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    /// Lets a parked instance run again.
    pub fn lift_fence(&self) {
        let fence = self.fence.lock().take();
        if let Some(Fence { stop, thread }) = fence {
            drop(stop);
            let _ = thread.join();
        }
    }

    /// A row of `holo ps`.
    #[must_use]
    pub fn info(&self) -> AppInfo {
        let alive = self.instance();
        let last = self.store.last();
        let inner = self.inner.lock();
        let state = match (&alive, &inner.standby_of) {
            (Some(_), _) if !inner.reasons.is_empty() => AppState::Unprotected,
            (Some(_), _) => AppState::Running,
            (None, Some(_)) => AppState::Standby,
            (None, None) => AppState::Stopped,
        };
        let node = match (&alive, &inner.standby_of) {
            (None, Some(owner)) => owner.clone(),
            _ => self.node.clone(),
        };
        AppInfo {
            name: self.name.clone(),
            state,
            reasons: inner.reasons.clone(),
            node,
            epoch: last.as_ref().map_or(0, |meta| meta.epoch),
            lag_ms: last.as_ref().map_or(0, |meta| now_ns().saturating_sub(meta.at_unix_ns) / 1_000_000),
            real_pids: alive.iter().map(|(instance, _)| instance.real_pid as u32).collect(),
            cluster_pids: alive.iter().map(|(instance, _)| instance.cluster_pid).collect(),
            stop_us: last.as_ref().map_or(0, |meta| meta.stop_us),
            command: inner
                .record
                .argv
                .iter()
                .map(|arg| String::from_utf8_lossy(arg))
                .collect::<Vec<_>>()
                .join(" "),
            standby: inner.record.options.standby.clone(),
        }
    }
}

/// Waits for a process to end, at most `wait`.
fn ended(pidfd: &OwnedFd, wait: Duration) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let ms = wait.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: one descriptor.
    let ready = unsafe { libc::poll(&raw mut poll, 1, if ms == 0 && !wait.is_zero() { 1 } else { ms }) };
    ready > 0 && poll.revents != 0
}

/// Unix time, nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// An epoch as the command line shows it.
#[must_use]
pub fn epoch_info(meta: &EpochMeta) -> EpochInfo {
    let at = jiff::Timestamp::from_nanosecond(i128::from(meta.at_unix_ns)).map(|at| at.to_string());
    EpochInfo {
        epoch: meta.epoch,
        at: at.unwrap_or_default(),
        sealed: true,
        sealed_where: meta.sealed_where.clone(),
        stop_us: meta.stop_us,
        dump_us: meta.dump_us,
        processes: meta.processes,
        threads: meta.threads,
        pages_dirty: meta.pages_dirty,
        bytes_raw: meta.bytes_raw,
        bytes_sent: meta.bytes_sent,
        files_changed: meta.files_changed,
        engine: meta.engine.clone(),
        stop_parts_us: meta.stop_parts_us.clone(),
        bytes_by_kind: meta.bytes_by_kind.clone(),
    }
}
