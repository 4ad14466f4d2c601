//! Any bytes as calls, searches and rules for the seccomp filter.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_sandbox::fuzzing::bpf_layout(bytes));
