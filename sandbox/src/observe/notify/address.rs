//! Socket addresses as bytes that a hostile program chose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use super::Unavailable;
use super::listener::SOCKADDR_BYTES_MAX;
use super::memory::{self, Unread};

const FAMILY_BYTES: usize = 2;
/// `struct sockaddr_in`.
const INET_BYTES: usize = 16;
/// `struct sockaddr_in6` as RFC 2133 had it, without the scope: the kernel still takes it.
const INET6_BYTES_MIN: usize = 24;
/// `struct sockaddr_un`.
const UNIX_BYTES_MAX: usize = 110;

/// A socket address, copied once: what is judged and what is performed.
#[derive(Debug, Clone, Copy)]
pub(super) struct SocketAddress {
    bytes: [u8; SOCKADDR_BYTES_MAX],
    length: usize,
}

/// The name in a unix address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnixName {
    /// A path, absolute or relative.
    Path(Vec<u8>),
    /// A name in the abstract namespace, without its leading NUL.
    Abstract(Vec<u8>),
}

impl SocketAddress {
    /// Copies an address out of the target, as the kernel does: `EINVAL` for an impossible length.
    pub(super) fn copy(tid: i32, pointer: u64, length: i32) -> Result<Self, Unavailable> {
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= SOCKADDR_BYTES_MAX)
            .ok_or(Unavailable::Errno(Errno::EINVAL))?;
        let mut bytes = [0; SOCKADDR_BYTES_MAX];
        memory::read_exact(tid, pointer, &mut bytes[..length]).map_err(|unread| match unread {
            Unread::Fault | Unread::TooLong => Unavailable::Errno(Errno::EFAULT),
            Unread::Forbidden => Unavailable::Forbidden,
        })?;
        Ok(Self { bytes, length })
    }

    /// An address of our own making.
    pub(super) fn unix_path(path: &[u8]) -> Option<Self> {
        let end = FAMILY_BYTES + path.len();
        if end >= UNIX_BYTES_MAX {
            return None;
        }
        let mut bytes = [0; SOCKADDR_BYTES_MAX];
        bytes[..FAMILY_BYTES].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        bytes[FAMILY_BYTES..end].copy_from_slice(path);
        Some(Self {
            bytes,
            length: end + 1,
        })
    }

    /// What connect(2) is given.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The address family, where there are bytes for it.
    pub(super) fn family(&self) -> Option<i32> {
        let bytes = self.as_bytes().first_chunk::<FAMILY_BYTES>()?;
        Some(i32::from(u16::from_ne_bytes(*bytes)))
    }

    /// Address and port, for the two internet families; the error that the kernel gives otherwise.
    pub(super) fn inet(&self) -> Result<(IpAddr, u16), Errno> {
        match self.family() {
            None => Err(Errno::EINVAL),
            Some(libc::AF_INET) => self.inet4().ok_or(Errno::EINVAL),
            Some(libc::AF_INET6) => self.inet6().ok_or(Errno::EINVAL),
            Some(_) => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// Like [`Self::inet`], but reads `AF_UNSPEC` as IPv4, as bind(2) and sendto(2) on UDP do.
    pub(super) fn inet_or_unspecified(&self) -> Result<(IpAddr, u16), Errno> {
        match self.family() {
            Some(libc::AF_UNSPEC) => self.inet4().ok_or(Errno::EINVAL),
            _ => self.inet(),
        }
    }

    fn inet4(&self) -> Option<(IpAddr, u16)> {
        let bytes = self.as_bytes().first_chunk::<INET_BYTES>()?;
        let address = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
        Some((address.into(), port(bytes)))
    }

    fn inet6(&self) -> Option<(IpAddr, u16)> {
        let bytes = self.as_bytes().first_chunk::<INET6_BYTES_MIN>()?;
        let address: &[u8; 16] = bytes[8..].first_chunk()?;
        Some((Ipv6Addr::from(*address).into(), port(bytes)))
    }

    /// The same address with the unspecified one (`0.0.0.0`, `::`, `::ffff:0.0.0.0`) replaced by loopback.
    ///
    /// The kernel connects to the unspecified address by way of the socket's own local address, which
    /// need not be loopback; performing what was judged means naming it.
    pub(super) fn with_loopback_named(mut self) -> Self {
        let Ok((address, _)) = self.inet() else {
            return self;
        };
        if !address.to_canonical().is_unspecified() {
            return self;
        }
        match address {
            IpAddr::V4(_) => self.bytes[4..8].copy_from_slice(&Ipv4Addr::LOCALHOST.octets()),
            IpAddr::V6(v6) => {
                let named = match v6.to_ipv4_mapped() {
                    Some(_) => Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
                    None => Ipv6Addr::LOCALHOST,
                };
                self.bytes[8..24].copy_from_slice(&named.octets());
            }
        }
        self
    }

    /// The name in a unix address, or the error that the kernel gives.
    pub(super) fn unix(&self) -> Result<UnixName, Errno> {
        let bytes = self.as_bytes();
        if bytes.len() <= FAMILY_BYTES
            || bytes.len() > UNIX_BYTES_MAX
            || self.family() != Some(libc::AF_UNIX)
        {
            return Err(Errno::EINVAL);
        }
        let name = &bytes[FAMILY_BYTES..];
        Ok(match name.split_first() {
            Some((0, rest)) => UnixName::Abstract(rest.to_vec()),
            _ => {
                let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
                UnixName::Path(name[..end].to_vec())
            }
        })
    }
}

impl UnixName {
    /// As denials show it.
    pub(super) fn display(&self) -> String {
        match self {
            Self::Path(path) => String::from_utf8_lossy(path).into_owned(),
            Self::Abstract(name) => format!("@{}", String::from_utf8_lossy(name).replace('\0', "@")),
        }
    }
}

fn port(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[2], bytes[3]])
}

