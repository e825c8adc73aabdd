//! The unsafe corner: raw system calls, thread-local words, the gate, the call server, call-site patching.
//!
//! `no_std`, no allocation, no libc: this code runs inside other people's programs, in their signal
//! handlers and between `vfork` and `exec`. Assembly stands beside the Rust that knows its labels.
#![no_std]

pub mod frame;
pub mod gate;
pub mod mem;
pub mod patch;
pub mod raw;
pub mod serve;
pub mod tls;
pub mod traps;
