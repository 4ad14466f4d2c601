//! Any bytes as facts told to a ledger.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_fuzz::ledger(bytes));
