//! Call-site tables: finds the `syscall` instructions of an ELF module and plans their replacement.
//!
//! ```text
//! file -> Module (goblin) -> starts (.eh_frame, symbols) -> code (iced-x86) -> windows -> trampolines -> table
//! ```
//!
//! The table's format is [`holo_abi::sites`]; the library applies it without a disassembler. Code is
//! decoded from known function starts only, never by searching for bytes: a large library can hold
//! thousands of `0f 05` pairs and not one system call. See `docs/internals/sites.md`.
//!
//! [`build`] makes a table, [`cached`] keeps it in a file per build-id, [`parse`] reads one that may be
//! hostile and [`check()`] proves that one does what the module's own code does.

mod cache;
mod check;
mod code;
mod eh_frame;
mod error;
mod module;
mod table;
mod trampoline;
mod window;

use std::path::Path;

pub use cache::cached;
pub use check::check;
pub use error::Error;
pub use module::Module;
pub use table::{SiteView, Table, parse, parse_table};

/// Finds the call sites of the module at `path` and returns their table.
///
/// # Errors
/// [`Error::Read`] when the file cannot be read, [`Error::Elf`] when it is not a usable x86-64 ELF file.
pub fn build(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = module::read(path)?;
    build_from_bytes(&bytes)
}

/// [`build`] for a module that is already in memory. Safe on hostile input.
///
/// # Errors
/// [`Error::Elf`] when `bytes` is not a usable x86-64 ELF file.
pub fn build_from_bytes(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let module = Module::parse(bytes)?;
    build_from_module(&module)
}

/// [`build`] for a module that is already parsed.
///
/// # Errors
/// [`Error::Elf`] when the code is beyond a bound of the format.
pub fn build_from_module(module: &Module<'_>) -> Result<Vec<u8>, Error> {
    let code = code::Code::read(module);
    let plan = window::plan(&code);
    table::encode(module.build_id(), &plan)
}
