//! How supervised processes live.
//!
//! ```text
//! RootActor ─ link to the spawner or the keeper (its longer-lived role), compiled sandboxes
//! ├─ SupervisorActor (one per session)
//! │   └─ ProcessActor ── Ledger (pure) ── Log ──► cursors; with a keeper a journal of facts first (Spool)
//! │       ├─ StreamActor ×1..2  stdout and stderr, or a terminal: bytes into memory or a file, then the fact
//! │       ├─ ExitActor          exit status, empty tree
//! │       └─ DenialActor        seccomp listener: decisions, denials, approvals; the process's proxy
//! └─ AuditFeed                  Landlock's audit records, routed by domain
//! ```
//!
//! Child actors send facts to their ProcessActor's mailbox, which is the one ordering point. The
//! [`ledger`] numbers them into events and seals the terminal record; the [`log`] keeps events and bytes;
//! readers follow it with cursors. Calls go down the tree, facts go up.

#![forbid(unsafe_code)]

pub mod approval;
pub mod event;
pub mod jobs;
pub mod ledger;
pub mod log;
pub mod record;
pub mod restart;
pub mod session;
pub mod spec;
pub mod spool;

mod audit;
mod denial;
mod exit;
mod head_start;
mod keeping;
mod process;
mod proxy;
mod readiness;
pub mod reported;
mod root;
pub mod slots;
mod spawner;
mod stdin;
mod stream;
mod supervisor;
#[cfg(test)]
mod testing;
mod workers;

pub use head_start::Expected;
pub use keeping::Keeping;
pub use process::{NEVER_STARTED, ProcessCommand};
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use proxy::tls_hello;
pub use root::{ShutdownReport, SpawnRefused, Tree};
pub use spawner::{LaunchedSpawner, StartError};
pub use supervisor::{ProcessLink, SessionLink, WeakProcessLink};
