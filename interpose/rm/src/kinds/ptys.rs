//! Pseudo-terminals of which both sides are in the application: modes, size, sessions, and what was not read yet.
//!
//! A clone has a `devpts` of its own, where each gets the number that it had. The pairs are made before the processes,
//! since a controlling terminal is inherited: the leader of a session takes it before it has children.

use super::kernel::{self, checked, ioctl_int, open, owned};
use super::line::{self, Content, Termios};
use super::open::Open;
use super::sockets::poll;
use super::terminals::{End, TerminalState};
use crate::manager::{Context, DumpCx, RmError, RmResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// Name of the section.
pub const NAME: &str = "terminals";
/// Version of the section.
pub const VERSION: u16 = 1;

/// Numbers that a `devpts` gives out.
const NUMBERS_MAX: u32 = 4096;
const TIOCGPTN: libc::c_ulong = 0x8004_5430;
const TIOCSPTLCK: libc::c_ulong = 0x4004_5431;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
const TIOCGPTPEER: libc::c_ulong = 0x5441;
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
const SLAVE_MAJOR: u32 = 136;

/// Whether the other side of a master is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// Nobody has opened it yet: the master waits.
    Never,
    /// Open.
    Open,
    /// All have closed it: the master reads an error.
    Closed,
}

/// A pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyState {
    /// `/dev/pts/<number>`.
    number: u32,
    termios: Termios,
    window: [u16; 4],
    packet: bool,
    locked: bool,
    /// `TIOCEXCL` of master and slave.
    exclusive: [bool; 2],
    /// Mode, owner, group of the slave's node.
    node: [u32; 3],
    peer: Peer,
    /// Process group in the foreground, 0: none of the application.
    foreground: i32,
    content: Content,
}

/// State.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalsState {
    /// Pairs.
    pub ptys: Vec<PtyState>,
    /// Processes (places in the tree) that have one of them as controlling terminal, and its number.
    pub controlling: Vec<(u32, u32)>,
}

impl TerminalsState {
    /// What an image says, or that it is malformed.
    ///
    /// # Errors
    /// A number that is there twice or cannot be, a process that is not there.
    pub fn check(&self, processes: usize) -> RmResult<()> {
        let bad = |what: String| Err(RmError::BadSection { kind: NAME, what });
        for (index, pty) in self.ptys.iter().enumerate() {
            if pty.number >= NUMBERS_MAX || self.ptys[..index].iter().any(|other| other.number == pty.number)
            {
                return bad(format!("pseudo-terminal {}", pty.number));
            }
        }
        for (process, number) in &self.controlling {
            if *process as usize >= processes || !self.ptys.iter().any(|pty| pty.number == *number) {
                return bad(format!("terminal {number} of process {process} of {processes}"));
            }
        }
        Ok(())
    }
}

/// Number of the pair that a master leads.
pub(crate) fn number_of_master(fd: &impl AsRawFd) -> std::io::Result<u32> {
    ioctl_int(fd, TIOCGPTN).map(i32::cast_unsigned)
}

/// Number of a slave; none: another terminal. An error if it was hung up.
pub(crate) fn number_of_slave(fd: &impl AsRawFd) -> std::io::Result<Option<u32>> {
    let device = ioctl_int(fd, TIOCGDEV)?.cast_unsigned();
    Ok(number_of_device(device))
}

/// From the kernel's new encoding of a device.
fn number_of_device(device: u32) -> Option<u32> {
    (device >> 8 & 0xfff == SLAVE_MAJOR).then_some(device & 0xff | device >> 12 & 0xf_ff00)
}

/// The group that is `outer` here, as its processes see it.
fn inner_group(cx: &DumpCx, outer: i32) -> i32 {
    let of = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("NSpgid:"))?;
        let ids: Vec<i32> = line.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        (ids.first() == Some(&outer)).then(|| ids.last().copied())?
    };
    cx.processes.iter().find_map(|process| of(process.remote.pid)).unwrap_or(0)
}