/// The address that a connection really goes to: IPv4 in IPv6 counts as IPv4, unspecified as loopback.
pub(super) fn effective(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(bytes: &[u8]) -> SocketAddress {
        let me = std::process::id().cast_signed();
        SocketAddress::copy(me, bytes.as_ptr() as u64, bytes.len() as i32).unwrap()
    }

    fn v4(ip: [u8; 4], port: u16) -> Vec<u8> {
        let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        bytes.extend(port.to_be_bytes());
        bytes.extend(ip);
        bytes.extend([0; 8]);
        bytes
    }

    fn v6(ip: Ipv6Addr, port: u16) -> Vec<u8> {
        let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        bytes.extend(port.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(ip.octets());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn lengths_that_the_kernel_refuses_are_refused() {
        let bytes = [0u8; 256];
        for length in [-1, i32::MIN, 129, i32::MAX] {
            let copied =
                SocketAddress::copy(std::process::id().cast_signed(), bytes.as_ptr() as u64, length);
            assert_eq!(copied.unwrap_err(), Unavailable::Errno(Errno::EINVAL));
        }
        assert_eq!(address(&[]).inet(), Err(Errno::EINVAL));
        assert_eq!(address(&[2]).inet(), Err(Errno::EINVAL));
        assert_eq!(address(&v4([1, 2, 3, 4], 5)[..15]).inet(), Err(Errno::EINVAL));
        assert_eq!(address(&[1, 0]).unix(), Err(Errno::EINVAL));
        assert_eq!(address(&[1u8, 0].repeat(64)).unix(), Err(Errno::EINVAL));
    }

    #[test]
    fn escape_09_mapped_and_unspecified_addresses_are_what_they_lead_to() {
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
        let (ip, port) = address(&v6(mapped, 80)).inet().unwrap();
        assert_eq!((effective(ip), port), ("192.0.2.1".parse().unwrap(), 80));
        for bytes in [
            v4([0; 4], 9),
            v6(Ipv6Addr::UNSPECIFIED, 9),
            v6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 9),
        ] {
            let given = address(&bytes);
            assert!(effective(given.inet().unwrap().0).is_loopback());
            let (named, port) = given.with_loopback_named().inet().unwrap();
            assert!(named.to_canonical().is_loopback(), "{named}");
            assert_eq!(port, 9);
        }
        let other = address(&v4([10, 0, 0, 1], 9)).with_loopback_named();
        assert_eq!(other.inet().unwrap().0, IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn unix_names_end_at_their_nul_or_length() {
        assert_eq!(
            address(b"\x01\0/a/b\0junk").unix(),
            Ok(UnixName::Path(b"/a/b".to_vec()))
        );
        assert_eq!(
            address(b"\x01\0/a/b").unix(),
            Ok(UnixName::Path(b"/a/b".to_vec()))
        );
        let name = address(b"\x01\0\0a\0b").unix().unwrap();
        assert_eq!(name, UnixName::Abstract(b"a\0b".to_vec()));
        assert_eq!(name.display(), "@a@b");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_address_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..=128)) {
            super::super::fuzzing::socket_address(&bytes);
        }
    }
}
