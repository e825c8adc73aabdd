//! Multicast groups that a socket has joined. No call lists them: the kernel shows those of the host, and tells of a socket and a group
//! which sources it wants to hear there, or that it has not joined.

use super::kernel::Bytes;
use super::sockopts::{get_into, set};
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsRawFd;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const INCLUDE: u32 = 1;
/// Of the kernel's `struct group_filter`: the interface at 0, the group's address at 8, which is where `struct group_req` ends; then
/// the mode, the number of sources, and their addresses.
const GROUP_AT: usize = 8;
const MODE_AT: usize = 136;
const COUNT_AT: usize = 140;
const SOURCES_AT: usize = 144;
const ADDRESS_BYTES: usize = 128;
/// As many as the kernel lets a socket have of a group, unless it is told otherwise.
const SOURCES_MAX: usize = 64;

/// A group on an interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    level: i32,
    interface: u32,
    address: Vec<u8>,
}

/// A group that a socket has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    level: i32,
    /// Name of the interface: another node counts them in another order.
    interface: String,
    /// `struct group_filter`.
    filter: Bytes,
}

/// Groups that anybody on this host has joined.
pub(crate) fn of_host() -> Vec<Group> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut all = version_4(&text("/proc/net/igmp"));
    all.extend(version_6(&text("/proc/net/igmp6")));
    all
}

/// A line for each interface, which begins with its number, and then one for each group, which begins with white space.
fn version_4(text: &str) -> Vec<Group> {
    let (mut all, mut interface) = (Vec::new(), 0);
    for line in text.lines().skip(1) {
        let Some(first) = line.split_whitespace().next() else { continue };
        if !line.starts_with(char::is_whitespace) {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(address) = u32::from_str_radix(first, 16) {
            all.push(Group { level: libc::IPPROTO_IP, interface, address: address.to_ne_bytes().to_vec() });
        }
    }
    all
}

/// A line for each: number and name of the interface, address.
fn version_6(text: &str) -> Vec<Group> {
    let group = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = u128::from_str_radix(fields.get(2)?, 16).ok()?;
        let interface = fields.first()?.parse().ok()?;
        Some(Group { level: libc::IPPROTO_IPV6, interface, address: address.to_be_bytes().to_vec() })
    };
    text.lines().filter_map(group).collect()
}

impl Group {
    /// What is asked with, with room for the sources.
    fn question(&self) -> Vec<u8> {
        let mut raw = vec![0; SOURCES_AT + SOURCES_MAX * ADDRESS_BYTES];
        raw[..4].copy_from_slice(&self.interface.to_ne_bytes());
        let (family, at) = match self.level {
            libc::IPPROTO_IP => (libc::AF_INET, GROUP_AT + 4),
            _ => (libc::AF_INET6, GROUP_AT + 8),
        };
        raw[GROUP_AT..GROUP_AT + 2].copy_from_slice(&(family as u16).to_ne_bytes());
        raw[at..at + self.address.len()].copy_from_slice(&self.address);
        raw[COUNT_AT..SOURCES_AT].copy_from_slice(&(SOURCES_MAX as u32).to_ne_bytes());
        raw
    }
}

fn word(raw: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn name_of(interface: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: room for the longest name.
    let found = unsafe { libc::if_indextoname(interface, name.as_mut_ptr().cast()) };
    (!found.is_null()).then(|| CStr::from_bytes_until_nul(&name).ok()?.to_str().ok().map(str::to_owned))?
}

/// Those of `groups` that a socket of `domain` has joined.
///
/// # Errors
/// It hears more sources of one than can be kept.
pub(crate) fn joined(fd: &impl AsRawFd, domain: i32, groups: &[Group]) -> io::Result<Vec<Membership>> {
    let mut all = Vec::new();
    for group in groups.iter().filter(|group| group.level == libc::IPPROTO_IP || domain == libc::AF_INET6) {
        let mut filter = group.question();
        if get_into(fd, group.level, MCAST_MSFILTER, &mut filter).is_err() {
            continue;
        }
        let sources = word(&filter, COUNT_AT) as usize;
        if sources > SOURCES_MAX {
            return Err(io::Error::other(format!("more than {SOURCES_MAX} sources of a multicast group")));
        }
        filter.truncate(SOURCES_AT + sources * ADDRESS_BYTES);
        let interface = name_of(group.interface).unwrap_or_default();
        all.push(Membership { level: group.level, interface, filter: Bytes(filter) });
    }
    Ok(all)
}

impl Membership {
    /// Joins it again; where there is no such interface, on the one that the kernel chooses.
    pub(crate) fn join(&self, fd: &impl AsRawFd) -> io::Result<()> {
        let name = CString::new(self.interface.as_str()).unwrap_or_default();
        // SAFETY: a string that ends with zero.
        let interface = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let mut filter = self.filter.0.clone();
        if filter.len() < SOURCES_AT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        filter[..4].copy_from_slice(&interface.to_ne_bytes());
        set(fd, self.level, MCAST_JOIN_GROUP, &filter[..MODE_AT])?;
        if word(&filter, MODE_AT) == INCLUDE || filter.len() > SOURCES_AT {
            set(fd, self.level, MCAST_MSFILTER, &filter)?;
        }
        Ok(())
    }

    /// For people.
    pub(crate) fn named(&self) -> String {
        let raw = &self.filter.0;
        let group = raw.get(GROUP_AT..MODE_AT).and_then(super::internet::Endpoint::parse);
        group.map_or_else(String::new, |group| format!("multicast group {} on {}", group.ip, self.interface))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    // Goal: a socket is found to have joined what it has joined, and nothing else, and another one joins the same. Method: both families
    // on the loopback interface, and two sockets that have not.
    #[test]
    fn round_trip() {
        let (four, six) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0"));
        four.join_multicast_v4(&Ipv4Addr::new(239, 77, 3, 9), &Ipv4Addr::LOCALHOST).unwrap();
        let groups = of_host();
        let found = joined(&four, libc::AF_INET, &groups).unwrap();
        let names: Vec<String> = found.iter().map(Membership::named).collect();
        assert_eq!(names, ["multicast group 239.77.3.9 on lo"]);
        let other = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(joined(&other, libc::AF_INET, &groups).unwrap().is_empty());
        found[0].join(&other).unwrap();
        assert_eq!(joined(&other, libc::AF_INET, &groups).unwrap(), found);
        let Ok(six) = six else { return };
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 77, 3);
        six.join_multicast_v6(&group, 1).unwrap();
        let found = joined(&six, libc::AF_INET6, &of_host()).unwrap();
        assert_eq!(found[0].named(), format!("multicast group {group} on lo"));
    }

    #[test]
    fn lists_of_the_kernel() {
        let four = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n4\teth0      :     1      V3\n\t\t\t\t\
                    010000E0     1 0:00000000\t\t0\n";
        let group = |level, interface, address: &[u8]| Group { level, interface, address: address.to_vec() };
        assert_eq!(version_4(four), [group(libc::IPPROTO_IP, 4, &[224, 0, 0, 1])]);
        let six = "2    ifb0            ff020000000000000000000000000001     1 0000000C 0\n";
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
        assert_eq!(version_6(six), [group(libc::IPPROTO_IPV6, 2, &all_nodes)]);
    }
}
