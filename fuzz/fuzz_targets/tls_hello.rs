//! Any bytes as the first of a connection through the proxy.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| provost_actors::tls_hello(bytes));
