//! The `holo` command: what its subcommands do, apart from the process entry in `main.rs`.
//!
//! Everything that needs an agent goes through [`client`]; everything that an application would inherit
//! (descriptors, signal dispositions, parentage) is dealt with in [`daemon`] and [`exec`].

pub mod args;
pub mod client;
pub mod cmd;
pub mod daemon;
pub mod doctor;
pub mod error;
pub mod exec;
pub mod human;
pub mod json;
pub mod paths;
pub mod program;
pub mod progress;
pub mod stdio;
pub mod table;
