//! Any bytes as a policy file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost::policy_file::fuzzing::policy_file(bytes));
