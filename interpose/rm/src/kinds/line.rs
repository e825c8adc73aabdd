//! What a pseudo-terminal's line discipline holds: bytes that neither side has read yet.
//!
//! There is no call that only looks. Where something is queued it is taken out and put back, with modes under which bytes
//! come through as they are; where nothing is, which is nearly always, nothing is touched.

use super::kernel::{self, Bytes, checked, readable_bytes};
use super::sockets::poll;
use crate::remote::{Remote, call, outcome};
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;
/// Bytes that a line discipline holds, and those on their way to it.
const QUEUE_MAX: usize = 1 << 17;
const PART: usize = 4096;
/// The line discipline of terminals.
const N_TTY: u8 = 0;
const PATIENCE: Duration = Duration::from_secs(1);
/// Sizes of the kernel's buffers (`TTY_BUFFER_PAGE`).
const SMALL: usize = 256;
const LARGE: usize = 1792;

/// `struct termios2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Termios {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    discipline: u8,
    characters: [u8; 19],
    speeds: [u32; 2],
}

const _: () = assert!(size_of::<Termios>() == 44);

impl Termios {
    /// Modes of the slave, asked for at either side.
    pub(crate) fn of(fd: &impl AsRawFd) -> io::Result<Self> {
        let mut modes = Self::default();
        // SAFETY: room for `struct termios2`.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), TCGETS2, &raw mut modes) }).map(|_| modes)
    }

    /// Sets them at once.
    pub(crate) fn set(&self, fd: &impl AsRawFd) -> io::Result<()> {
        // SAFETY: a whole `struct termios2`.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), TCSETS2, std::ptr::from_ref(self)) }).map(|_| ())
    }

    fn is_canonical(&self) -> bool {
        self.local & libc::ICANON != 0
    }

    fn character(&self, index: usize) -> u8 {
        self.characters[index]
    }

    /// Modes in which bytes come through as they are; lines stay lines.
    fn plain(&self, canonical: bool) -> Self {
        let mut plain = *self;
        (plain.input, plain.output, plain.characters) = (0, 0, [0; 19]);
        plain.local = if canonical { libc::ICANON } else { 0 };
        plain.characters[libc::VMIN] = u8::from(!canonical);
        plain
    }
}

/// How a piece of input ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Ends {
    /// Not yet, or there are no lines.
    Open,
    /// By its last byte.
    Line,
    /// By an end of file.
    File,
}

/// What is queued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    to_master: Bytes,
    to_slave: Vec<(Bytes, Ends)>,
    output: Output,
}

/// Whether the slave's side may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Output {
    /// It may.
    #[default]
    Flows,
    /// Not until the other character (Ctrl-S, Ctrl-Q).
    StoppedByCharacter,
    /// Not until the other order (`tcflow`).
    StoppedByOrder,
}

fn ready(fd: &impl AsRawFd, events: i16) -> i16 {
    poll(fd, events, 0)
}

/// One read that does not wait; none: nothing is there.
fn read(fd: &impl AsRawFd) -> io::Result<Option<Vec<u8>>> {
    let mut part = vec![0u8; PART];
    // SAFETY: the buffer is ours.
    match checked(unsafe { libc::read(fd.as_raw_fd(), part.as_mut_ptr().cast(), part.len()) }) {
        Ok(got) => {
            part.truncate(got as usize);
            Ok(Some(part))
        }
        Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Stops output or lets it go on.
fn flow(slave: &OwnedFd, order: i32) -> io::Result<()> {
    // SAFETY: a number is passed.
    checked(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TCXONC, order) }).map(|_| ())
}

/// Writes all to a side that does not wait; a kernel thread makes room.
///
/// The kernel counts buffers, not bytes: of 256 bytes at least, and one more of up to [`LARGE`] when the count is reached. In
/// pieces of that size, with large ones at the end, all fits that was there before, however it had come.
fn write_patiently(fd: &impl AsRawFd, mut bytes: &[u8]) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        let piece = if bytes.len() > 2 * LARGE { SMALL } else { bytes.len().min(LARGE) };
        // SAFETY: the buffer is ours.
        let done = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), piece) };
        match checked(done) {
            Ok(done) => bytes = &bytes[done as usize..],
            Err(cause) if cause.kind() != io::ErrorKind::WouldBlock => return Err(cause),
            Err(_) if Instant::now() > until => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => std::thread::sleep(Duration::from_micros(20)),
        }
    }
    Ok(())
}

