//! An application on this node: where it runs, what state it is in, how it is driven.
//!
//! ```text
//! announced --join--> running <--> unprotected (reasons)
//! announced, out of a preload's reach: unprotected until its process ends
//!     running --exit, stop, kill--> stopped --restore--> running
//!     standby --activate--> running
//! ```
//!
//! Locks, in this order: `work` (an epoch, a restore, a stop: long), `cut` (threads are parked), `inner`
//! (short, never across a call that may wait).

pub(crate) mod events;
mod life;
mod timing;

use crate::changes::Table;
use crate::config::Config;
use crate::dump;
use crate::fence::Fence;
use crate::files::{NamesCell, Others};
use crate::graph::Costs;
use crate::guard::Guard;
use crate::hot::Hot;
use crate::late::Coming;
use crate::members::Members;
use crate::pace::Pace;
use crate::progress::{self, Taking};
use crate::record::{Instance, Record};
use holo_api::local::{AppInfo, AppState, EpochInfo, ErrorKind};
use holo_image::{AppStore, EpochMeta, Retention};
use holo_rm::page::Page;
use holo_rm::registry::Registry;
use holo_rm::tree::start_time;
use parking_lot::{Mutex, MutexGuard};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Tables of file changes, by application.
    pub changes: PathBuf,
    /// Copies made in the stop.
    pub staging: PathBuf,
    /// What restores replaced, by application.
    pub replaced: PathBuf,
    /// When applications were here last.
    pub left: PathBuf,
    /// Output of restored applications whose terminal is gone.
    pub output: PathBuf,
}

/// Before the end of an instance is told to other nodes.
const END_PAUSE: Duration = Duration::from_millis(200);

/// What is kept of what was put aside: nobody may notice for some days, and it takes space.
const ASIDE: Retention = Retention { keep_count: 32, keep_age: Duration::from_secs(7 * 24 * 3600) };

/// What changes often.
struct Inner {
    record: Record,
    page: Option<Arc<Page>>,
    reasons: Vec<String>,
    /// The process that was announced and cannot join, and when it began: nothing is done about it but to show it.
    out_of_reach: Option<(i32, u64)>,
    /// Files that are to make epochs due and cannot, and why.
    unwatched: Vec<String>,
    standby_of: Option<String>,
    /// Why the instance here is parked, if it is for longer than an epoch.
    parked: Option<String>,
    /// Incarnation that was killed by order: its end is no news.
    killed: u64,
    /// Raised whenever an instance comes or goes, so that old watchers end.
    incarnation: u64,
    /// How the last instance ended, for who is attached.
    exit: Option<i32>,
}

/// The managers keep what they know between epochs.
pub(crate) struct Work {
    pub(crate) registry: Registry,
}

/// Who is asked before an application is launched, and told what becomes of it.
pub trait Hooks: Send + Sync {
    /// It is about to run here for the first time, with these stand-bys.
    ///
    /// # Errors
    /// Why it must not.
    fn launch(&self, name: &str, standby: &[String]) -> Result<(), Failure>;
    /// An epoch of it was sealed here.
    fn sealed(&self, name: &str, epoch: u64);
    /// Its instance ended, by itself or by a signal that is not ours.
    fn ended(&self, name: &str);
}

/// The table of file changes of the instance that runs now.
pub(crate) type ChangesCell = Arc<Mutex<Option<Arc<Table>>>>;

