//! Policy files: a policy as TOML, on top of a preset or of another file.
//!
//! ```toml
//! version = 1
//! extends = "workspace-write"
//!
//! [files]
//! write = ["~/.cache/pip"]
//! deny = ["secrets/**"]
//!
//! [net]
//! allow = ["127.0.0.1:5432"]
//! ```
//!
//! A file is read once, checked as a whole, and turned into a [`Policy`](crate::Policy) whose rules say from which line
//! they come: denials quote it. Every error names the file, the line and the key.

mod error;
mod find;
mod format;
// The command line writes policies out, so it is needed here.
#[cfg(all(feature = "cli", any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub mod fuzzing;
mod merge;

pub use error::PolicyFileError;
// The daemon's configuration is read with the same care.
#[cfg(feature = "cli")]
pub(crate) use error::Text;
#[cfg(feature = "cli")]
pub(crate) use find::{NO_SUCH_FILE, read_file};
pub use find::{PolicyName, names};
#[cfg(feature = "cli")]
pub(crate) use format::deserialize;
pub use merge::{EnvironmentPolicy, LoadedPolicy, PolicyFileContext, load};

#[cfg(test)]
mod tests;

/// The JSON schema of policy files.
#[cfg(feature = "cli")]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(format::PolicyFile).to_value()
}
