//! The text of a record, parsed as strictly as the kernel writes it.
//!
//! ```text
//! audit(1795218819.358:15): domain=1deaa615a blockers=fs.read_file path="/etc/passwd" dev="vda" ino=1196042
//! audit(1795218819.338:12): domain=1deaa615a status=allocated mode=enforcing pid=9747 uid=0 exe="/usr/bin/sh" comm="sh"
//! audit(1795218819.430:30): domain=1deaa615a status=deallocated denials=18
//! audit(1795218819.334:10): pid=9703 uid=0 auid=4294967295 ses=4294967295 msg='…'
//! ```
//!
//! Text that a program may choose (a path, a name) comes in double quotes where it consists of visible
//! ASCII without quotes, and as bare upper-case hexadecimal digits otherwise. So a space always ends a
//! field, and no path can look like one. Fields count by their place, not by their name.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::denial::{LandlockDenial, LandlockTarget};
use super::{AuditEvent, FenceId, wire};

/// Bound on the number of blockers in a record; Landlock has two dozen kinds of access.
const BLOCKERS_MAX: usize = 64;

/// What a record says; nothing where it is none of ours or not as the kernel writes it.
///
/// A refusal whose target cannot be read is still a refusal: its target is then
/// [`LandlockTarget::Unknown`]. A fence is recognised by its form here; whether it is one's own is for the
/// reader to know.
pub fn parse_record(kind: u16, text: &[u8]) -> Option<AuditEvent> {
    let mut fields = Fields {
        rest: after_stamp(text)?,
    };
    match kind {
        wire::LANDLOCK_ACCESS => Some(AuditEvent::Denied(refusal(&mut fields)?)),
        wire::LANDLOCK_DOMAIN => domain(&mut fields),
        wire::USER => Some(AuditEvent::Fence(fence(&mut fields)?)),
        _ => None,
    }
}

/// What follows `audit(SECONDS.MILLISECONDS:SERIAL): `.
fn after_stamp(text: &[u8]) -> Option<&[u8]> {
    let rest = digits(text.strip_prefix(b"audit(")?)?.strip_prefix(b".")?;
    let rest = digits(rest)?.strip_prefix(b":")?;
    digits(rest)?.strip_prefix(b"): ")
}

/// What follows one or more decimal digits.
fn digits(text: &[u8]) -> Option<&[u8]> {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    if end == 0 { None } else { text.get(end..) }
}

/// The fields of a record, one space between each, from left to right.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The next field, whatever it is.
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let mut parts = self.rest.splitn(2, |byte| *byte == b' ');
        let field = parts.next()?;
        self.rest = parts.next().unwrap_or_default();
        Some(field)
    }

    /// The next field's value, if that field has this name. Otherwise it stays.
    fn value(&mut self, name: &str) -> Option<&'a [u8]> {
        let before = self.rest;
        let value = self
            .next()
            .and_then(|field| field.strip_prefix(name.as_bytes()))
            .and_then(|field| field.strip_prefix(b"="));
        if value.is_none() {
            self.rest = before;
        }
        value
    }

    /// The next field's value as a number or an address.
    fn parse<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        std::str::from_utf8(self.value(name)?).ok()?.parse().ok()
    }

    /// The same where the field may be absent; nothing if it is there and cannot be read.
    fn optional<T: std::str::FromStr>(&mut self, name: &str) -> Option<Option<T>> {
        match self.value(name) {
            None => Some(None),
            Some(value) => std::str::from_utf8(value).ok()?.parse().ok().map(Some),
        }
    }

    /// The next field's value, which a program may have chosen.
    fn untrusted(&mut self, name: &str) -> Option<Vec<u8>> {
        untrusted(self.value(name)?)
    }

    fn domain(&mut self) -> Option<u64> {
        let hex = self.value("domain")?;
        // Rust would take a sign.
        if !hex.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u64::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    }
}