/// Set once, when there is somebody.
pub type HooksCell = Arc<OnceLock<Arc<dyn Hooks>>>;

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
    /// Its processes on this node.
    pub(crate) members: Members,
    work: Mutex<Work>,
    /// The table of file changes of the instance.
    pub(crate) changes: ChangesCell,
    /// Its files outside the roots.
    pub(crate) names: Arc<NamesCell>,
    /// What others did to its files here.
    pub(crate) others: Arc<Others>,
    /// What its parts cost in the last epoch.
    pub(crate) costs: Mutex<Costs>,
    /// Its clone here, where this node stands by for it.
    pub(crate) hot: Arc<Hot>,
    /// Memory of the instance that is still to come.
    pub(crate) coming: Coming,
    /// Held while threads are parked.
    pub(crate) cut: Mutex<()>,
    pub(crate) fence: Mutex<Option<Fence>>,
    pub(crate) guard: Arc<Guard>,
    hooks: HooksCell,
    saving: Mutex<()>,
    /// The record was saved and may not be durable.
    unsynced: AtomicBool,
    /// Is an epoch being taken?
    pub(crate) taking: Taking,
    /// What its epochs cost.
    pace: Mutex<Pace>,
    /// Readable when whoever waits for the next epoch is to look again; none: there was no descriptor left.
    wake: Option<OwnedFd>,
}

