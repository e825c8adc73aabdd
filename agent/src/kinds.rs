//! The registry: every kind of resource, in the order of the phases, with the reason for its place.

use crate::files::Files;
use holo_rm::kinds::aio::Aio;
use holo_rm::kinds::descriptors::Descriptors;
use holo_rm::kinds::ipc::Ipc;
use holo_rm::kinds::memory::Memory;
use holo_rm::kinds::process::Process;
use holo_rm::kinds::shared::SharedObjects;
use holo_rm::kinds::shared_pages::{SharedPages, Watching};
use holo_rm::kinds::signals::Signals;
use holo_rm::kinds::stops::Stops;
use holo_rm::kinds::sysv_msg::SysvMsg;
use holo_rm::kinds::sysv_sem::SysvSem;
use holo_rm::kinds::sysv_shm::SysvShm;
use holo_rm::kinds::threads::Threads;
use holo_rm::kinds::timers::Timers;
use holo_rm::kinds::tree::Tree;
use holo_rm::registry::Registry;
use holo_rm::track::{Engine, Tracking};

/// Managers for one application.
#[must_use]
pub fn registry(
    files: impl FnOnce(SharedPages) -> Files,
    roots: Vec<std::path::PathBuf>,
    engine: Engine,
) -> Registry {
    let shared = SharedObjects::new();
    let mappings = shared.clone();
    let ipc = Ipc::default();
    let tracking = Tracking::by(engine);
    let shared_pages = SharedPages::new(tracking.clone());
    let files = files(shared_pages.clone());
    let registry = Registry::new()
        // First: who is there. The clone's processes are made before all kinds.
        .application(Box::new(Tree::default()))
        // What of them is stopped: likewise.
        .application(Box::new(Stops))
        // Before files, descriptors and memory: waits for what is under way, which changes them. Contexts are made with memory.
        .process(|| Box::new(Aio::default()))
        // Before files and memory: says where processes have stored to what they share.
        .application(Box::new(Watching::new(shared_pages.clone(), roots.clone())))
        // Before processes and descriptors: a working directory may be one that this puts in place, and so are the files that they
        // open.
        .application(Box::new(files))
        // It refuses what cannot be dumped at all, and gives each process its directory.
        .process(|| Box::new(Process::default()))
        // Before memory: says which shared objects it has staged already.
        .application(Box::new(Descriptors::new(shared, ipc.clone())))
        // Before memory, which attaches the segments; those that had been removed are removed in POST, after that.
        .application(Box::new(SysvShm::new(ipc.clone(), shared_pages.clone())))
        // Before threads: for a moment they make processes with the numbers of some that have ended.
        .application(Box::new(SysvSem::new(ipc.clone())))
        .application(Box::new(SysvMsg::new(ipc.clone())))
        // After the kinds that tell it of objects of a namespace.
        .application(Box::new(ipc))
        // After what asks the process much: its snapshot is the last that is done to its memory. At a restore
        // libholo's own text comes with it, on which threads are made.
        .process(move || {
            Box::new(Memory::new(roots.clone(), mappings.clone(), tracking.clone(), shared_pages.clone()))
        })
        // After memory: handlers point into it.
        .process(|| Box::new(Signals::default()))
        // Armed (POST, reverse order) when threads are there and before signals that are pending.
        .process(|| Box::new(Timers::default()))
        // Last: from here on the process has its shape.
        .process(|| Box::new(Threads));
    match std::env::var_os("HOLO_FAULTS") {
        Some(orders) => registry.failing(orders.as_ref()),
        None => registry,
    }
}