fn window(fd: &impl AsRawFd) -> std::io::Result<[u16; 4]> {
    let mut size = [0u16; 4];
    // SAFETY: room for `struct winsize`.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) }).map(|_| size)
}

/// A slave of a master, with a description of its own.
fn peer(master: &impl AsRawFd) -> std::io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: flags only.
    owned(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags) })
}

/// Reads the pairs of all masters in the application; slaves that are of none are told to be from outside.
pub(crate) fn capture(
    cx: &DumpCx,
    opens: &[Open],
    terminals: &mut [(u32, TerminalState)],
) -> RmResult<TerminalsState> {
    let mut state = TerminalsState::default();
    if terminals.is_empty() {
        return Ok(state);
    }
    let masters: BTreeMap<u32, u32> = terminals
        .iter()
        .filter_map(|(index, terminal)| match terminal.end {
            End::Master(number) => Some((number, *index)),
            End::Slave(_) | End::HungUp | End::Outside => None,
        })
        .collect();
    let mut slaves: BTreeMap<u32, u32> = BTreeMap::new();
    for (index, terminal) in terminals.iter_mut() {
        let End::Slave(number) = terminal.end else { continue };
        let open = &opens[*index as usize];
        let path = cx.processes[open.process].remote.proc(&format!("root/dev/pts/{number}"));
        // One of another `devpts` may have the same number.
        let same = libc::major(open.stat.st_rdev) != SLAVE_MAJOR
            || kernel::identity(&path, true).is_none_or(|key| key == open.key());
        if masters.contains_key(&number) && same {
            slaves.entry(number).or_insert(*index);
        } else {
            terminal.end = End::Outside;
        }
    }
    for (number, index) in &masters {
        let master = &opens[*index as usize];
        let slave = slaves.get(number).map(|index| &opens[*index as usize]);
        state.ptys.push(describe(cx, *number, master, slave)?);
    }
    for (index, process) in cx.processes.iter().enumerate() {
        let terminal = process.remote.stat().and_then(|stat| number_of_device(stat.terminal.cast_unsigned()));
        if let Some(number) = terminal.filter(|number| masters.contains_key(number)) {
            state.controlling.push((index as u32, number));
        }
    }
    Ok(state)
}

fn describe(cx: &DumpCx, number: u32, master: &Open, slave: Option<&Open>) -> RmResult<PtyState> {
    let name = || master.named();
    let flag = |request| ioctl_int(master, request).map(|value| value != 0).on("asking", name());
    let exclusive_of = |of: &Open| ioctl_int(of, TIOCGEXCL).map(|value| value != 0).on("asking", of.named());
    let is_exclusive = [exclusive_of(master)?, slave.map_or(Ok(false), exclusive_of)?];
    let node = cx.processes[master.process].remote.proc(&format!("root/dev/pts/{number}"));
    let node = fs::metadata(&node).map_or([0o620, 0, 0], |meta| {
        use std::os::unix::fs::MetadataExt;
        [meta.mode() & 0o7777, meta.uid(), meta.gid()]
    });
    let closed = poll(master, 0, 0) & libc::POLLHUP != 0;
    let peer = match (slave, closed) {
        (Some(_), _) => Peer::Open,
        (None, true) => Peer::Closed,
        (None, false) => Peer::Never,
    };
    let mut outer = 0i32;
    // SAFETY: writes one int.
    let asked = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPGRP, &raw mut outer) };
    let foreground = if asked == 0 && outer > 0 { inner_group(cx, outer) } else { 0 };
    let (packet, locked) = (flag(TIOCGPKT)?, flag(TIOCGPTLCK)?);
    let termios = Termios::of(master).on("reading modes of", name())?;
    let content = match peer {
        // It cannot be looked into without opening the other side for the first time.
        Peer::Never => Content::default(),
        Peer::Open | Peer::Closed => {
            let probe = |modes: [&Termios; 2]| match slave {
                Some(slave) => line::count_as(&cx.processes[slave.process].remote, slave.number, modes),
                None => Ok(0),
            };
            let open = || match slave {
                // Only root may open it as it is; all who could see the difference are parked.
                Some(slave) if is_exclusive[1] => {
                    set_exclusive(slave, false)?;
                    let own = self::peer(master);
                    set_exclusive(slave, true)?;
                    own
                }
                Some(_) | None => self::peer(master),
            };
            line::capture(master, slave.map(|slave| &slave.fd), &termios, packet, &open, &probe)
                .on("reading what is queued in", name())?
        }
    };
    Ok(PtyState {
        number,
        termios,
        window: window(master).on("reading the size of", name())?,
        packet,
        locked,
        exclusive: is_exclusive,
        node,
        peer,
        foreground,
        content,
    })
}

