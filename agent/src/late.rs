//! Memory of a restored application that is still to come while it runs (`holo_rm::clone::Late`).

use crate::app::{App, Failure};
use crate::members::init_of;
use holo_api::local::ErrorKind;
use holo_rm::clone::{Late, page_path};
use holo_rm::page::Page;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// For how long somebody waits for all of it, who cannot do anything before.
const PATIENCE: Duration = Duration::from_secs(120);

/// How far it is; none: nothing is to come.
#[derive(Default)]
pub(crate) struct Coming {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    There,
    Comes,
    Failed(String),
}

impl App {
    /// Memory of the instance comes from now on.
    pub(crate) fn await_memory(self: &Arc<Self>, late: Late) {
        *self.coming.state.lock() = State::Comes;
        let app = Arc::clone(self);
        thread::spawn(move || {
            let state = match late.finish() {
                Ok(()) => State::There,
                Err(cause) => {
                    eprintln!("holod: {}: {cause}", app.name);
                    State::Failed(cause)
                }
            };
            *app.coming.state.lock() = state;
            app.coming.changed.notify_all();
        });
    }

    /// Returns when all memory of the instance is there.
    ///
    /// # Errors
    /// It cannot be had.
    pub(crate) fn all_there(&self) -> Result<(), Failure> {
        let mut state = self.coming.state.lock();
        let comes = |state: &mut State| matches!(state, State::Comes);
        self.coming.changed.wait_while_for(&mut state, comes, PATIENCE);
        match &*state {
            State::There => Ok(()),
            State::Comes => {
                let what = format!("{}: its memory is still being read from its last epoch", self.name);
                Err(Failure::new(ErrorKind::Failed, what))
            }
            State::Failed(cause) => Err(Failure::new(ErrorKind::BadImage, format!("{}: {cause}", self.name))),
        }
    }

    /// The agent before this one has died while memory was to come: it goes on.
    pub(crate) fn resume_memory(self: &Arc<Self>) {
        let pages = self.pages_that_wait();
        let Some(first) = pages.first() else { return };
        let epoch = first.control().header.late_epoch.load(Ordering::SeqCst);
        let image = self.store.open_epoch(epoch).map(Arc::new);
        let resumed = image.map_err(|cause| cause.to_string()).and_then(|image| {
            let instance = self.instance().ok_or("its process has ended")?.0;
            let init = init_of(instance.real_pid).ok_or("the init of its namespace is not found")?;
            Late::resume(&image, init, &pages).map_err(|cause| cause.to_string())
        });
        match resumed {
            Ok(late) => {
                eprintln!("holod: {}: the rest of its memory is read from epoch {epoch}", self.name);
                self.await_memory(late);
            }
            Err(cause) => {
                let what = format!("memory that is to come from epoch {epoch} cannot be read: {cause}");
                eprintln!("holod: {}: {what}", self.name);
                *self.coming.state.lock() = State::Failed(what);
            }
        }
    }

    /// Control pages of processes of which memory is missing.
    fn pages_that_wait(&self) -> Vec<Arc<Page>> {
        let Some((instance, _)) = self.instance() else { return Vec::new() };
        // As they were named when the clone was made.
        let base = instance.page.with_extension("");
        let paths = (0..holo_rm::kinds::tree::PROCESSES_MAX).map(|number| page_path(&base, number));
        let pages = paths.take_while(|path| path.exists()).filter_map(|path| Page::open(&path).ok());
        let waits = |page: &Page| page.control().header.late.load(Ordering::SeqCst) != 0;
        pages.filter(waits).map(Arc::new).collect()
    }
}
