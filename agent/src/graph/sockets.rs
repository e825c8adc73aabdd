//! Sockets in the graph: addresses, and whom they are connected to, inside the application or outside.

use super::{Builder, vertex};
use holo_rm::kinds::sockdiag::SockDiag;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP_LISTEN: &str = "0A";
const OUTSIDE: &str = "connected to outside the application: reset at a restore";

/// A line of `/proc/<pid>/net/tcp` or of its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    local: SocketAddr,
    peer: SocketAddr,
    listens: bool,
    inode: u64,
}

/// `0100007F:1F90`: words of the address in this machine's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u8>> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok())
        .try_fold(Vec::new(), |mut bytes, word| {
            bytes.extend(word?.to_ne_bytes());
            Some(bytes)
        });
    let bytes = words?;
    let ip = if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::V4(Ipv4Addr::from(four))
    } else {
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?))
    };
    // An IPv4 peer of an IPv6 socket is the other one's IPv4 address.
    Some(SocketAddr::new(ip.to_canonical(), port))
}

fn parse(line: &str) -> Option<Line> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    Some(Line {
        local: address(fields.get(1)?)?,
        peer: address(fields.get(2)?)?,
        listens: *fields.get(3)? == TCP_LISTEN,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// Internet sockets of the network namespace of a process, by protocol.
fn internet(pid: i32) -> Vec<(&'static str, Line)> {
    let mut all = Vec::new();
    for (file, protocol) in [("tcp", "TCP"), ("tcp6", "TCP"), ("udp", "UDP"), ("udp6", "UDP")] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
        all.extend(text.lines().skip(1).filter_map(parse).map(|line| (protocol, line)));
    }
    all
}

/// Names the sockets of an application, by their inodes, and joins those that are connected.
pub(super) fn describe(builder: &mut Builder, first: i32, inodes: &BTreeSet<u64>) {
    if inodes.is_empty() {
        return;
    }
    let all = internet(first);
    let mut named = BTreeSet::new();
    let by_ends: BTreeMap<_, _> =
        all.iter().map(|(protocol, line)| ((*protocol, line.local, line.peer), line.inode)).collect();
    for (protocol, line) in all.iter().filter(|(_, line)| inodes.contains(&line.inode)) {
        named.insert(line.inode);
        let id = id(line.inode);
        if line.listens {
            builder.label(&id, format!("{protocol} {} listening", line.local));
            continue;
        }
        if line.peer.port() == 0 {
            builder.label(&id, format!("{protocol} {}", line.local));
            continue;
        }
        builder.label(&id, format!("{protocol} {} to {}", line.local, line.peer));
        let other = by_ends.get(&(*protocol, line.peer, line.local)).filter(|inode| inodes.contains(inode));
        connect(builder, &id, other.copied(), &format!("{protocol} {}", line.peer));
    }
    let mut diag = SockDiag::default();
    for inode in inodes.difference(&named) {
        let Ok(Some(unix)) = diag.unix(*inode) else { continue };
        let id = id(*inode);
        builder.label(&id, format!("unix {inode}"));
        if let Some(peer) = unix.peer {
            let inside = Some(peer).filter(|peer| inodes.contains(peer));
            connect(builder, &id, inside, &format!("unix {peer}"));
        }
    }
}

fn id(inode: u64) -> String {
    format!("socket:[{inode}]")
}

fn connect(builder: &mut Builder, from: &str, inside: Option<u64>, peer: &str) {
    let to = match inside {
        Some(inode) => id(inode),
        None => {
            let mut outside = vertex(format!("peer:{peer}"), "peer", peer.to_owned());
            (outside.replicable, outside.reason) = (false, OUTSIDE.into());
            builder.add(outside)
        }
    };
    builder.edge(from, to, "is connected to");
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: addresses are read as the kernel prints them. Method: lines of Linux 6.18, of both families.
    #[test]
    fn lines_are_read() {
        let four = "   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        let line = parse(four).expect("a line");
        assert_eq!(
            (line.local.to_string(), line.peer.to_string()),
            ("127.0.0.1:8080".into(), "127.0.0.1:50000".into())
        );
        assert!(line.inode == 4711 && !line.listens);
        let six = "   0: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 5 1";
        let line = parse(six).expect("a line");
        assert_eq!((line.local.to_string(), line.listens), ("127.0.0.1:80".into(), true));
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue"), None);
    }
}
