//! Write-protection is lifted again where a process asks for it.
//!
//! A thread that is to make a call which would find protected zones (`interpose/src/moves.rs`) raises
//! [`Header::hands_off`], enters the range in [`Control::lifts`] and waits. For each page with protected zones a
//! thread of the agent answers. Nothing is protected while `hands_off` is not zero: both sides look under the lock here.
//!
//! [`Header::hands_off`]: holo_abi::control::Header::hands_off
//! [`Control::lifts`]: holo_abi::control::Control::lifts

use crate::page::{Page, wake};
use holo_abi::control::{lift, tracked};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long a watch outlives what it watches.
const LINGER: Duration = Duration::from_millis(500);

/// What holds protected zones.
pub(crate) trait Holder: Send + Sync {
    /// Lifts the protection of a range, or of more.
    fn lift(&self, start: u64, end: u64);
}

#[derive(Default)]
struct Inner {
    /// By page; an entry has a thread.
    watched: HashMap<usize, Vec<Weak<dyn Holder>>>,
}

/// The holders of one application. Clones are the same set.
#[derive(Clone, Default)]
pub struct Lifts(Arc<Mutex<Inner>>);

fn id(page: &Arc<Page>) -> usize {
    Arc::as_ptr(page) as usize
}

impl Lifts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `protect` with what `holder` holds, unless a process of the page has asked to keep hands off.
    pub(crate) fn protecting<T>(
        &self,
        page: &Arc<Page>,
        holder: &Arc<dyn Holder>,
        protect: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut inner = self.lock();
        let header = &page.control().header;
        header.tracked.store(tracked::NOW | tracked::EVER, Ordering::SeqCst);
        let fresh = !inner.watched.contains_key(&id(page));
        let holders = inner.watched.entry(id(page)).or_default();
        if !holders.iter().any(|known| known.upgrade().is_some_and(|known| Arc::ptr_eq(&known, holder))) {
            holders.push(Arc::downgrade(holder));
        }
        if fresh {
            let (lifts, of) = (self.clone(), Arc::clone(page));
            let watch = move || while lifts.answer(&of) {};
            if std::thread::Builder::new().name("lifts".into()).stack_size(64 << 10).spawn(watch).is_err() {
                inner.watched.remove(&id(page));
                return None;
            }
        }
        (header.hands_off.load(Ordering::SeqCst) == 0).then(protect)
    }

    /// Answers what is asked, then waits. False: nothing is protected any more.
    fn answer(&self, page: &Arc<Page>) -> bool {
        let header = &page.control().header;
        let asked = header.lifts_asked.load(Ordering::SeqCst);
        {
            let mut inner = self.lock();
            let Some(holders) = inner.watched.get_mut(&id(page)) else { return false };
            holders.retain(|holder| holder.strong_count() > 0);
            for lift in &page.control().lifts {
                if lift.state.load(Ordering::SeqCst) != lift::ASKED {
                    continue;
                }
                let (start, end) = (lift.start.load(Ordering::SeqCst), lift.end.load(Ordering::SeqCst));
                holders.iter().filter_map(Weak::upgrade).for_each(|holder| holder.lift(start, end));
                // Who asked may have given up meanwhile.
                let _ =
                    lift.state.compare_exchange(lift::ASKED, lift::DONE, Ordering::SeqCst, Ordering::SeqCst);
                wake(&lift.state);
            }
            if holders.is_empty() {
                inner.watched.remove(&id(page));
                header.tracked.store(tracked::EVER, Ordering::SeqCst);
                return false;
            }
        }
        let linger = libc::timespec { tv_sec: 0, tv_nsec: LINGER.as_nanos() as i64 };
        // SAFETY: a word of the page, which lives as long as `page`, and a time-out.
        unsafe {
            let word = header.lifts_asked.as_ptr();
            libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, asked, &raw const linger);
        }
        true
    }
}