struct Pair {
    master: OwnedFd,
    slave: Option<OwnedFd>,
}

/// The pairs of a clone in the making. Those sides that the agent holds are closed when it is dropped.
#[derive(Default)]
pub struct Terminals {
    state: TerminalsState,
    pairs: BTreeMap<u32, Pair>,
    /// `/dev/pts` as the clone sees it.
    place: PathBuf,
}

impl Terminals {
    /// Makes the pairs in the `devpts` of the clone whose init is `init`.
    pub(crate) fn make(state: TerminalsState, init: i32) -> RmResult<Self> {
        let place = PathBuf::from(format!("/proc/{init}/root/dev/pts"));
        let mut made = Self { state, pairs: BTreeMap::new(), place };
        let last = made.state.ptys.iter().map(|pty| pty.number).max();
        let mut held = Vec::new();
        // The lowest free number is given out; those between are given back.
        while let Some(last) = last.filter(|_| made.pairs.len() < made.state.ptys.len()) {
            let path = made.place.join("ptmx");
            let flags = libc::O_RDWR | libc::O_NOCTTY;
            let master = open(&path, flags, 0).on("making a pseudo-terminal at", path.display())?;
            let number = number_of_master(&master).on("numbering", path.display())?;
            if number > last {
                return Err(RmError::Unsupported(format!("pseudo-terminal {number} came before {last}")));
            }
            if made.state.ptys.iter().any(|pty| pty.number == number) {
                made.pairs.insert(number, Pair { master, slave: None });
            } else {
                held.push(master);
            }
        }
        for pty in &made.state.ptys {
            let Some(pair) = made.pairs.get_mut(&pty.number) else { continue };
            set_up(pty, pair, &made.place).on("setting up pseudo-terminal", pty.number)?;
        }
        Ok(made)
    }

    /// The slave that is the controlling terminal of a process.
    pub(crate) fn of_process(&self, index: usize) -> Option<&OwnedFd> {
        let (_, number) = self.state.controlling.iter().find(|(process, _)| *process as usize == index)?;
        self.pairs.get(number)?.slave.as_ref()
    }

    /// The group in the foreground of the terminal of a process, if there is one.
    pub(crate) fn foreground(&self, index: usize) -> Option<i32> {
        let (_, number) = self.state.controlling.iter().find(|(process, _)| *process as usize == index)?;
        let pty = self.state.ptys.iter().find(|pty| pty.number == *number)?;
        (pty.foreground > 0).then_some(pty.foreground)
    }

    /// A duplicate of a master.
    pub(crate) fn master(&self, number: u32) -> RmResult<OwnedFd> {
        let pair = self.pairs.get(&number).ok_or_else(|| missing(number))?;
        pair.master.try_clone().on("duplicating pseudo-terminal", number)
    }

    /// A slave with a description of its own.
    pub(crate) fn open_slave(&self, number: u32, flags: i32) -> RmResult<OwnedFd> {
        if !self.pairs.contains_key(&number) {
            return Err(missing(number));
        }
        open(&self.place.join(number.to_string()), flags | libc::O_NOCTTY, 0)
            .on("opening pseudo-terminal", number)
    }

