//! Any bytes as a process's journal.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_fuzz::journal(bytes));
