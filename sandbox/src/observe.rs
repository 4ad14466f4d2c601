//! How refusals are learned of: seccomp notifications and Landlock audit records.

pub mod audit;
pub mod notify;
pub mod written;