impl App {
    /// An application with its record.
    pub fn new(
        record: Record,
        store: AppStore,
        paths: Paths,
        config: Arc<Config>,
        node: String,
        guard: Arc<Guard>,
        hooks: HooksCell,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: record.name.clone(),
            members: Members::new(&paths.pages, &record.name),
            names: Arc::default(),
            others: Arc::new(Others::new(&paths.left, &record.name)),
            store,
            paths,
            config,
            node,
            changes: ChangesCell::default(),
            costs: Mutex::default(),
            hot: Arc::default(),
            coming: Coming::default(),
            work: Mutex::new(Work { registry: Registry::new() }),
            inner: Mutex::new(Inner {
                record,
                page: None,
                reasons: Vec::new(),
                out_of_reach: None,
                unwatched: Vec::new(),
                standby_of: None,
                parked: None,
                killed: 0,
                incarnation: 0,
                exit: None,
            }),
            cut: Mutex::new(()),
            fence: Mutex::new(None),
            saving: Mutex::new(()),
            unsynced: AtomicBool::new(true),
            taking: Taking::default(),
            pace: Mutex::default(),
            wake: timing::event(),
            guard,
            hooks,
        })
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> Record {
        self.inner.lock().record.clone()
    }

    /// Changes and saves the record.
    pub fn change_record(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.inner.lock().record);
        self.save();
    }

    /// Saves the record. Not under the lock of what changes: a rename may wait for the disk.
    fn save(&self) {
        let _one = self.saving.lock();
        let record = self.record();
        self.unsynced.store(true, SeqCst);
        if let Err(cause) = record.save(&self.paths.records) {
            eprintln!("holod: {}: the record is not saved: {cause}", self.name);
        }
    }

    /// Makes the record durable, if it is not: an epoch is of no use to who does not know what to do with it. Not when it is
    /// saved: what runs must not wait for the disk.
    ///
    /// # Errors
    /// It may not survive a power loss.
    pub(crate) fn sync_record(&self) -> std::io::Result<()> {
        let _one = self.saving.lock();
        if self.unsynced.swap(false, SeqCst)
            && let Err(cause) = Record::sync(&self.paths.records, &self.name)
        {
            self.unsynced.store(true, SeqCst);
            return Err(cause);
        }
        Ok(())
    }

    /// Is it in a user namespace that a restore made? What it starts is, too.
    #[must_use]
    pub(crate) fn is_lone(&self) -> bool {
        let inner = self.inner.lock();
        inner.page.as_ref().is_some_and(|page| page.control().header.lone.load(Relaxed) != 0)
    }

    /// The living instance, even one whose control page cannot be used: nothing can be done to it but to stop it.
    #[must_use]
    pub fn living(&self) -> Option<Instance> {
        let instance = self.inner.lock().record.instance.clone()?;
        if start_time(instance.real_pid) == Some(instance.started) {
            return Some(instance);
        }
        self.succeed(&instance).map(|(heir, _)| heir)
    }

    /// A process is this application that an earlier agent knew, and its control page cannot be used.
    pub(crate) fn find_unusable(self: &Arc<Self>, instance: Instance, why: String) {
        let mut inner = self.inner.lock();
        inner.incarnation += 1;
        let incarnation = inner.incarnation;
        self.members.begin(instance.real_pid);
        inner.record.instance = Some(instance);
        inner.page = None;
        drop(inner);
        self.set_reasons(vec![why]);
        let app = Arc::clone(self);
        thread::spawn(move || app.watch(incarnation, None));
    }

    /// The living instance and its page. Where its first process has ended and others live on (a daemon), another one of
    /// them stands for it.
    #[must_use]
    pub fn instance(&self) -> Option<(Instance, Arc<Page>)> {
        let inner = self.inner.lock();
        let instance = inner.record.instance.clone()?;
        let page = inner.page.clone()?;
        drop(inner);
        if start_time(instance.real_pid) == Some(instance.started) {
            return Some((instance, page));
        }
        self.succeed(&instance)
    }

    fn succeed(&self, ended: &Instance) -> Option<(Instance, Arc<Page>)> {
        let (real_pid, started, leaf, cluster_pid) = self.members.heir()?;
        let heir = Instance { real_pid, started, cluster_pid: cluster_pid as u32, page: leaf.path };
        let mut inner = self.inner.lock();
        if inner.record.instance.as_ref() == Some(ended) {
            inner.record.instance = Some(heir.clone());
            inner.page = Some(Arc::clone(&leaf.page));
            self.members.set_first(real_pid);
            drop(inner);
            self.guard.succeed(ended, &heir);
            self.save();
        }
        Some((heir, leaf.page))
    }

    /// Makes a table of file changes for an instance that is about to begin, with a first process, or from an epoch.
    pub(crate) fn begin_changes(&self, first: Option<i32>) -> Option<Arc<Table>> {
        let mut places = dump::roots(self);
        let before = self.changes.lock().take();
        {
            let mut names = self.names.lock();
            match first {
                Some(pid) => names.forget(pid),
                None => before.iter().for_each(|table| names.ended(table.table())),
            }
            places.extend(first.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).ok()));
            places.extend(names.places());
        }
        let table = match Table::create(&self.paths.changes.join(&self.name), &places) {
            Ok(table) => Some(Arc::new(table)),
            Err(cause) => {
                eprintln!("holod: {}: file changes are not recorded: {cause}", self.name);
                None
            }
        };
        self.changes.lock().clone_from(&table);
        table
    }

    /// Finds the table of file changes of an instance that an earlier agent knew.
    pub(crate) fn find_changes(&self) {
        let table = Table::open(&self.paths.changes.join(&self.name)).ok().map(Arc::new);
        *self.changes.lock() = table;
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

    /// Notes that process `pid` was launched as this application, and why it cannot join.
    pub(crate) fn set_out_of_reach(&self, pid: i32, why: &str) {
        self.inner.lock().out_of_reach = start_time(pid).map(|started| (pid, started));
        self.set_reasons(vec![why.to_owned()]);
    }

    /// The process of it that could not join, while it lives, and why.
    pub(crate) fn out_of_reach(&self) -> Option<(i32, String)> {
        let inner = self.inner.lock();
        let (pid, started) = inner.out_of_reach?;
        (start_time(pid) == Some(started)).then(|| (pid, inner.reasons.join("; ")))
    }

    /// Notes that this node keeps a clone of it for `owner`; none: it does not.
    pub fn set_standby_of(&self, owner: Option<String>) {
        if owner.is_none() {
            self.hot.retire();
        }
        self.inner.lock().standby_of = owner;
    }

    /// The node that this one keeps a clone for.
    pub(crate) fn standby_of(&self) -> Option<String> {
        self.inner.lock().standby_of.clone()
    }

    /// Notes why the instance here is parked, or where it ended; none: neither.
    pub fn set_parked(&self, why: Option<String>) {
        self.inner.lock().parked = why;
    }

    pub(crate) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock()
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
        if let Err(cause) = self.sync_record() {
            eprintln!("holod: {}: the record may not be durable: {cause}", self.name);
        }
        if let Some(hooks) = self.hooks.get() {
            hooks.sealed(&self.name, epoch);
        }
        self.retain();
    }

    /// Drops epochs that need not be kept, also of what was put aside: only now, when there are others.
    pub(crate) fn retain(&self) {
        let options = self.record().options;
        let count = if options.keep_epochs == 0 { self.config.keep_epochs } else { options.keep_epochs };
        let retention =
            Retention { keep_count: count as usize, keep_age: Duration::from_secs(options.keep_secs) };
        if let Err(cause) = self.store.retain(&retention) {
            eprintln!("holod: {}: old epochs are not dropped: {cause}", self.name);
        }
        if let Err(cause) = self.store.retain_aside(&ASIDE) {
            eprintln!("holod: {}: epochs put aside are not dropped: {cause}", self.name);
        }
    }

    /// A row of `holo ps`.
    #[must_use]
    pub fn info(&self) -> AppInfo {
        let alive = self.living();
        let pids = if alive.is_some() { self.members.pids() } else { Vec::new() };
        let beyond = if alive.is_none() { self.out_of_reach() } else { None };
        let pids = pids.into_iter().chain(beyond.iter().map(|(pid, _)| (*pid, *pid))).collect::<Vec<_>>();
        let last = self.store.last();
        let inner = self.inner.lock();
        let state = match (&alive, &inner.standby_of) {
            (Some(_), _) if inner.parked.is_some() => AppState::Stopped,
            (Some(_), _) if !inner.reasons.is_empty() => AppState::Unprotected,
            (Some(_), _) => AppState::Running,
            (None, _) if beyond.is_some() => AppState::Unprotected,
            (None, Some(_)) => AppState::Standby,
            (None, None) => AppState::Stopped,
        };
        let ended = Some(&inner.record.ended).filter(|how| !how.is_empty() && alive.is_none());
        let ended = ended.filter(|_| inner.standby_of.is_none());
        let told = self.others.told().filter(|_| alive.is_some());
        let unwatched = inner.unwatched.iter().filter(|_| alive.is_some());
        let node = match (&alive, &inner.standby_of) {
            (None, Some(owner)) => owner.clone(),
            _ => self.node.clone(),
        };
        AppInfo {
            name: self.name.clone(),
            state,
            reasons: inner
                .parked
                .iter()
                .chain(&inner.reasons)
                .chain(unwatched)
                .chain(&told)
                .chain(ended)
                .cloned()
                .collect(),
            node,
            epoch: last.as_ref().map_or(0, |meta| meta.epoch),
            lag_ms: last.as_ref().map_or(0, |meta| now_ns().saturating_sub(meta.at_unix_ns) / 1_000_000),
            real_pids: pids.iter().map(|(pid, _)| *pid as u32).collect(),
            cluster_pids: pids.iter().map(|(_, inner)| *inner as u32).collect(),
            stop_us: last.as_ref().map_or(0, |meta| meta.stop_us),
            command: inner.record.argv.iter().map(|arg| lossy(arg)).collect::<Vec<_>>().join(" "),
            standby: inner.record.options.standby.clone(),
            every_ms: self.period_of(&inner.record.options).map_or(0, |every| every.as_millis() as u64),
            budget_permille: inner.record.options.budget_permille,
            growth_bytes: inner.record.options.growth_bytes,
            on_change: inner.record.options.on_change.iter().map(|path| lossy(path)).collect(),
            standby_lag_ms: None,
            clone: self.hot.view(),
            last: last.as_ref().map(epoch_info),
            progress: progress::of(self).into_iter().collect(),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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
        aside_unix_ms: None,
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
