//! The `holo` command.
//!
//! `main` is C's: the start-up of Rust's runtime ignores `SIGPIPE` and opens `/dev/null` in place of closed
//! standard descriptors, and `holo run` would hand both on to the application.

#![no_main]

use std::ffi::{c_char, c_int};

/// Entry; the arguments are read with [`std::env::args_os`], which glibc fills before `main`.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    holo_tools::cmd::main()
}
