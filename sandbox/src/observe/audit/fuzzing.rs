//! What must hold of the kernel's records, whatever a program put into them.

use std::os::unix::ffi::OsStrExt;

use super::{AuditEvent, LandlockTarget, parse_record, wire};

pub(super) const STAMP: &str = "audit(1795218819.358:15): ";

/// Any bytes as any kind of record, and as a path within one.
pub fn audit_record(bytes: &[u8]) {
    let Some((&choice, text)) = bytes.split_first() else {
        return;
    };
    let kind = [wire::LANDLOCK_ACCESS, wire::LANDLOCK_DOMAIN, wire::USER, 1300][usize::from(choice % 4)];
    any_record(kind, text);
    path_forges_nothing(text);
    // The answers to our own questions.
    let _ = (wire::Header::parse(text), wire::Status::parse(text));
    let _ = wire::rule::classify(text);
}

/// A record is read or it is not, and what was read can be told as a denial.
pub(super) fn any_record(kind: u16, text: &[u8]) {
    for record in [text.to_vec(), [STAMP.as_bytes(), text].concat()] {
        let event = parse_record(kind, &record);
        if let Some(AuditEvent::Denied(denial)) = event {
            assert_eq!(kind, wire::LANDLOCK_ACCESS);
            assert!(!denial.blockers.is_empty());
            denial.to_denial(|object, access| format!("{object} {access}"));
        }
    }
}

/// A path comes out of a record as it is, and nothing else in the record is other than the kernel wrote it.
pub(super) fn path_forges_nothing(path: &[u8]) {
    // The kernel knows no empty path and none with a NUL.
    if path.is_empty() || path.contains(&0) {
        return;
    }
    let written = as_the_kernel_writes(path);
    let text = format!("{STAMP}domain=5 blockers=fs.read_file path={written} dev=\"vda\" ino=9");
    let Some(AuditEvent::Denied(denial)) = parse_record(wire::LANDLOCK_ACCESS, text.as_bytes()) else {
        panic!("{text} is no denial");
    };
    assert_eq!(denial.domain, 5);
    assert_eq!(denial.blockers, ["fs.read_file"]);
    let LandlockTarget::File {
        path: read,
        device,
        inode,
    } = denial.target
    else {
        panic!("{text} names no file");
    };
    assert_eq!(read.as_os_str().as_bytes(), path);
    assert_eq!((device.as_deref(), inode), (Some("vda"), Some(9)));
}

/// As the kernel writes it (`audit_log_untrustedstring`).
pub(super) fn as_the_kernel_writes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text)
            if text
                .bytes()
                .all(|byte| (0x21..=0x7e).contains(&byte) && byte != b'"') =>
        {
            format!("\"{text}\"")
        }
        _ => bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
    }
}
