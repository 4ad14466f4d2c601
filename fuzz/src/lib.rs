//! What the fuzz targets do. What must hold is in the crates, in files named `fuzzing.rs`.

mod ledger;

/// Takes any bytes and panics where something does not hold.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 10] = [
    ("audit_record", provost_sandbox::fuzzing::audit_record),
    ("bpf_layout", provost_sandbox::fuzzing::bpf_layout),
    ("dns", provost_sandbox::fuzzing::dns),
    ("journal", journal),
    ("ledger", ledger::ledger),
    ("notification", provost_sandbox::fuzzing::notification),
    ("policy_file", provost::policy_file::fuzzing::policy_file),
    ("protocol_line", provost::daemon::fuzzing::protocol_line),
    ("spawner_message", provost_sandbox::fuzzing::spawner_message),
    ("tls_hello", provost_actors::tls_hello),
];

pub use ledger::ledger;

/// Any bytes as the journal of a process.
///
/// # Panics
/// Loading it panics, or what is loaded contradicts itself; or there is no room on the disk.
pub fn journal(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    provost_actors::spool::fuzzing::journal(directory.path(), bytes);
}
