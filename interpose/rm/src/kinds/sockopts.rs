//! Socket options: one table, saved and restored alike for all families.

use super::kernel::{Bytes, checked};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;

pub(crate) const SO_BUF_LOCK: i32 = 72;
const SOL_RAW: i32 = 255;
pub(crate) const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;
/// `SO_PEEK_OFF`; -1 is off.
pub(crate) const SO_PEEK_OFF: i32 = 42;
/// Longest value in the table: names of devices and congestion controls.
const VALUE_BYTES_MAX: usize = 64;

/// Options by level. The kernel says of most sockets that most of them are unknown; those are left out.
/// Left out for all: what the kernel computes by itself (window clamp, quick ack, segment size) and what is
/// read once (`SO_ERROR`).
const TABLE: &[(i32, &[i32])] = &[
    // REUSEADDR, DONTROUTE, BROADCAST, KEEPALIVE, OOBINLINE, NO_CHECK, PRIORITY, LINGER, REUSEPORT, PASSCRED,
    // RCVLOWAT, RCVTIMEO, SNDTIMEO, BINDTODEVICE, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK, TIMESTAMPING,
    // RXQ_OVFL, PEEK_OFF, BUSY_POLL, MAX_PACING_RATE, ZEROCOPY, PASSPIDFD
    (
        libc::SOL_SOCKET,
        &[2, 5, 6, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 36, 37, 40, 42, 46, 47, 60, 76],
    ),
    // TOS, TTL, HDRINCL, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND, TRANSPARENT, RECVORIGDSTADDR, MINTTL,
    // NODEFRAG, BIND_ADDRESS_NO_PORT, MULTICAST_IF, MULTICAST_TTL, MULTICAST_LOOP, MULTICAST_ALL, UNICAST_IF,
    // LOCAL_PORT_RANGE
    (libc::IPPROTO_IP, &[1, 2, 3, 8, 10, 11, 12, 13, 15, 19, 20, 21, 22, 24, 32, 33, 34, 49, 50, 51]),
    // CHECKSUM, UNICAST_HOPS, MULTICAST_IF, MULTICAST_HOPS, MULTICAST_LOOP, MTU_DISCOVER, RECVERR, V6ONLY, MULTICAST_ALL,
    // RECVPKTINFO, RECVHOPLIMIT, RECVHOPOPTS, RECVRTHDR, RECVDSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, TCLASS, AUTOFLOWLABEL,
    // MINHOPCOUNT, RECVORIGDSTADDR, TRANSPARENT, UNICAST_IF, FREEBIND
    (
        libc::IPPROTO_IPV6,
        &[7, 16, 17, 18, 19, 23, 25, 26, 29, 49, 51, 53, 56, 58, 60, 62, 66, 67, 70, 73, 74, 75, 76, 78],
    ),
    // NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, CONGESTION, THIN_LINEAR_TIMEOUTS,
    // USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT, FASTOPEN_CONNECT, INQ
    (libc::IPPROTO_TCP, &[1, 3, 4, 5, 6, 7, 8, 9, 13, 16, 18, 23, 25, 30, 36]),
    // UDP_CORK, ENCAP, NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO
    (libc::IPPROTO_UDP, &[1, 100, 101, 102, 103, 104]),
    // ICMP_FILTER
    (SOL_RAW, &[1]),
    // ICMPV6_FILTER
    (libc::IPPROTO_ICMPV6, &[1]),
    // NETLINK: PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, CAP_ACK, EXT_ACK, GET_STRICT_CHK
    (libc::SOL_NETLINK, &[3, 4, 5, 10, 11, 12]),
];

/// Reads an option as it is.
pub(crate) fn get(fd: &impl AsRawFd, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = [0u8; VALUE_BYTES_MAX];
    let bytes = get_into(fd, level, name, &mut value)?;
    Ok(value[..bytes].to_vec())
}

/// Reads an option that is asked for with what is in `value`.
pub(crate) fn get_into(fd: &impl AsRawFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut bytes = value.len() as libc::socklen_t;
    // SAFETY: room of the stated size.
    checked(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut bytes)
    })?;
    Ok((bytes as usize).min(value.len()))
}

/// Reads a number.
pub(crate) fn get_int(fd: &impl AsRawFd, level: i32, name: i32) -> io::Result<i32> {
    let value = get(fd, level, name)?;
    Ok(value.get(..4).map_or(0, |raw| i32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]])))
}

/// Sets an option.
pub(crate) fn set(fd: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: a buffer of the stated size.
    let ret = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    checked(ret).map(|_| ())
}

/// Sets a number.
pub(crate) fn set_int(fd: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set(fd, level, name, &value.to_ne_bytes())
}

/// An option's level, name and value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SocketOption(i32, i32, Bytes);

/// All options of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    values: Vec<SocketOption>,
    /// `SO_SNDBUF` and `SO_RCVBUF` as set by the application; the kernel sizes the others.
    send_bytes: Option<i32>,
    receive_bytes: Option<i32>,
}

