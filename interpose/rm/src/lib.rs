//! Resource managers: what an application has, how it is captured and made again.
//!
//! Linked by the agent, which captures from outside: a parked thread of the application serves system calls
//! ([`remote`]), so that the code that runs inside other people's programs stays small.

pub mod asks;
pub mod at_once;
pub mod barrier;
pub mod clone;
mod corpses;
pub mod face;
mod family;
pub mod faults;
mod fds;
pub mod filters;
mod grow;
pub mod install;
pub mod kinds;
pub mod leases;
pub mod manager;
pub mod page;
pub(crate) mod proc_file;
pub mod registry;
pub mod remote;
pub mod snapshot;
pub mod staging;
mod starters;
mod stopped;
pub mod tasks;
mod traced;
pub mod track;
pub mod tree;
