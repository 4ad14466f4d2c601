//! Any bytes as a packet between host and spawner.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_sandbox::fuzzing::spawner_message(bytes));
