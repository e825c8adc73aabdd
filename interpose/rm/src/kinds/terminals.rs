//! Terminals: sides of pseudo-terminals of the application, and those from outside, which are attached to new ones, or to
//! files.

use super::kernel::{self, Bytes};
use super::open::{Dumping, Each, Making, Open, path_of, reads, writes};
use super::ptys;
use crate::manager::{Context, RmResult};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PTMX: (u32, u32) = (5, 2);

/// Which side of what a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// A terminal whose other side is not in the application.
    Outside,
    /// The controlling side of a pseudo-terminal.
    Master(u32),
    /// The other side.
    Slave(u32),
    /// The other side of one that is gone.
    HungUp,
}

/// An open terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TerminalState {
    /// Its device.
    path: Bytes,
    pub(crate) end: End,
}

/// Whether a character device is a terminal.
pub(crate) fn is_terminal(open: &Open) -> bool {
    let device = open.stat.st_rdev;
    // Virtual and serial consoles, /dev/tty and /dev/console, pseudo-terminals.
    matches!(libc::major(device), 4 | 5 | 136..=143 | 229)
}

impl TerminalState {
    /// A slave may turn out to be from outside when all are known, see [`ptys::capture`].
    pub(crate) fn describe(open: &Open, _: &mut Dumping) -> RmResult<Self> {
        let device = open.stat.st_rdev;
        let end = if (libc::major(device), libc::minor(device)) == PTMX {
            End::Master(ptys::number_of_master(open).on("numbering", open.named())?)
        } else {
            match ptys::number_of_slave(open) {
                Ok(Some(number)) => End::Slave(number),
                Err(cause) if cause.raw_os_error() == Some(libc::EIO) => End::HungUp,
                Ok(None) | Err(_) => End::Outside,
            }
        };
        Ok(Self { path: Bytes(open.link.as_bytes().to_vec()), end })
    }
}

/// Opens those of the application; attaches others: standard ones to what was given, all others to the same or to nothing.
pub(crate) fn recreate(all: &Each<TerminalState>, making: &mut Making) -> RmResult<()> {
    for (index, state) in all {
        let flags = making.flags(*index) & (libc::O_ACCMODE | libc::O_NONBLOCK);
        match state.end {
            End::Master(number) => making.put(*index, making.terminals.master(number)?)?,
            End::Slave(number) => making.put(*index, making.terminals.open_slave(number, flags)?)?,
            End::HungUp if !making.is_stdio(*index) => {
                making.put(*index, making.terminals.hung_up(flags)?)?;
            }
            End::HungUp | End::Outside => {
                lead_outside(*index, making)?;
                if !making.is_stdio(*index) {
                    let path = path_of(&state.path.0);
                    making.remark(*index, format!("terminal {} was replaced", path.display()));
                }
            }
        }
    }
    making.terminals.close_up()
}

/// Gives a description that led outside a new end: what was given for the standard descriptors, else
/// `/dev/null` for reading and the output file for writing. Numbers 0, 1 and 2 get one each, also where
/// they shared a description.
pub(crate) fn lead_outside(index: u32, making: &mut Making) -> RmResult<()> {
    let flags = making.flags(index);
    for place in making.numbers(index).to_vec() {
        let (_, number) = place;
        if (0..=2).contains(&number) {
            let fd = match making.stdio.get(number as usize) {
                Some(given) => attach(given, flags).on("attaching standard descriptor", number)?,
                None if number == 0 => null(flags)?,
                None => nobody(flags, making.output)?,
            };
            making.replaced.insert(place, fd);
        }
    }
    let fd = match making.stdio.get(usize::from(writes(flags))) {
        Some(given) => attach(given, flags).on("attaching descriptor", making.common(index).number)?,
        None => nobody(flags, making.output)?,
    };
    making.put(index, fd)
}

/// What was given, with a description of its own where that is possible: flags of the application must not
/// become those of somebody's terminal.
fn attach(given: &OwnedFd, flags: i32) -> std::io::Result<OwnedFd> {
    let mode = flags & (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND);
    let terminal = nix::unistd::isatty(given).unwrap_or(false);
    if terminal && let Ok(own) = kernel::reopen(given, mode | libc::O_NOCTTY) {
        return Ok(own);
    }
    given.try_clone()
}

fn null(flags: i32) -> RmResult<OwnedFd> {
    kernel::open(Path::new("/dev/null"), flags & (libc::O_ACCMODE | libc::O_NONBLOCK), 0)
        .on("opening", "/dev/null")
}

fn nobody(flags: i32, output: &Path) -> RmResult<OwnedFd> {
    if reads(flags) && !writes(flags) {
        return null(flags);
    }
    let append = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | flags & libc::O_NONBLOCK;
    kernel::open(output, append, 0o600).on("opening", output.display())
}