/// How many bytes a process could read in the first modes, which are the second ones' again afterwards. By the process
/// itself, in one list: the modes are right again also if nobody waits for it.
pub(crate) fn count_as(remote: &Remote, number: i32, modes: [&Termios; 2]) -> io::Result<usize> {
    const COUNT: usize = 128;
    let fd = number as u64;
    let at = [0, 64].map(|at| remote.page.scratch_address(at));
    for (modes, offset) in modes.iter().zip([0, 64]) {
        remote.page.put(offset, kernel::bytes_of(*modes));
    }
    let count = remote.page.put(COUNT, &[0; 4]);
    let mut calls = [
        call(sysno::ioctl, &[fd, TCSETS2, at[0]]),
        call(sysno::ioctl, &[fd, libc::FIONREAD, count]),
        call(sysno::ioctl, &[fd, TCSETS2, at[1]]),
    ];
    remote.run(&mut calls, false)?;
    calls.iter().try_for_each(|made| outcome(made).map(|_| ()))?;
    let count = remote.page.take(COUNT, 4);
    Ok(u32::from_le_bytes([count[0], count[1], count[2], count[3]]) as usize)
}

/// Reads what is queued between a master and its slaves, of which `slave` is one. `open` gives another slave, that
/// does not wait; `probe` counts what can be read in other modes.
pub(crate) fn capture(
    master: &impl AsRawFd,
    slave: Option<&OwnedFd>,
    modes: &Termios,
    packet: bool,
    open: &dyn Fn() -> io::Result<OwnedFd>,
    probe: &dyn Fn([&Termios; 2]) -> io::Result<usize>,
) -> io::Result<Content> {
    if modes.discipline != N_TTY {
        return Err(io::Error::other("another line discipline than that of terminals"));
    }
    let (mut pending, mut half) = (false, false);
    // The slave first: what is on its way to it is echoed. Asking for events sees to it that it has come.
    let room = slave.map(|slave| {
        let events = ready(slave, libc::POLLIN | libc::POLLOUT);
        pending |= events & libc::POLLIN != 0;
        events & libc::POLLOUT != 0
    });
    if packet && ready(master, libc::POLLPRI) & libc::POLLPRI != 0 {
        return Err(io::Error::other("a change of state that the controlling side has not read"));
    }
    if let Some(slave) = slave {
        pending = pending || readable_bytes(slave)? > 0;
        if !pending && modes.is_canonical() && modes.local & libc::EXTPROC == 0 {
            let mut raw = *modes;
            raw.local &= !libc::ICANON;
            // From now on, what there is would be read as a line.
            half = probe([&raw, modes])? > 0;
        }
    }
    ready(master, libc::POLLIN);
    pending |= half || readable_bytes(master)? > 0;
    let mut content = Content::default();
    // Where nothing is queued there is room, unless output was stopped.
    if !pending && room != Some(false) {
        return Ok(content);
    }
    let own = open()?;
    let set_packet = |on: i32| {
        // SAFETY: reads one int.
        checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &raw const on) }).map(|_| ())
    };
    if packet {
        set_packet(0)?;
    }
    let drained = content.drain(master, &own, modes, !half);
    let back = content.refill(master, &own, modes);
    if packet {
        set_packet(1)?;
    }
    drained.and(back).map(|()| content)
}