/// Undoes `audit_log_untrustedstring`.
fn untrusted(value: &[u8]) -> Option<Vec<u8>> {
    if let Some(inner) = value.strip_prefix(b"\"") {
        let inner = inner.strip_suffix(b"\"")?;
        let plain = |byte: &u8| (0x21..=0x7e).contains(byte) && *byte != b'"';
        return inner.iter().all(plain).then(|| inner.to_vec());
    }
    if value.is_empty() || !value.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    value
        .chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

fn refusal(fields: &mut Fields<'_>) -> Option<LandlockDenial> {
    let domain = fields.domain()?;
    let blockers = std::str::from_utf8(fields.value("blockers")?).ok()?;
    if blockers.is_empty() {
        return None;
    }
    let blockers: Vec<String> = blockers
        .split(',')
        .take(BLOCKERS_MAX)
        .map(str::to_owned)
        .collect();
    let target = target(fields, &blockers).unwrap_or(LandlockTarget::Unknown);
    Some(LandlockDenial {
        domain,
        blockers,
        target,
    })
}

/// What was refused. The first field tells the form; fields that later kernels may append are passed over.
fn target(fields: &mut Fields<'_>, blockers: &[String]) -> Option<LandlockTarget> {
    if let Some(path) = fields.value("path") {
        let path = untrusted(path)?;
        if blockers
            .iter()
            .any(|blocker| blocker == "scope.abstract_unix_socket")
        {
            return Some(socket(&path));
        }
        return Some(file(path, fields));
    }
    if let Some(name) = fields.value("name") {
        return Some(file(untrusted(name)?, fields));
    }
    if let Some(pid) = fields.value("opid") {
        return Some(LandlockTarget::Task {
            pid: std::str::from_utf8(pid).ok()?.parse().ok()?,
            comm: lossy(fields.untrusted("ocomm")?),
        });
    }
    if blockers.iter().any(|blocker| blocker.starts_with("net.")) {
        return net(fields);
    }
    None
}

fn file(path: Vec<u8>, fields: &mut Fields<'_>) -> LandlockTarget {
    let device = fields.untrusted("dev").map(lossy);
    LandlockTarget::File {
        path: PathBuf::from(OsString::from_vec(path)),
        inode: if device.is_some() {
            fields.parse("ino")
        } else {
            None
        },
        device,
    }
}

/// An abstract socket's name begins with a NUL, which everybody writes as `@`.
fn socket(name: &[u8]) -> LandlockTarget {
    LandlockTarget::Socket {
        name: match name {
            [0, rest @ ..] => format!("@{}", String::from_utf8_lossy(rest)),
            path => String::from_utf8_lossy(path).into_owned(),
        },
    }
}

/// Source and destination, each only where it is not the wildcard: `saddr src daddr dest`. Binding names the
/// source, connecting the destination.
fn net(fields: &mut Fields<'_>) -> Option<LandlockTarget> {
    let local = (fields.optional("saddr")?, fields.optional("src")?);
    let remote = (fields.optional("daddr")?, fields.optional("dest")?);
    let (address, port) = if remote == (None, None) { local } else { remote };
    // Neither is the wildcard address and port 0, unless something unknown follows.
    let known = fields.rest.is_empty() || address.is_some() || port.is_some();
    known.then_some(LandlockTarget::Net { address, port })
}

fn domain(fields: &mut Fields<'_>) -> Option<AuditEvent> {
    let domain = fields.domain()?;
    match fields.value("status")? {
        b"allocated" => {
            fields.value("mode")?;
            let pid = fields.parse("pid")?;
            let uid = fields.parse("uid")?;
            let exe = lossy(fields.untrusted("exe")?);
            let comm = lossy(fields.untrusted("comm")?);
            Some(AuditEvent::DomainAllocated {
                domain,
                pid,
                uid,
                comm,
                exe,
            })
        }
        b"deallocated" => {
            let denials = fields.parse("denials")?;
            Some(AuditEvent::DomainGone { domain, denials })
        }
        _ => None,
    }
}

/// A message of ours, if the kernel says that the pid in it sent it.
fn fence(fields: &mut Fields<'_>) -> Option<FenceId> {
    let pid: u32 = fields.parse("pid")?;
    fields.value("uid")?;
    fields.value("auid")?;
    fields.value("ses")?;
    // Where a security module labels processes.
    fields.value("subj");
    let message = fields.value("msg")?.strip_prefix(b"'")?.strip_suffix(b"'")?;
    let fence: FenceId = std::str::from_utf8(message).ok()?.parse().ok()?;
    (fields.rest.is_empty() && fence.pid == pid).then_some(fence)
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
