//! Timers of the process: `setitimer` and POSIX timers, with what is left of them.
//!
//! Time goes on while the application is down: what is left is reduced by it, and a timer that would have
//! expired expires at once.

use crate::asks::{Asked, Asking};
use crate::kinds::process::clock_ns;
use crate::kinds::signals::{self, Pending};
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::remote::{Remote, call, outcome};
use crate::tasks::{self, Task};
use holo_abi::control::Call;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::{Duration, Instant};

const NAME: &str = "timers";
const VERSION: u16 = 2;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD_ID: u32 = 4;
const TIMERS_MAX: usize = 4096;
const SECOND_NS: i64 = 1_000_000_000;
/// Codes of signals of interval timers and of POSIX timers.
const SI_KERNEL: i32 = 0x80;
const SI_TIMER: i32 = -2;
/// What three calls for interval timers write.
const ITIMERS_BYTES: usize = 96;
const CLOCK_BYTES: usize = 16;

/// A POSIX timer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PosixTimer {
    /// The kernel's id, which libc keeps in memory.
    pub id: u32,
    /// Clock.
    pub clock: i32,
    /// Signal.
    pub signal: u32,
    /// `sigev_value`.
    pub value: u64,
    /// `SIGEV_*`.
    pub notify: u32,
    /// Thread for `SIGEV_THREAD_ID`.
    pub tid: i32,
    /// Interval, nanoseconds.
    pub interval_ns: i64,
    /// What is left, nanoseconds; 0: not armed.
    pub left_ns: i64,
}

/// State.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TimersState {
    /// Real, virtual, profiling: interval and what is left, microseconds.
    pub itimers_us: [(i64, i64); 3],
    /// POSIX timers.
    pub posix: Vec<PosixTimer>,
    /// When they were read, nanoseconds of Unix time.
    pub at_ns: i64,
}

/// The manager.
#[derive(Default)]
pub struct Timers {
    /// What was asked, for which timers, and when.
    asked: Option<(Asked, Vec<PosixTimer>, Instant)>,
}

fn word(bytes: &[u8], at: usize) -> i64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, i64::from_le_bytes)
}