impl Content {
    fn drain(
        &mut self,
        master: &impl AsRawFd,
        slave: &OwnedFd,
        modes: &Termios,
        lines: bool,
    ) -> io::Result<()> {
        let mut taken = 0;
        if lines && modes.is_canonical() {
            while ready(slave, libc::POLLIN) & libc::POLLIN != 0 && taken < QUEUE_MAX {
                let Some(part) = read(slave)? else { break };
                taken += part.len() + 1;
                let ends = match part.last() {
                    Some(b'\n') => Ends::Line,
                    Some(last) if *last != 0 && self.ends_line(*last, modes) => Ends::Line,
                    // As long as a read can be: the line goes on.
                    Some(_) if part.len() == PART => Ends::Open,
                    Some(_) | None => Ends::File,
                };
                self.to_slave.push((Bytes(part), ends));
            }
        }
        // What is left is no line, or there are none.
        let mut raw = *modes;
        raw.local &= !libc::ICANON;
        (raw.characters[libc::VMIN], raw.characters[libc::VTIME]) = (1, 0);
        raw.set(master)?;
        let mut rest = Vec::new();
        while ready(slave, libc::POLLIN) & libc::POLLIN != 0 && rest.len() < QUEUE_MAX {
            let Some(mut part) = read(slave)? else { break };
            rest.append(&mut part);
        }
        if !rest.is_empty() {
            self.to_slave.push((Bytes(rest), Ends::Open));
        }
        // The master last: what its side wrote has been echoed by now. Its description is the application's: no read that would
        // wait.
        ready(master, libc::POLLIN);
        while readable_bytes(master)? > 0 && self.to_master.0.len() < QUEUE_MAX {
            let Some(mut part) = read(master)? else { break };
            self.to_master.0.append(&mut part);
            ready(master, libc::POLLIN);
        }
        let flows = || ready(slave, libc::POLLOUT) & libc::POLLOUT != 0;
        if !flows() {
            // Without `IXON` only an order keeps output stopped.
            raw.input &= !libc::IXON;
            raw.set(master)?;
            self.output = if flows() { Output::StoppedByCharacter } else { Output::StoppedByOrder };
        }
        Ok(())
    }

    fn ends_line(&self, byte: u8, modes: &Termios) -> bool {
        [libc::VEOL, libc::VEOL2].iter().any(|index| modes.character(*index) == byte)
    }

    /// Puts it between a master and a slave of a description of ours that does not wait; then the modes are `modes`.
    pub(crate) fn refill(&self, master: &impl AsRawFd, slave: &OwnedFd, modes: &Termios) -> io::Result<()> {
        let canonical = modes.is_canonical();
        let mut plain = modes.plain(canonical);
        let used = |byte: &u8| self.to_slave.iter().any(|(part, _)| part.0.contains(byte));
        let end = (1..32u8).find(|byte| *byte != b'\n' && !used(byte)).unwrap_or(4);
        let mut input = Vec::new();
        let (mut lines, mut open) = (0, false);
        for (part, ends) in &self.to_slave {
            input.extend_from_slice(&part.0);
            match (ends, part.0.last()) {
                (Ends::File, _) => input.push(end),
                (Ends::Line, Some(last)) if *last == modes.character(libc::VEOL) => {
                    plain.characters[libc::VEOL] = *last;
                }
                (Ends::Line, Some(last)) if *last != b'\n' => {
                    plain.characters[libc::VEOL2] = *last;
                    plain.local |= libc::IEXTEN;
                }
                (Ends::Line | Ends::Open, _) => {}
            }
            open = *ends == Ends::Open;
            lines += if open && canonical { 0 } else { part.0.len() };
        }
        if canonical {
            plain.characters[libc::VEOF] = end;
        }
        plain.set(master)?;
        if self.output == Output::StoppedByOrder {
            flow(slave, libc::TCOON)?;
        }
        write_patiently(slave, &self.to_master.0)?;
        let flags = kernel::fcntl(master, libc::F_GETFL, 0)?;
        // An empty queue has room for a part; beyond that a write to the application's own description could wait.
        let waits = input.len() > PART / 2 && flags & libc::O_NONBLOCK == 0;
        if waits {
            kernel::fcntl(master, libc::F_SETFL, i64::from(flags | libc::O_NONBLOCK))?;
        }
        let written = write_patiently(master, &input);
        if waits {
            kernel::fcntl(master, libc::F_SETFL, i64::from(flags))?;
        }
        written?;
        let until = Instant::now() + PATIENCE;
        // It comes to the other side by a kernel thread; under other modes it would come through changed.
        while !input.is_empty() && Instant::now() < until {
            ready(slave, libc::POLLIN);
            if readable_bytes(slave)? >= lines.min(PART - 1) {
                break;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        // What was written at once is taken at once, before the modes change: half a line with the lines before it.
        if open && canonical && input.len() > LARGE {
            std::thread::sleep(Duration::from_millis(1));
        }
        modes.set(master)?;
        match self.output {
            Output::Flows => Ok(()),
            Output::StoppedByCharacter => write_patiently(master, &[modes.character(libc::VSTOP)]),
            Output::StoppedByOrder => flow(slave, libc::TCOOFF),
        }
    }
}
