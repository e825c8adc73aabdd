//! Memory of a restored application that is still to come while it runs (`holo_rm::clone::Late`).

use crate::app::{App, Failure};
use crate::members::init_of;
use crate::record::Instance;
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

/// Memory of an instance.
pub(crate) enum Memory {
    /// All of it.
    There,
    Comes(Late),
    /// What is missing of it cannot be had, and why.
    Lost(String),
}

/// How far it is.
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
    Lost(String),
}

impl App {
    /// This is the memory of the instance from now on.
    pub(crate) fn await_memory(self: &Arc<Self>, memory: Memory) {
        let late = match memory {
            Memory::There => return self.has_memory(State::There),
            Memory::Lost(cause) => return self.has_memory(State::Lost(cause)),
            Memory::Comes(late) => late,
        };
        self.has_memory(State::Comes);
        let app = Arc::clone(self);
        thread::spawn(move || {
            let finished = late.finish();
            app.has_memory(finished.map_or_else(State::Lost, |()| State::There));
        });
    }

    fn has_memory(&self, state: State) {
        if let State::Lost(cause) = &state {
            eprintln!("holod: {}: {cause}", self.name);
        }
        *self.coming.state.lock() = state;
        self.coming.changed.notify_all();
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
            State::Lost(cause) => Err(Failure::new(ErrorKind::BadImage, format!("{}: {cause}", self.name))),
        }
    }

    /// The agent before this one may have died while memory was to come: it goes on.
    pub(crate) fn memory_of(&self, instance: &Instance) -> Memory {
        let pages = pages_that_wait(instance);
        let Some(first) = pages.first() else { return Memory::There };
        let epoch = first.control().header.late_epoch.load(Ordering::SeqCst);
        let image = self.store.open_epoch(epoch).map(Arc::new);
        let resumed = image.map_err(|cause| cause.to_string()).and_then(|image| {
            let init = init_of(instance.real_pid).ok_or("the init of its namespace is not found")?;
            Late::resume(&image, init, &pages).map_err(|cause| cause.to_string())
        });
        match resumed {
            Ok(late) => {
                eprintln!("holod: {}: the rest of its memory is read from epoch {epoch}", self.name);
                Memory::Comes(late)
            }
            Err(cause) => {
                Memory::Lost(format!("memory that is to come from epoch {epoch} cannot be read: {cause}"))
            }
        }
    }
}

/// Control pages of processes of which memory is missing.
fn pages_that_wait(instance: &Instance) -> Vec<Arc<Page>> {
    // As they were named when the clone was made.
    let base = instance.page.with_extension("");
    let paths = (0..holo_rm::kinds::tree::PROCESSES_MAX).map(|number| page_path(&base, number));
    let pages = paths.take_while(|path| path.exists()).filter_map(|path| Page::open(&path).ok());
    let waits = |page: &Page| page.control().header.late.load(Ordering::SeqCst) != 0;
    pages.filter(waits).map(Arc::new).collect()
}
