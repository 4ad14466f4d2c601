//! How one process is held.
//!
//! Four nouns, in order:
//!
//! ```text
//! Policy ──────► KernelSupport ──────► PreparedSandbox ──────► SandboxReport
//! the wish       what this kernel      everything allocated:   what really held
//!                offers                ruleset fds, BPF,
//!                                      mount list, C strings
//! ```
//!
//! A policy is compiled once and used for many spawns. Processes are forked by a *spawner*: a small,
//! single-threaded process (the same executable in another role) which is the only one that forks and
//! waits, so that a host program may ignore `SIGCHLD`, reap everything or hold thousands of descriptors
//! without harm to us or to it. This crate knows neither tokio nor actors.

#![deny(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests start programs of their own")
)]

pub mod compile;
pub mod denial;
pub mod environment;
pub mod extras;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handover;
pub mod keeper;
pub mod kernel;
pub mod observe;
pub mod policy;
pub mod report;
pub mod spawn;
pub mod syscalls;

mod witness;

pub use tempfile;
