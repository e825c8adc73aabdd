//! Threads of a stopped process (job control) are made to run holo's code, and nothing of the application.
//!
//! A stopped thread runs no signal handler. As its tracer (`PTRACE_SEIZE`) we let it run although its process is stopped,
//! which nobody is told of: what parents wait for is the state of the process, and `PTRACE_DETACH` puts the thread back
//! into the stop without a signal to the parent. See docs/adr/0007.
//!
//! ```text
//! attach:  SEIZE -> trapped -> CONT -> park handler -> parked, or, for a clone, serving calls
//! leave:   INTERRUPT -> trapped; the slot is let go; SYSCALL ... -> end of rt_sigreturn -> DETACH -> stopped again
//! ```
//!
//! The kernel takes orders for a tracee from the thread that attached it only: each process has a thread of ours. If the
//! agent dies, the kernel detaches, and all are stopped as they were.

mod tracer;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracer::Tracer;

/// How long we wait for an answer of our own thread; it bounds all that it does.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often those that wait get a sign of life.
const SIGN: Duration = Duration::from_millis(50);
/// How often we look whether a thread is in a stop that is not ours, and how long often.
const PACE: Duration = Duration::from_micros(100);
const PACE_QUIET: Duration = Duration::from_millis(5);
const BUSY: Duration = Duration::from_millis(20);

/// What the tracing thread is told.
enum Order {
    /// Says whether the process is stopped.
    Ask,
    /// Attaches threads that were made since, and traps all; they are about to be let go.
    Hold(Vec<i32>),
    /// Follows the threads until they are the application's, and stopped.
    Follow,
}

/// A process whose threads run for us although it is stopped, or was when we came; when dropped they are left where they are,
/// stopped or not as the process then is.
pub(crate) struct Stopped {
    /// Its pid on this node.
    pub(crate) pid: i32,
    orders: Option<Sender<Order>>,
    answers: Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Stopped {
    fn start(pid: i32, tids: Vec<i32>, park: bool) -> Self {
        let (orders, ordered) = channel();
        let (answer, answers) = channel();
        let thread = std::thread::spawn(move || {
            let mut tracer = Tracer::new(pid, !park);
            let good = tracer.attach(&tids);
            if park {
                // The barrier sees who has parked.
                tracer.park();
            } else {
                tracer.go_on();
                let _ = answer.send(good);
            }
            let mut quiet = Instant::now();
            loop {
                let pace = if quiet.elapsed() < BUSY { PACE } else { PACE_QUIET };
                let done = match ordered.recv_timeout(pace) {
                    Ok(Order::Ask) => tracer.is_stopped(),
                    Ok(Order::Hold(more)) => tracer.attach(&more) && tracer.trap(),
                    Ok(Order::Follow) => tracer.follow(),
                    Err(RecvTimeoutError::Timeout) => {
                        if tracer.attend() {
                            quiet = Instant::now();
                        }
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                let _ = answer.send(done);
            }
            tracer.detach();
        });
        Self { pid, orders: Some(orders), answers, thread: Some(thread) }
    }

    /// Lets the threads of a stopped process take their park signal, which they have been sent.
    pub(crate) fn park(pid: i32, tids: Vec<i32>) -> Self {
        Self::start(pid, tids, true)
    }

    /// Lets the threads of a stopped clone serve calls.
    pub(crate) fn serve(pid: i32, tids: Vec<i32>) -> Option<Self> {
        let made = Self::start(pid, tids, false);
        made.answered().then_some(made)
    }

    fn answered(&self) -> bool {
        self.answers.recv_timeout(PATIENCE).unwrap_or(false)
    }

    fn send(&self, order: Order) -> bool {
        self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok())
    }

    fn order(&self, order: Order) -> bool {
        self.send(order) && self.answered()
    }

    /// Which of these are stopped now: one may have been let go on before it parked. All wait for a sign of life, which `alive`
    /// gives.
    pub(crate) fn ask(all: &[Self], alive: &dyn Fn()) -> Vec<bool> {
        let asked: Vec<bool> = all.iter().map(|one| one.send(Order::Ask)).collect();
        let answer = |(one, asked): (&Self, bool)| {
            let until = Instant::now() + PATIENCE;
            while asked && Instant::now() < until {
                alive();
                match one.answers.recv_timeout(SIGN) {
                    Ok(stopped) => return stopped,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            false
        };
        all.iter().zip(asked).map(answer).collect()
    }

    /// Traps all threads: they are about to be let go.
    pub(crate) fn hold(&self) {
        self.hold_with(Vec::new());
    }

    /// The same, also for threads (`more`) that were made since; false: not all are.
    pub(crate) fn hold_with(&self, more: Vec<i32>) -> bool {
        self.order(Order::Hold(more))
    }

    /// To be called when all were let go: each runs up to its own code and is stopped there.
    pub(crate) fn follow(&self) {
        self.order(Order::Follow);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
