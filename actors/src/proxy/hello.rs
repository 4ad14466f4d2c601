//! The name that the first message of TLS says the client wants (SNI, RFC 6066, in RFC 8446's ClientHello).
//!
//! The bytes come from a hostile program. What cannot be read is no name, and no name is refused.

/// The first bytes of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hello {
    /// More bytes are needed.
    Incomplete,
    /// They are no ClientHello, or one without a name that can be read.
    NoName,
    /// The name, in lower case.
    Name(String),
}

/// A ClientHello is no longer than this, whatever it promises.
pub(super) const HELLO_BYTES_MAX: usize = 64 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// Reads the name out of the first bytes.
pub(super) fn server_name(bytes: &[u8]) -> Hello {
    match handshake(bytes) {
        Some(Some(message)) => name(&message).map_or(Hello::NoName, Hello::Name),
        Some(None) if bytes.len() < HELLO_BYTES_MAX => Hello::Incomplete,
        _ => Hello::NoName,
    }
}

/// Any first bytes: what was once decided stays so, however many more come; a name is one that can be compared with rules.
#[cfg(any(test, feature = "fuzzing"))]
pub fn tls_hello(bytes: &[u8]) {
    let whole = server_name(bytes);
    for end in (0..bytes.len()).rev().step_by(1 + bytes.len() / 64) {
        let part = server_name(&bytes[..end]);
        assert!(
            part == Hello::Incomplete || part == whole,
            "{part:?}, then {whole:?}"
        );
    }
    if let Hello::Name(name) = whole {
        assert!(!name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase() || byte == 0));
    }
}

/// The first handshake message, out of as many records as it was cut into. `None`: it is none; `Some(None)`: not all of it
/// is there.
fn handshake(bytes: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut rest = Reader(bytes);
    let mut message = Vec::new();
    loop {
        if let [kind, a, b, c, body @ ..] = message.as_slice() {
            if *kind != CLIENT_HELLO {
                return None;
            }
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if let Some(body) = body.get(..length) {
                return Some(Some(body.to_vec()));
            }
        }
        let Some(kind) = rest.u8() else {
            return Some(None);
        };
        if kind != RECORD_HANDSHAKE {
            return None;
        }
        let (Some(major), Some(_), Some(length)) = (rest.u8(), rest.u8(), rest.u16()) else {
            return Some(None);
        };
        if major != 3 || length == 0 {
            return None;
        }
        let here = rest.0.len().min(usize::from(length));
        message.extend_from_slice(&rest.0[..here]);
        if here < usize::from(length) {
            // It may be complete all the same: what follows the message does not matter.
            rest = Reader(&[]);
        } else {
            rest = Reader(&rest.0[here..]);
        }
    }
}

fn name(hello: &[u8]) -> Option<String> {
    let mut hello = Reader(hello);
    // Version and random.
    hello.take(2 + 32)?;
    let session = hello.u8()?;
    hello.take(session.into())?;
    let suites = hello.u16()?;
    hello.take(suites.into())?;
    let methods = hello.u8()?;
    hello.take(methods.into())?;
    let length = hello.u16()?;
    let mut extensions = Reader(hello.take(length.into())?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let body = extensions.take(length.into())?;
        if kind != EXTENSION_SERVER_NAME {
            continue;
        }
        // Two of them could be read in two ways.
        if found.is_some() {
            return None;
        }
        let mut list = Reader(body);
        let length = list.u16()?;
        let mut entry = Reader(list.take(length.into())?);
        let kind = entry.u8()?;
        let length = entry.u16()?;
        let host = entry.take(length.into())?;
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        if kind != HOST_NAME || !entry.0.is_empty() || !list.0.is_empty() || !host.iter().all(plain) {
            return None;
        }
        found = Some(String::from_utf8(host.to_ascii_lowercase()).ok()?);
    }
    found.filter(|name| !name.is_empty())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn sni(name: &str) -> Vec<u8> {
        let mut entry = vec![HOST_NAME];
        entry.extend((name.len() as u16).to_be_bytes());
        entry.extend(name.as_bytes());
        let mut list = (entry.len() as u16).to_be_bytes().to_vec();
        list.extend(entry);
        extension(EXTENSION_SERVER_NAME, &list)
    }

    /// A ClientHello with these extensions, cut into records of this many bytes.
    pub(in super::super) fn client_hello(extensions: &[Vec<u8>], record: usize) -> Vec<u8> {
        let extensions = extensions.concat();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![CLIENT_HELLO, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        let mut bytes = Vec::new();
        for part in message.chunks(record) {
            bytes.extend([RECORD_HANDSHAKE, 3, 1]);
            bytes.extend((part.len() as u16).to_be_bytes());
            bytes.extend(part);
        }
        bytes
    }

    pub(in super::super) fn hello_for(name: &str) -> Vec<u8> {
        client_hello(&[extension(10, &[0, 2, 0, 29]), sni(name)], 1000)
    }

    #[test]
    fn the_name_is_read_however_the_message_is_cut() {
        for record in [1, 3, 40, 1000] {
            let bytes = client_hello(&[extension(10, &[1]), sni("A.Example")], record);
            assert_eq!(server_name(&bytes), Hello::Name("a.example".to_owned()));
            for length in 0..bytes.len() {
                assert_eq!(
                    server_name(&bytes[..length]),
                    Hello::Incomplete,
                    "{record} {length}"
                );
            }
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_or_not_at_all_is_no_name() {
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"SSH-2.0-x\r\n".to_vec(),
            client_hello(&[], 1000),
            client_hello(&[sni("a.example"), sni("b.example")], 1000),
            client_hello(&[sni("")], 1000),
            client_hello(&[sni("a\0.example")], 1000),
            client_hello(&[extension(0, &[0, 1, 0])], 1000),
            vec![RECORD_HANDSHAKE, 3, 1, 0, 4, 2, 0, 0, 0],
            vec![RECORD_HANDSHAKE, 3, 1, 0, 0],
        ] {
            assert_eq!(server_name(&bytes), Hello::NoName, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300, byte: u8) {
            tls_hello(&bytes);
            let mut near = hello_for("a.example");
            let at = at % near.len();
            near[at] = byte;
            tls_hello(&near);
        }
    }
}
