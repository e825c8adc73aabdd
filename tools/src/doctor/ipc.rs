//! Queues read without draining them, connections carried over.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::child::{errno, owned};
use super::{Probe, Status, refused};

const GROUP: &str = "queues and connections";

pub(super) fn probes() -> Vec<Probe> {
    vec![
        Probe::feature(
            GROUP,
            "so_peek_off",
            "bytes queued in unix sockets are read without draining them",
            worded(peek_off()),
            (Status::Missing, "a kernel of 3.4 or later"),
        )
        .needed(),
        Probe::feature(
            GROUP,
            "msg_copy",
            "messages queued in SysV queues are read without draining them; without, such an app is unprotected",
            worded(msg_copy()),
            (Status::Degraded, "a kernel with CONFIG_CHECKPOINT_RESTORE"),
        ),
        Probe::feature(
            GROUP,
            "tcp_repair",
            "connections to the outside live on after a switch; without, they are reset",
            worded(tcp_repair()),
            (Status::Degraded, "give holod CAP_NET_ADMIN, where that is wanted"),
        ),
    ]
}

fn worded(result: Result<(), i64>) -> Result<String, String> {
    match result {
        Ok(()) => Ok("tried, works".to_owned()),
        Err(0) => Err("tried, has no effect".to_owned()),
        Err(error) => Err(refused("tried", i32::try_from(error).unwrap_or(libc::EIO))),
    }
}

fn checked(result: i64) -> Result<i64, i64> {
    if result < 0 { Err(errno(result)) } else { Ok(result) }
}

fn set(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> Result<(), i64> {
    let bytes = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value lives during the call and has the size told.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), bytes) };
    checked(i64::from(done)).map(drop)
}

/// Peeks twice: the second look sees what follows the first, and nothing is gone.
fn peek_off() -> Result<(), i64> {
    let code = |e: std::io::Error| i64::from(e.raw_os_error().unwrap_or(libc::EIO));
    let (mut writer, reader) = UnixStream::pair().map_err(code)?;
    std::io::Write::write_all(&mut writer, b"ab").map_err(code)?;
    set(&reader, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
    let mut seen = [0u8; 2];
    for byte in &mut seen {
        // SAFETY: one byte of our own.
        let got = unsafe {
            libc::recv(reader.as_raw_fd(), (&raw mut *byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT)
        };
        checked(got as i64)?;
    }
    if &seen == b"ab" { Ok(()) } else { Err(0) }
}

fn msg_copy() -> Result<(), i64> {
    #[repr(C)]
    struct Message {
        kind: libc::c_long,
        text: [u8; 8],
    }
    let sent = Message { kind: 1, text: *b"message!" };
    let mut copy = Message { kind: 0, text: [0; 8] };
    // SAFETY: a private queue, removed below; sizes are those of the text.
    unsafe {
        let queue = libc::msgget(libc::IPC_PRIVATE, 0o600);
        checked(i64::from(queue))?;
        let flags = libc::MSG_COPY | libc::IPC_NOWAIT;
        let done = checked(i64::from(libc::msgsnd(queue, (&raw const sent).cast(), 8, libc::IPC_NOWAIT)))
            .and_then(|_| checked(libc::msgrcv(queue, (&raw mut copy).cast(), 8, 0, flags) as i64));
        libc::msgctl(queue, libc::IPC_RMID, std::ptr::null_mut());
        done?;
    }
    if copy.text == sent.text && copy.kind == sent.kind { Ok(()) } else { Err(0) }
}

fn tcp_repair() -> Result<(), i64> {
    // SAFETY: a call without memory.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(i64::from(socket)).map_err(i64::from)?;
    set(&socket, libc::SOL_TCP, libc::TCP_REPAIR, 1)
}
