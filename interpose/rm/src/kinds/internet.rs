//! Internet addresses as the kernel gives them: `sockaddr_in`, `sockaddr_in6`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address and port; an IPv4 address in IPv6 clothes is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
}

impl Endpoint {
    /// Out of a kernel's address; `None` for other families.
    pub(crate) fn parse(raw: &[u8]) -> Option<Self> {
        let family = i32::from(u16::from_ne_bytes([*raw.first()?, *raw.get(1)?]));
        let port = u16::from_be_bytes([*raw.get(2)?, *raw.get(3)?]);
        let ip = match family {
            libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(raw.get(4..8)?).ok()?),
            libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(raw.get(8..24)?).ok()?).to_canonical(),
            _ => return None,
        };
        Some(Self { ip, port })
    }

    /// For a socket of `domain`.
    pub(crate) fn raw(&self, domain: i32) -> Vec<u8> {
        let mut raw = vec![0; if domain == libc::AF_INET6 { 28 } else { 16 }];
        raw[..2].copy_from_slice(&(domain as u16).to_ne_bytes());
        raw[2..4].copy_from_slice(&self.port.to_be_bytes());
        match (domain, self.ip) {
            (libc::AF_INET6, IpAddr::V6(ip)) => raw[8..24].copy_from_slice(&ip.octets()),
            (libc::AF_INET6, IpAddr::V4(ip)) => raw[8..24].copy_from_slice(&ip.to_ipv6_mapped().octets()),
            (_, IpAddr::V4(ip)) => raw[4..8].copy_from_slice(&ip.octets()),
            (_, IpAddr::V6(_)) => {}
        }
        raw
    }

    /// Loopback, any port, in the clothes of `domain`.
    pub(crate) fn loopback(domain: i32) -> Vec<Self> {
        let v4 = Self { ip: Ipv4Addr::LOCALHOST.into(), port: 0 };
        let v6 = Self { ip: Ipv6Addr::LOCALHOST.into(), port: 0 };
        // A host without IPv6 loopback still has mapped addresses, unless the socket is for IPv6 only.
        if domain == libc::AF_INET6 { vec![v6, v4] } else { vec![v4] }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: one endpoint, two families. Method: to raw and back; the mapped form is the IPv4 address.
    #[test]
    fn both_families() {
        let four = Endpoint { ip: Ipv4Addr::new(127, 0, 0, 9).into(), port: 6379 };
        assert_eq!(Endpoint::parse(&four.raw(libc::AF_INET)), Some(four));
        assert_eq!(Endpoint::parse(&four.raw(libc::AF_INET6)), Some(four));
        let six = Endpoint { ip: Ipv6Addr::LOCALHOST.into(), port: 1 };
        assert_eq!(Endpoint::parse(&six.raw(libc::AF_INET6)), Some(six));
        assert_eq!(Endpoint::parse(&[1, 0]), None);
    }
}
