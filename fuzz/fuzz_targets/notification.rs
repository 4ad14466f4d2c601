//! Any bytes as what a notified call hands over: addresses, arguments, paths.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_sandbox::fuzzing::notification(bytes));
