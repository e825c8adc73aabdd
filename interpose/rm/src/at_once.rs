//! Work in the stop that is shared among the processors: the application's threads leave them idle then.
//!
//! Helpers wait for work all the time: to start a thread takes as long as much of what is done in a stop. So does waking one, where
//! the other processor sleeps or the helper is put in line behind who woke it: during a stop a few of them are [`alert`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Helpers that are alert in a stop.
const ALERT_MAX: usize = 3;
/// No helper is so for longer.
const ALERT_LASTS: Duration = Duration::from_millis(100);
/// Looks at a word before others may have the processor.
const LOOKS: usize = 20;

/// Processors that this process may use.
fn cores() -> u64 {
    static CORES: OnceLock<u64> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, |cores| cores.get() as u64))
}

/// A list as parts of about the same weight, one for each processor, and none lighter than `least` unless it is the only one.
pub(crate) fn parts<T>(list: &[T], weight: impl Fn(&T) -> u64, least: u64) -> Vec<&[T]> {
    let all: u64 = list.iter().map(&weight).sum();
    let share = all.div_ceil(cores().min(all / least.max(1)).max(1)).max(1);
    let (mut out, mut rest) = (Vec::new(), list);
    while !rest.is_empty() {
        let mut sum = 0;
        let full = rest.iter().position(|one| {
            sum += weight(one);
            sum >= share
        });
        let (part, tail) = rest.split_at(full.map_or(rest.len(), |at| at + 1));
        out.push(part);
        rest = tail;
    }
    out
}

type Task<'a> = dyn Fn() + Sync + 'a;

/// Work that helpers may join.
struct Job {
    number: u64,
    task: *const Task<'static>,
    /// Helpers that may still join, and that have and are not done.
    seats: usize,
    inside: usize,
    panic: Option<Box<dyn Any + Send>>,
}

// SAFETY: who posts a job waits until no helper is inside and takes it off the list before the task ends.
unsafe impl Send for Job {}

#[derive(Default)]
struct Jobs {
    list: Vec<Job>,
    numbers: u64,
    helpers: u64,
}

/// The helpers: one for each processor but the first.
#[derive(Default)]
struct Pool {
    jobs: Mutex<Jobs>,
    posted: Condvar,
    left: Condvar,
    /// Those for whom helpers are alert, and places in work that is posted.
    alert: AtomicUsize,
    places: AtomicUsize,
    /// How often a helper was done with something.
    done: AtomicUsize,
    /// Thread ids of those helpers that are alert in a stop; 0: not there yet.
    alert_tids: [AtomicI32; ALERT_MAX],
}

/// Looks for a moment, which others that are to run here may use.
fn look(good: impl Fn() -> bool) -> bool {
    for _ in 0..LOOKS {
        if good() {
            return true;
        }
        std::hint::spin_loop();
    }
    thread::yield_now();
    good()
}

/// As long as it lives a few helpers look for work all the time.
pub struct Alert {
    pool: &'static Pool,
    /// Where helpers may run else.
    anywhere: Option<libc::cpu_set_t>,
}

/// Work will come at once. Until then helpers go where the caller is not: the kernel would put them in line behind it.
#[must_use]
pub fn alert() -> Alert {
    let pool = Pool::get();
    // SAFETY: a set of bits, for which zero is empty.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes a set of this size.
    let known = unsafe { libc::sched_getaffinity(0, size_of_val(&all), &raw mut all) } == 0;
    let mut others = all;
    // SAFETY: no memory is passed; the number is one of a processor, and checked.
    unsafe {
        if let Ok(own) = usize::try_from(libc::sched_getcpu())
            && own < libc::CPU_SETSIZE as usize
        {
            libc::CPU_CLR(own, &mut others);
        }
    }
    // SAFETY: only looks at the set.
    let anywhere = (known && unsafe { libc::CPU_COUNT(&others) } > 0).then_some(all);
    if anywhere.is_some() {
        pool.place(&others);
    }
    pool.alert.fetch_add(1, Ordering::SeqCst);
    pool.posted.notify_all();
    Alert { pool, anywhere }
}

impl Drop for Alert {
    fn drop(&mut self) {
        self.pool.alert.fetch_sub(1, Ordering::SeqCst);
        if let Some(anywhere) = &self.anywhere {
            self.pool.place(anywhere);
        }
    }
}

impl Pool {
    fn get() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(Self::default)
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `task` here and in up to `seats` helpers at the same time, until all are done with it.
    fn share(&'static self, task: &Task, seats: usize) {
        let mut jobs = self.jobs();
        while jobs.helpers + 1 < cores() {
            let number = jobs.helpers as usize;
            let helper = thread::Builder::new().name("at once".into()).spawn(move || self.help(number));
            if helper.is_err() {
                break;
            }
            jobs.helpers += 1;
        }
        jobs.numbers += 1;
        let number = jobs.numbers;
        // SAFETY: the lifetime alone changes; the job is off the list when this function returns.
        let task_of_job: *const Task<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        jobs.list.push(Job { number, task: task_of_job, seats, inside: 0, panic: None });
        self.places.fetch_add(seats, Ordering::SeqCst);
        drop(jobs);
        for _ in 0..seats {
            self.posted.notify_one();
        }
        let own = catch_unwind(AssertUnwindSafe(task));
        let mut jobs = self.jobs();
        let job = loop {
            let at = jobs.list.iter().position(|job| job.number == number);
            let Some(at) = at else { break None };
            let left = std::mem::take(&mut jobs.list[at].seats);
            self.places.fetch_sub(left, Ordering::SeqCst);
            if jobs.list[at].inside == 0 {
                break Some(jobs.list.remove(at));
            }
            jobs = self.wait_left(jobs);
        };
        drop(jobs);
        if let Some(panic) = own.err().or_else(|| job.and_then(|job| job.panic)) {
            resume_unwind(panic);
        }
    }

