//! Any bytes as a record of the kernel's audit.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_sandbox::fuzzing::audit_record(bytes));
