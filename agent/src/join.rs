//! A starting process joins: it gets its control page and the call-site tables of its libc, ld.so and what else makes system
//! calls.

use crate::changes::Table;
use holo_abi::join::{CHANGES, Join, MAGIC, MODULES_MAX, REFUSED, REFUSED_QUIETLY, Welcome};
use holo_rm::page::Page;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A join as the agent uses it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Pid on this node, from the socket.
    pub real_pid: i32,
    /// Pid as the process sees it.
    pub pid: u32,
    /// `HOLO_NAME`.
    pub name: String,
    /// `HOLO_TOKEN`.
    pub token: u64,
    /// libc, ld.so, others; empty: there is none.
    pub modules: [PathBuf; MODULES_MAX],
}

fn text(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

/// Reads the packet, whose first bytes (the magic) were read already.
///
/// # Errors
/// A broken connection, or a library of another version.
pub fn read(stream: &mut UnixStream) -> io::Result<Request> {
    let mut bytes = [0u8; size_of::<Join>()];
    bytes[..8].copy_from_slice(&MAGIC);
    stream.read_exact(&mut bytes[8..])?;
    // SAFETY: plain data of this size, any bit pattern.
    let join: Join = unsafe { std::mem::transmute(bytes) };
    if join.version != holo_abi::VERSION {
        return Err(io::Error::other(format!(
            "libholo.so speaks version {}, this agent {}: install them together",
            join.version,
            holo_abi::VERSION
        )));
    }
    let peer = nix::sys::socket::getsockopt(&stream.as_fd(), nix::sys::socket::sockopt::PeerCredentials)?;
    let module = |index: usize| PathBuf::from(std::ffi::OsStr::from_bytes(text(&join.modules[index])));
    Ok(Request {
        real_pid: peer.pid(),
        pid: join.pid,
        name: String::from_utf8_lossy(text(&join.name)).into_owned(),
        token: join.token,
        modules: std::array::from_fn(module),
    })
}

/// Welcomes a process with its page and what tables there are.
///
/// # Errors
/// A broken connection.
pub fn welcome(
    stream: &UnixStream,
    page: &Page,
    tables: &[Option<Arc<File>>; MODULES_MAX],
    changes: Option<&Table>,
) -> io::Result<()> {
    let mut fds = vec![page.fd().as_raw_fd()];
    let mut answer = empty();
    for (index, table) in tables.iter().enumerate() {
        if let Some(table) = table {
            answer.tables |= 1 << index;
            fds.push(table.as_raw_fd());
        }
    }
    if let Some(changes) = changes {
        answer.tables |= CHANGES;
        fds.push(changes.fd().as_raw_fd());
    }
    send(stream, &answer, &fds)
}

/// Tells a process that it runs unprotected.
///
/// # Errors
/// A broken connection.
pub fn refuse(stream: &UnixStream, reason: &str) -> io::Result<()> {
    let mut answer = empty();
    answer.refused = REFUSED;
    let take = reason.len().min(answer.reason.len() - 1);
    answer.reason[..take].copy_from_slice(&reason.as_bytes()[..take]);
    send(stream, &answer, &[])
}

/// Leaves a process alone without a word to it.
///
/// # Errors
/// A broken connection.
pub fn leave_alone(stream: &UnixStream) -> io::Result<()> {
    let mut answer = empty();
    answer.refused = REFUSED_QUIETLY;
    send(stream, &answer, &[])
}

fn empty() -> Welcome {
    Welcome {
        magic: MAGIC,
        version: holo_abi::VERSION,
        refused: 0,
        agent_pid: std::process::id(),
        tables: 0,
        reason: [0; 256],
    }
}

fn send(stream: &UnixStream, answer: &Welcome, fds: &[i32]) -> io::Result<()> {
    // SAFETY: plain data.
    let bytes =
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(answer).cast::<u8>(), size_of::<Welcome>()) };
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Call-site tables that were opened and proven once, by module.
#[derive(Default)]
pub struct Tables(Mutex<HashMap<PathBuf, Known>>);

/// A module as it was, and its table.
type Known = (Identity, Option<Arc<File>>);

/// Device, inode, size and time of a file: another build is another file.
type Identity = (u64, u64, u64, i64);

impl Tables {
    /// The tables for a process's modules, made on first use; a module without one is not patched.
    #[must_use]
    pub fn of(&self, cache: &Path, request: &Request) -> [Option<Arc<File>>; MODULES_MAX] {
        std::array::from_fn(|index| self.table(cache, &request.modules[index]))
    }

    fn table(&self, cache: &Path, module: &Path) -> Option<Arc<File>> {
        let meta = std::fs::metadata(module).ok()?;
        let now = (meta.dev(), meta.ino(), meta.size(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
        let mut known = self.0.lock();
        if let Some((identity, table)) = known.get(module)
            && *identity == now
        {
            return table.clone();
        }
        let table = match holo_sites::cached(cache, module).map(File::open) {
            Ok(Ok(file)) => Some(Arc::new(file)),
            Ok(Err(cause)) => {
                eprintln!("holod: {}: the call-site table cannot be opened: {cause}", module.display());
                None
            }
            Err(cause) => {
                eprintln!("holod: {}: no call-site table: {cause}", module.display());
                None
            }
        };
        known.insert(module.to_owned(), (now, table.clone()));
        table
    }
}