    /// Where helpers that are alert in a stop may run. Where that cannot be set they run anywhere.
    fn place(&self, on: &libc::cpu_set_t) {
        for tid in self.alert_tids.iter().map(|tid| tid.load(Ordering::SeqCst)).filter(|tid| *tid != 0) {
            // SAFETY: a whole set, which is only read.
            unsafe { libc::sched_setaffinity(tid, size_of_val(on), on) };
        }
    }

    /// Until a helper is done with something, or for a while.
    fn wait_left<'a>(&'a self, jobs: MutexGuard<'a, Jobs>) -> MutexGuard<'a, Jobs> {
        if self.alert.load(Ordering::SeqCst) == 0 {
            return self.left.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        let before = self.done.load(Ordering::SeqCst);
        drop(jobs);
        let until = Instant::now() + ALERT_LASTS;
        while !look(|| self.done.load(Ordering::SeqCst) != before) && Instant::now() < until {}
        self.jobs()
    }

    /// What a helper does.
    fn help(&self, helper: usize) {
        if let Some(tid) = self.alert_tids.get(helper) {
            // SAFETY: no memory is passed.
            tid.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        }
        let mut jobs = self.jobs();
        let is_alert = || self.alert.load(Ordering::SeqCst) > 0 && helper < ALERT_MAX;
        loop {
            let Some(job) = jobs.list.iter_mut().find(|job| job.seats > 0) else {
                if is_alert() {
                    drop(jobs);
                    let until = Instant::now() + ALERT_LASTS;
                    let some = || self.places.load(Ordering::SeqCst) > 0;
                    while is_alert() && !look(some) && Instant::now() < until {}
                    jobs = self.jobs();
                    if is_alert() && Instant::now() < until || some() {
                        continue;
                    }
                }
                jobs = self.posted.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            job.seats -= 1;
            self.places.fetch_sub(1, Ordering::SeqCst);
            job.inside += 1;
            let (number, task) = (job.number, job.task);
            drop(jobs);
            // SAFETY: who posted it waits while we are inside.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { (*task)() }));
            jobs = self.jobs();
            if let Some(job) = jobs.list.iter_mut().find(|job| job.number == number) {
                job.inside -= 1;
                job.panic = done.err().or(job.panic.take());
            }
            self.done.fetch_add(1, Ordering::SeqCst);
            self.left.notify_all();
        }
    }
}

/// Does `work` for all, on all processors that are free; the results in order.
pub fn run<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    if all.len() < 2 || cores() < 2 {
        return all.into_iter().map(work).collect();
    }
    let todo: Vec<Mutex<Option<T>>> = all.into_iter().map(|one| Mutex::new(Some(one))).collect();
    let done: Vec<Mutex<Option<R>>> = todo.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let task = || {
        while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < todo.len())
        {
            let one = todo[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            let result = one.map(&work);
            *done[index].lock().unwrap_or_else(PoisonError::into_inner) = result;
        }
    };
    Pool::get().share(&task, (todo.len() - 1).min(cores() as usize - 1));
    done.into_iter().filter_map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: parts are the list in order, none is too light, and results come in order. Method: lists of many lengths.
    #[test]
    fn parts_are_the_whole() {
        for length in 0..200u64 {
            let list: Vec<u64> = (0..length).collect();
            let cut = parts(&list, |one| *one, 50);
            assert_eq!(cut.concat(), list);
            assert!(cut.len() as u64 <= cores() + 1);
            assert_eq!(run(cut, <[u64]>::to_vec).concat(), list);
        }
        assert_eq!(parts(&[1u64, 1, 1], |one| *one, 50).len(), 1);
    }

    // Goal: every part is done once, whoever else shares work at that time, in the midst of it too, and whether helpers are alert.
    // Method: threads that share work which shares work; some of them for a while with helpers that are alert.
    #[test]
    fn shared_by_many() {
        thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for length in 0..50u64 {
                        let _alert = (thread % 2 == 0 && length % 3 > 0).then(alert);
                        let squares =
                            |one: u64| run((0..one).collect(), |n| n * one).into_iter().sum::<u64>();
                        let sums = run((0..length).collect(), squares);
                        let want = (0..length).map(|one| (0..one).sum::<u64>() * one);
                        assert_eq!(sums, want.collect::<Vec<_>>());
                    }
                });
            }
        });
    }

    // Goal: a panic comes out where the work was shared, and helpers live on. Method: one in each part, many times.
    #[test]
    fn panics_come_out() {
        for bad in 0..20 {
            let done = catch_unwind(|| {
                run((0..20).collect(), |one: i32| {
                    assert_ne!(one, bad);
                    one
                })
            });
            assert!(done.is_err());
            assert_eq!(run(vec![1, 2, 3], |one| one + 1), [2, 3, 4]);
        }
    }
}