/// Levels that sockets of a family and type have.
fn has_level(level: i32, domain: i32, kind: i32) -> bool {
    let internet = domain == libc::AF_INET || domain == libc::AF_INET6;
    match level {
        libc::IPPROTO_IP => internet,
        libc::IPPROTO_IPV6 => domain == libc::AF_INET6,
        libc::IPPROTO_TCP => internet && kind == libc::SOCK_STREAM,
        libc::IPPROTO_UDP => internet && kind == libc::SOCK_DGRAM,
        SOL_RAW => domain == libc::AF_INET && kind == libc::SOCK_RAW,
        libc::IPPROTO_ICMPV6 => domain == libc::AF_INET6 && kind == libc::SOCK_RAW,
        libc::SOL_NETLINK => domain == libc::AF_NETLINK,
        _ => true,
    }
}

/// Streams let these be read, but not set, or have nothing of them.
fn is_of_messages(level: i32, name: i32) -> bool {
    match level {
        libc::IPPROTO_IP => matches!(name, 32..=34 | 49),
        libc::IPPROTO_IPV6 => matches!(name, 7 | 17..=19 | 29 | 53..=60),
        _ => false,
    }
}

impl Options {
    /// Those of a socket.
    pub(crate) fn of(fd: &impl AsRawFd, domain: i32, kind: i32) -> io::Result<Self> {
        let mut values = Vec::new();
        for (level, names) in TABLE.iter().filter(|(level, _)| has_level(*level, domain, kind)) {
            for name in *names {
                if kind == libc::SOCK_STREAM && is_of_messages(*level, *name) {
                    continue;
                }
                if let Ok(value) = get(fd, *level, *name) {
                    values.push(SocketOption(*level, *name, Bytes(value)));
                }
            }
        }
        // Before Linux 5.14 nobody can tell whether a size was set; then it is kept.
        let locked = get_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(3);
        let size = |bit: i32, name: i32| {
            (locked & bit != 0).then(|| get_int(fd, libc::SOL_SOCKET, name)).transpose()
        };
        Ok(Self { values, send_bytes: size(1, libc::SO_SNDBUF)?, receive_bytes: size(2, libc::SO_RCVBUF)? })
    }

    /// Does the kernel change one of them as the application reads, or connects?
    pub(crate) fn move_by_themselves(&self) -> bool {
        let moves = |SocketOption(level, name, value): &SocketOption| match (*level, *name) {
            (libc::SOL_SOCKET, SO_PEEK_OFF) => value.0 != (-1i32).to_ne_bytes(),
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT) => value.0 != 0i32.to_ne_bytes(),
            _ => false,
        };
        self.values.iter().any(moves)
    }

    /// Gives a socket these options where it has others; what could not be set.
    pub(crate) fn apply(&self, fd: &impl AsRawFd) -> Vec<String> {
        let mut failed = Vec::new();
        let buffers = [
            (self.send_bytes, libc::SO_SNDBUF, SO_SNDBUFFORCE),
            (self.receive_bytes, libc::SO_RCVBUF, SO_RCVBUFFORCE),
        ];
        for (bytes, name, force) in buffers {
            let Some(bytes) = bytes else { continue };
            // The kernel doubles what is set. Forcing needs a privilege and exceeds the system's limit.
            let half = bytes / 2;
            if set_int(fd, libc::SOL_SOCKET, force, half).is_err() {
                let _ = set_int(fd, libc::SOL_SOCKET, name, half);
            }
            if get_int(fd, libc::SOL_SOCKET, name).ok() != Some(bytes) {
                failed.push(format!("buffer size {bytes}"));
            }
        }
        for SocketOption(level, name, wanted) in &self.values {
            if get(fd, *level, *name).is_ok_and(|now| now == wanted.0) {
                continue;
            }
            let done = set(fd, *level, *name, &wanted.0);
            // Of a socket that is bound to one address it says nothing any more.
            if let Err(cause) = done
                && (*level, *name) != (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
            {
                failed.push(format!("option {level}/{name}: {cause}"));
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;

    // Goal: options survive. Method: set several of every level on one socket, apply to a second, compare all.
    #[test]
    fn round_trip() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        for (level, name, value) in [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::SOL_SOCKET, libc::SO_RCVBUF, 50_000),
            (libc::IPPROTO_IP, libc::IP_TOS, 16),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
            (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 3),
        ] {
            set_int(&one, level, name, value).unwrap();
        }
        set(&one, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 9, 0, 0, 0]).unwrap();
        let saved = Options::of(&one, libc::AF_INET, libc::SOCK_STREAM).unwrap();
        assert_ne!(saved, Options::of(&other, libc::AF_INET, libc::SOCK_STREAM).unwrap());
        assert_eq!(saved.apply(&other), Vec::<String>::new());
        assert_eq!(saved, Options::of(&other, libc::AF_INET, libc::SOCK_STREAM).unwrap());
        let idle = SocketOption(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, Bytes(77i32.to_ne_bytes().to_vec()));
        assert!(saved.values.contains(&idle));
    }
}
