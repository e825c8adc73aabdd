//! One file per kind of resource.

pub mod devices;
pub mod eventfd;
pub mod fdinfo;
pub mod files;
pub mod kernel;
pub mod locks;
pub mod memfd;
pub mod memory;
mod memory_restore;
mod objects;
pub mod open;
pub mod owner;
pub mod pagemap;
pub mod process;
pub mod shared;
pub mod signalfd;
pub mod signals;
pub mod sockdiag;
pub mod terminals;
pub mod threads;
pub mod timers;
pub mod vdso;
pub mod zones;
