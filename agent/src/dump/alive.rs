//! Tells the parked threads, during the stop, and the snapshots after it that we are alive.

use holo_rm::page::Page;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Tells them so as long as it lives.
pub(super) struct Alive {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Alive {
    /// From now on, for so long at most.
    pub(super) fn start(pages: Vec<Arc<Page>>, most: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let until = Instant::now() + most;
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) && Instant::now() < until {
                pages.iter().for_each(|page| page.keep_alive());
                thread::park_timeout(Duration::from_millis(50));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
