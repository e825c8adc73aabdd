//! The registry: every kind of resource, in the order of the phases, with the reason for its place.

use crate::files::Files;
use holo_rm::kinds::descriptors::Descriptors;
use holo_rm::kinds::memory::Memory;
use holo_rm::kinds::process::Process;
use holo_rm::kinds::shared::SharedObjects;
use holo_rm::kinds::signals::Signals;
use holo_rm::kinds::threads::Threads;
use holo_rm::kinds::timers::Timers;
use holo_rm::manager::ResourceManager;

/// Managers for one application.
#[must_use]
pub fn registry(files: Files, roots: Vec<std::path::PathBuf>) -> Vec<Box<dyn ResourceManager>> {
    let shared = SharedObjects::new();
    let memory = Memory::new(roots, shared.clone());
    vec![
        // First: it refuses what cannot be dumped at all, and gives the clone its directory and group.
        Box::new(Process),
        // Before descriptors: they open the files that this puts in place.
        Box::new(files),
        // Before memory: says which shared objects it has staged already.
        Box::new(Descriptors::new(shared)),
        // After what asks the process much: its snapshot is the last that is done to its memory. At a restore
        // libholo's own text comes with it, on which threads are made.
        Box::new(memory),
        // After memory: handlers point into it.
        Box::new(Signals),
        // Armed (POST, reverse order) when threads are there and before signals that are pending.
        Box::new(Timers),
        // Last: from here on the process has its shape.
        Box::new(Threads),
    ]
}
