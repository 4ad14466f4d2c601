//! Any bytes as a line of a client of the daemon's.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost::daemon::fuzzing::protocol_line(bytes));
