//! Any bytes as a message to the resolver.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_sandbox::fuzzing::dns(bytes));
