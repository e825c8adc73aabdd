//! What the application has asked for, as pure state: signal actions, environment for `exec`, time-outs.
//!
//! No I/O and no system calls here; `holo-interpose` performs what this crate decides.
#![no_std]

pub mod actions;
pub mod awaited;
pub mod changes;
pub mod environ;
pub mod names;
pub mod positions;
pub mod timeout;