    /// A slave whose master is gone.
    pub(crate) fn hung_up(&self, flags: i32) -> RmResult<OwnedFd> {
        let what = "a terminal that was hung up";
        let path = self.place.join("ptmx");
        let path = if path.exists() { path } else { PathBuf::from("/dev/ptmx") };
        let master = open(&path, libc::O_RDWR | libc::O_NOCTTY, 0).on("making", what)?;
        set_int(&master, TIOCSPTLCK, 0).on("making", what)?;
        let first = peer(&master).on("making", what)?;
        kernel::reopen(&first, flags | libc::O_NOCTTY).on("making", what)
    }

    /// All are open as they are to be: nobody else is let in.
    pub(crate) fn close_up(&self) -> RmResult<()> {
        for pty in &self.state.ptys {
            let Some(pair) = self.pairs.get(&pty.number) else { continue };
            let locked = || set_int(&pair.master, TIOCSPTLCK, i32::from(pty.locked));
            let own = || if pty.exclusive[0] { set_exclusive(&pair.master, true) } else { Ok(()) };
            let slave = || match &pair.slave {
                Some(slave) if pty.exclusive[1] => set_exclusive(slave, true),
                Some(_) | None => Ok(()),
            };
            locked()
                .and_then(|()| own())
                .and_then(|()| slave())
                .on("closing up pseudo-terminal", pty.number)?;
        }
        Ok(())
    }
}

fn missing(number: u32) -> RmError {
    RmError::BadSection { kind: NAME, what: format!("pseudo-terminal {number} was not made") }
}

fn set_int(fd: &impl AsRawFd, request: libc::c_ulong, value: i32) -> std::io::Result<()> {
    // SAFETY: callers use requests that read an `int`.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) }).map(|_| ())
}

fn set_exclusive(fd: &impl AsRawFd, on: bool) -> std::io::Result<()> {
    let request = if on { libc::TIOCEXCL } else { libc::TIOCNXCL };
    // SAFETY: no memory is passed.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request) }).map(|_| ())
}

fn set_up(pty: &PtyState, pair: &mut Pair, place: &std::path::Path) -> std::io::Result<()> {
    let master = &pair.master;
    set_int(master, TIOCSPTLCK, 0)?;
    // SAFETY: a whole `struct winsize`.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, pty.window.as_ptr()) })?;
    let [mode, uid, gid] = pty.node;
    let node = place.join(pty.number.to_string());
    // An ordinary user can give nothing away; mode first, since root may lose it otherwise.
    let _ = std::os::unix::fs::chown(&node, Some(uid), None);
    let _ = std::os::unix::fs::chown(&node, None, Some(gid));
    let _ = fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(mode));
    match pty.peer {
        Peer::Never => pty.termios.set(master)?,
        Peer::Open | Peer::Closed => {
            let slave = peer(master)?;
            pty.content.refill(master, &slave, &pty.termios)?;
            pair.slave = Some(slave);
        }
    }
    if pty.packet { set_int(master, libc::TIOCPKT, 1) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pty(number: u32) -> PtyState {
        PtyState {
            number,
            termios: Termios::default(),
            window: [24, 80, 0, 0],
            packet: false,
            locked: false,
            exclusive: [false; 2],
            node: [0o620, 0, 0],
            peer: Peer::Open,
            foreground: 0,
            content: Content::default(),
        }
    }

    #[test]
    fn forged_terminals_are_refused() {
        let state = |numbers: &[u32], controlling: &[(u32, u32)]| TerminalsState {
            ptys: numbers.iter().map(|number| pty(*number)).collect(),
            controlling: controlling.to_vec(),
        };
        assert!(state(&[0, 3], &[(1, 3)]).check(2).is_ok());
        assert!(state(&[3, 3], &[]).check(2).is_err());
        assert!(state(&[1 << 20], &[]).check(2).is_err());
        assert!(state(&[3], &[(2, 3)]).check(2).is_err());
        assert!(state(&[3], &[(1, 4)]).check(2).is_err());
    }

    #[test]
    fn devices_have_numbers() {
        assert_eq!(number_of_device(0x8803), Some(3));
        assert_eq!(number_of_device(0x0010_8803), Some(0x103));
        assert_eq!(number_of_device(0x0403), None);
    }
}