/// Parses `/proc/<pid>/timers`; what is left is added later.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut out = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name == "ID" {
            out.push(PosixTimer {
                id: value.parse().ok()?,
                clock: 0,
                signal: 0,
                value: 0,
                notify: 0,
                tid: 0,
                interval_ns: 0,
                left_ns: 0,
            });
            continue;
        }
        let timer = out.last_mut()?;
        match name {
            "signal" => {
                let (signal, pointer) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(pointer, 16).ok()?;
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                let (kind, id) = whom.split_once('.')?;
                timer.notify = match how {
                    "signal" => 0,
                    "none" => SIGEV_NONE,
                    "thread" => 2,
                    _ => return None,
                };
                if kind == "tid" {
                    timer.notify |= SIGEV_THREAD_ID;
                    timer.tid = id.parse().ok()?;
                }
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(out)
}

/// Bytes that [`calls_of`] write.
fn bytes_of(posix: &[PosixTimer]) -> usize {
    ITIMERS_BYTES + posix.len() * 32 + CLOCK_BYTES
}

/// Calls that tell what is left of interval timers and of these, and then what time it is.
fn calls_of(posix: &[PosixTimer], at: u64) -> Vec<Call> {
    let itimers = (0..3).map(|which| call(sysno::getitimer, &[which, at + which * 32]));
    let places = (at + ITIMERS_BYTES as u64..).step_by(32);
    let others = posix.iter().zip(places);
    let others = others.map(|(timer, at)| call(sysno::timer_gettime, &[u64::from(timer.id), at]));
    let clock_at = at + (ITIMERS_BYTES + posix.len() * 32) as u64;
    let clock = call(sysno::clock_gettime, &[libc::CLOCK_REALTIME as u64, clock_at]);
    itimers.chain(others).chain([clock]).collect()
}

/// What they told.
fn state_of(
    remote: &Remote,
    calls: &[Call],
    bytes: &[u8],
    mut posix: Vec<PosixTimer>,
) -> RmResult<TimersState> {
    let itimer = |which: usize| {
        let at = which * 32;
        let us = |at: usize| word(bytes, at) * 1_000_000 + word(bytes, at + 8);
        (us(at), us(at + 16))
    };
    for (index, timer) in posix.iter_mut().enumerate() {
        outcome(&calls[3 + index]).on("reading", format!("timer {}", timer.id))?;
        let at = ITIMERS_BYTES + index * 32;
        let ns = |at: usize| word(bytes, at) * SECOND_NS + word(bytes, at + 8);
        (timer.interval_ns, timer.left_ns) = (ns(at), ns(at + 16));
        if timer.notify & SIGEV_THREAD_ID != 0 {
            // The kernel shows the id of the reader's namespace.
            timer.tid = crate::barrier::inner_tid(remote.pid, timer.tid);
        }
    }
    let clock_at = ITIMERS_BYTES + posix.len() * 32;
    let at_ns = word(bytes, clock_at) * SECOND_NS + word(bytes, clock_at + 8);
    Ok(TimersState { itimers_us: [itimer(0), itimer(1), itimer(2)], posix, at_ns })
}

impl PosixTimer {
    /// Whether its time goes on while the application is down.
    fn runs(&self) -> bool {
        self.clock >= 0 && self.clock != libc::CLOCK_PROCESS_CPUTIME_ID
    }
}

impl TimersState {
    /// Whether no timer expires within this time.
    fn lasts(&self, time: Duration) -> bool {
        let ns = time.as_nanos() as i64;
        let mut left =
            self.itimers_us.iter().map(|(_, left)| left * 1000).chain(self.posix.iter().map(|t| t.left_ns));
        left.all(|left| left == 0 || left > ns)
    }

    /// Those that may have expired within this time, and of which the signal is among these, have.
    fn expire(&mut self, time: Duration, pending: &[Pending]) {
        let ns = time.as_nanos() as i64;
        let step = |left: &mut i64, interval: i64, soon: bool, came: &dyn Fn(&Pending) -> bool| {
            if *left != 0 && soon && pending.iter().any(came) {
                *left = if interval == 0 { 0 } else { *left + interval };
            }
        };
        for ((interval, left), signal) in
            self.itimers_us.iter_mut().zip([libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF])
        {
            let soon = *left * 1000 <= ns;
            step(left, *interval, soon, &|one| one.word(0) == signal && one.word(8) == SI_KERNEL);
        }
        for timer in &mut self.posix {
            let (id, soon) = (timer.id as i32, timer.left_ns <= ns);
            let came = |one: &Pending| one.word(8) == SI_TIMER && one.word(16) == id;
            step(&mut timer.left_ns, timer.interval_ns, soon, &came);
        }
    }
}

/// Reads them, from the time on that is told.
fn read(remote: &Remote) -> RmResult<(TimersState, Instant)> {
    let text = remote.proc_text("timers").on("reading", "timers")?;
    let posix =
        parse(&text).ok_or_else(|| RmError::Unsupported(format!("POSIX timers of unknown form: {text}")))?;
    if posix.len() > TIMERS_MAX {
        return Err(RmError::Unsupported(format!("{} POSIX timers", posix.len())));
    }
    let _hands = remote.page.hands();
    let mut calls = calls_of(&posix, remote.page.scratch_address(0));
    let at = Instant::now();
    remote.run(&mut calls, false).on("reading", "timers")?;
    let bytes = remote.page.take(0, bytes_of(&posix));
    Ok((state_of(remote, &calls, &bytes, posix)?, at))
}

/// Threads with what is pending, if that may not be what was `seen`. Interval timers signal the process: a look at one thread
/// tells. Of several POSIX timers that share a signal nobody can tell which of them it is of.
fn pending(remote: &Remote, posix: &[PosixTimer], seen: &[Task]) -> io::Result<Option<Vec<Task>>> {
    let sets = |task: &Task| (task.inner, task.pending, task.shared_pending);
    if posix.is_empty()
        && let Some(first) = seen.first()
    {
        let now = tasks::one(remote.pid, first.tid)?;
        if now.shared_pending == first.shared_pending {
            return Ok(None);
        }
    }
    let (now, _) = tasks::read(remote.pid, remote.face)?;
    let is_same = now.iter().map(sets).eq(seen.iter().map(sets));
    let all = now.iter().fold(0, |all, task| all | task.pending | task.shared_pending);
    let is_of_one = |timer: &PosixTimer| timer.left_ns == 0 && all >> timer.signal.saturating_sub(1) & 1 != 0;
    Ok((!is_same || posix.iter().any(is_of_one)).then_some(now))
}

impl ResourceManager for Timers {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&mut self, remote: &Remote, asking: &mut Asking) {
        self.asked = None;
        let list = remote.proc_text("timers").ok().and_then(|text| parse(&text));
        // Whatever is wrong is found again.
        let Some(posix) = list else { return };
        let at = Instant::now();
        let asked = asking.add(bytes_of(&posix), |room| calls_of(&posix, room));
        self.asked = asked.map(|asked| (asked, posix, at));
    }

    /// Of a timer that expires meanwhile either the signal is in the epoch or what was left of it, and not both: timers are read, then
    /// it is looked what is pending, and of what has come since the timer is as it was afterwards.
    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        let (mut state, at) = match self.asked.take() {
            Some((asked, posix, at)) => {
                let answers = cx.remote.answers().and_then(|answers| answers.of(&asked));
                let (calls, bytes) = answers.on("reading", "timers")?;
                (state_of(cx.remote, calls, bytes, posix)?, at)
            }
            None => read(cx.remote)?,
        };
        let seen = cx.remote.tasks().on("reading", "threads")?;
        let now = pending(cx.remote, &state.posix, seen).on("reading", "pending signals")?;
        if let Some(now) = now {
            signals::look_again(cx, &now)?;
        }
        let passed = at.elapsed();
        if !state.lasts(passed) {
            state.expire(passed, &signals::told(cx)?);
        }
        cx.put(NAME, VERSION, &state)
    }

    /// When all threads are there: a timer may be for one of them.
    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state: TimersState = cx.section(NAME, VERSION)?;
        if state.posix.len() > TIMERS_MAX {
            return Err(RmError::BadSection { kind: NAME, what: format!("{} timers", state.posix.len()) });
        }
        let down_ns = (clock_ns(libc::CLOCK_REALTIME) - state.at_ns).max(0);
        let left = |left_ns: i64, runs: bool| {
            if left_ns == 0 || !runs { left_ns } else { (left_ns - down_ns).max(1) }
        };
        let remote = cx.remote;
        let page = &remote.page;
        let mut calls = vec![call(sysno::prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 1])];
        remote.run(&mut calls, false).on("restoring", "timers")?;
        let chosen = outcome(&calls[0]).is_ok();
        let mut made_max = None;
        let mut rising: Vec<_> = state.posix.iter().collect();
        rising.sort_unstable_by_key(|timer| timer.id);
        for timer in rising {
            let mut event = [0u8; 64];
            event[..8].copy_from_slice(&timer.value.to_le_bytes());
            event[8..12].copy_from_slice(&timer.signal.to_le_bytes());
            event[12..16].copy_from_slice(&timer.notify.to_le_bytes());
            event[16..20].copy_from_slice(&timer.tid.to_le_bytes());
            let event_at = page.put(0, &event);
            let id_at = page.put(64, &timer.id.to_le_bytes());
            loop {
                remote
                    .call(sysno::timer_create, &[i64::from(timer.clock).cast_unsigned(), event_at, id_at])
                    .on("making", format!("timer {}", timer.id))?;
                let got = word(&page.take(64, 8), 0) as u32;
                if got == timer.id {
                    break;
                }
                // Older kernels count up: make and drop until the number comes.
                remote.call(sysno::timer_delete, &[u64::from(got)]).on("counting", "timers")?;
                page.put(64, &timer.id.to_le_bytes());
                if chosen || got > timer.id || made_max.is_some_and(|max| got <= max) {
                    return Err(RmError::Unsupported(format!(
                        "timer id {} cannot be had (got {got})",
                        timer.id
                    )));
                }
                made_max = Some(got);
            }
            let left_ns = left(timer.left_ns, timer.runs());
            if left_ns != 0 {
                let value: Vec<u8> = [
                    timer.interval_ns / SECOND_NS,
                    timer.interval_ns % SECOND_NS,
                    left_ns / SECOND_NS,
                    left_ns % SECOND_NS,
                ]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
                let at = page.put(128, &value);
                remote
                    .call(sysno::timer_settime, &[u64::from(timer.id), 0, at, 0])
                    .on("arming", format!("timer {}", timer.id))?;
            }
        }
        if chosen {
            remote.call(sysno::prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 0]).on("restoring", "timers")?;
        }
        for (which, (interval_us, left_us)) in state.itimers_us.iter().enumerate() {
            // One of real time whose signal is pending has nothing left, and is started again as the signal is taken: armed for
            // at once, it is so here, too.
            if *left_us == 0 && (*interval_us == 0 || which != 0) {
                continue;
            }
            let left_us = (left(*left_us * 1000, which == 0) / 1000).max(1);
            let value: Vec<u8> =
                [interval_us / 1_000_000, interval_us % 1_000_000, left_us / 1_000_000, left_us % 1_000_000]
                    .iter()
                    .flat_map(|word| word.to_le_bytes())
                    .collect();
            let at = page.put(0, &value);
            remote
                .call(sysno::setitimer, &[which as u64, at, 0])
                .on("arming", format!("interval timer {which}"))?;
        }
        Ok(())
    }

    fn switch(&mut self, _: &mut SwitchCx) -> RmResult<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: of a timer whose signal is there the time is over, or begins anew, if it may have expired meanwhile. Method: by value.
    #[test]
    fn what_expires() {
        let info = |signal: i32, code: i32, id: i32| {
            let mut info = vec![0; 128];
            info[..4].copy_from_slice(&signal.to_le_bytes());
            info[8..12].copy_from_slice(&code.to_le_bytes());
            info[16..20].copy_from_slice(&id.to_le_bytes());
            Pending { thread: None, info }
        };
        let after = |left_ns: i64, interval_ns: i64, pending: &[Pending]| {
            let mut posix = parse("ID: 3\nsignal: 14/0\nnotify: signal/pid.1\nClockID: 0\n").unwrap();
            (posix[0].left_ns, posix[0].interval_ns) = (left_ns, interval_ns);
            let itimers_us = [(interval_ns / 1000, left_ns / 1000), (0, 0), (0, left_ns / 1000)];
            let mut state = TimersState { posix, itimers_us, ..TimersState::default() };
            state.expire(Duration::from_millis(1), pending);
            (state.posix[0].left_ns, state.itimers_us[0].1, state.itimers_us[2].1)
        };
        let came = [info(14, SI_TIMER, 3), info(libc::SIGALRM, SI_KERNEL, 0)];
        assert_eq!(after(500_000, 0, &came), (0, 0, 500));
        assert_eq!(after(500_000, 9_000_000, &came), (9_500_000, 9500, 500));
        assert_eq!(after(2_000_000, 0, &came), (2_000_000, 2000, 2000), "too early to be theirs");
        let others = [info(14, SI_TIMER, 4), info(libc::SIGALRM, 0, 0)];
        assert_eq!(after(500_000, 0, &others), (500_000, 500, 500));
        assert_eq!(after(0, 0, &came), (0, 0, 0));
    }

    #[test]
    fn the_kernels_list() {
        let text = "ID: 1\nsignal: 14/00007ffe12345678\nnotify: signal/pid.2634\nClockID: 0\n\
            ID: 7\nsignal: 32/0000000000000005\nnotify: signal/tid.99\nClockID: 1\n";
        let timers = parse(text).unwrap();
        assert_eq!(timers.len(), 2);
        assert_eq!((timers[0].id, timers[0].signal, timers[0].value), (1, 14, 0x7ffe_1234_5678));
        assert_eq!((timers[0].notify, timers[0].tid), (0, 0));
        assert_eq!((timers[1].notify, timers[1].tid, timers[1].clock), (SIGEV_THREAD_ID, 99, 1));
        assert!(parse("nonsense").is_none());
        assert!(parse("").unwrap().is_empty());
    }
}
