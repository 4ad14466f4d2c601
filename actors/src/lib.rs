//! How supervised processes live.
#![forbid(unsafe_code)]
