//! When the next epoch of an application is due: by its period, fixed or adapting, by the growth of its memory, by changes of
//! files, by order.

use super::events::{self, Events};
use super::{App, Failure};
use crate::ended;
use crate::pace::{Cost, Pace};
use holo_api::local::{AppOptions, ErrorKind};
use holo_rm::face::face;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing is due.
const NEVER: Duration = Duration::from_secs(3600);
/// How often memory is looked at, where its growth makes an epoch due.
const GROWTH_LOOK: Duration = Duration::from_millis(100);
/// How often there is a look whether there is anything new, without a descriptor that tells.
const BLIND: Duration = Duration::from_millis(500);
const PAGE_BYTES: u64 = 4096;

/// An event for [`App::wait_end`].
pub(super) fn event() -> Option<OwnedFd> {
    // SAFETY: no memory is passed.
    let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    // SAFETY: just made.
    (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Time since which the next epoch is awaited, memory at that time, and files that are watched.
pub(super) struct Clock {
    since: Instant,
    bytes: Option<u64>,
    events: Events,
}

impl Default for Clock {
    fn default() -> Self {
        Self { since: Instant::now(), bytes: None, events: Events::default() }
    }
}

impl Clock {
    /// How long nothing can be due.
    pub(super) fn wait(&mut self, app: &App) -> Duration {
        let options = app.options();
        if let Some(unwatched) = self.events.follow(&options.on_change) {
            app.set_unwatched(unwatched);
        }
        let period = app.period_of(&options);
        let left =
            period.map_or(NEVER, |every| (self.since + every).saturating_duration_since(Instant::now()));
        let left = self.events.wait().map_or(left, |wait| wait.min(left));
        if options.growth_bytes == 0 {
            self.bytes = None;
            return left;
        }
        self.bytes.get_or_insert_with(|| app.resident_bytes());
        left.min(GROWTH_LOOK)
    }

    /// Is an epoch due? Then it begins now.
    pub(super) fn is_due(&mut self, app: &App) -> bool {
        let options = app.options();
        let is_changed = self.events.is_due();
        let is_late = || app.period_of(&options).is_some_and(|every| Instant::now() >= self.since + every);
        let grown = |before: u64| app.resident_bytes() >= before.saturating_add(options.growth_bytes);
        let is_due = is_changed || is_late() || options.growth_bytes != 0 && self.bytes.is_some_and(grown);
        if is_due {
            self.events.begin();
        }
        is_due
    }

    /// One was taken, or only tried.
    pub(super) fn taken(&mut self, app: &App, is_taken: bool) {
        self.events.end(is_taken);
        let options = app.options();
        let now = Instant::now();
        self.since = match app.period_of(&options) {
            // What was late does not make those that follow late.
            Some(every) if options.budget_permille == 0 && now < self.since + every * 2 => self.since + every,
            Some(_) | None => now,
        };
        self.bytes = (options.growth_bytes != 0).then(|| app.resident_bytes());
    }
}

impl App {
    fn options(&self) -> AppOptions {
        self.inner.lock().record.options.clone()
    }

    /// From one epoch to the next; none: only on order.
    pub(super) fn period_of(&self, options: &AppOptions) -> Option<Duration> {
        match (options.budget_permille, options.every_ms) {
            (0, 0) => None,
            (0, ms) => Some(Duration::from_millis(ms)),
            (permille, _) => Some(self.pace.lock().period(permille)),
        }
    }

    /// Notes what an epoch took.
    pub(crate) fn spent(&self, stop_us: u64, cpu_us: u64, pages: u64) {
        let cores = thread::available_parallelism().map_or(1, usize::from) as u64;
        self.pace.lock().spent(&Cost { stop_us, cpu_us, cores, pages });
    }

    /// What epochs cost is not known any more.
    pub(super) fn forget_costs(&self) {
        *self.pace.lock() = Pace::default();
    }

    /// Waits for the end of a process, at most so long, or until there is something new.
    pub(super) fn wait_end(&self, pidfd: &OwnedFd, clock: &Clock, most: Duration) -> bool {
        let changes = clock.events.fd();
        let Some(wake) = &self.wake else { return ended::wait(pidfd, [None, changes], most.min(BLIND)) };
        let ended = ended::wait(pidfd, [Some(wake.as_fd()), changes], most);
        let mut count = 0u64;
        // SAFETY: the counter's eight bytes; it does not block.
        unsafe { libc::read(wake.as_raw_fd(), (&raw mut count).cast(), 8) };
        ended
    }

    /// Memory of all processes; what they share counts in each.
    fn resident_bytes(&self) -> u64 {
        let of = |pid: i32| {
            let text = fs::read_to_string(format!("/proc/{}/statm", face(pid))).unwrap_or_default();
            text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0)
        };
        self.members.pids().iter().map(|(pid, _)| of(*pid)).sum::<u64>() * PAGE_BYTES
    }

    /// Changes when epochs are taken, from now on; what is none stays.
    ///
    /// # Errors
    /// It makes no sense together, or a file cannot be watched.
    pub fn set_timing(
        &self,
        every_ms: Option<u64>,
        budget_permille: Option<u32>,
        growth_bytes: Option<u64>,
        on_change: Option<Vec<Vec<u8>>>,
    ) -> Result<(), Failure> {
        let owner = self.standby_of();
        if let Some(owner) = owner.filter(|_| self.living().is_none()) {
            let message = format!("{} belongs to node {owner}; change it there", self.name);
            return Err(Failure::new(ErrorKind::Refused, message));
        }
        let fixed = self.options().budget_permille == 0;
        if fixed && every_ms.is_none() && budget_permille.is_some_and(|permille| permille > 0) {
            let message = format!("{}: its period is fixed, a budget is for --every auto", self.name);
            return Err(Failure::new(ErrorKind::Usage, message));
        }
        if budget_permille.is_some_and(|permille| permille > 1000) {
            let message = format!("{}: a budget of more than 100 %", self.name);
            return Err(Failure::new(ErrorKind::Usage, message));
        }
        if let Some(paths) = &on_change {
            events::check_here(paths)?;
        }
        self.change_record(|record| {
            let options = &mut record.options;
            options.every_ms = every_ms.unwrap_or(options.every_ms);
            options.budget_permille = budget_permille.unwrap_or(options.budget_permille);
            options.growth_bytes = growth_bytes.unwrap_or(options.growth_bytes);
            options.on_change = on_change.unwrap_or(std::mem::take(&mut options.on_change));
        });
        if let Some(wake) = &self.wake {
            let one = 1u64;
            // SAFETY: eight bytes; it does not block.
            unsafe { libc::write(wake.as_raw_fd(), (&raw const one).cast(), 8) };
        }
        Ok(())
    }
}
