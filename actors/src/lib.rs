//! How supervised processes live.
#![forbid(unsafe_code)]

pub mod event;
pub mod ledger;
pub mod log;
pub mod record;
