//! The keeper's own place in line when memory runs out.
//!
//! What it keeps ends with it, so it should be the last to be killed, where it may say so (root, or `CAP_SYS_RESOURCE`).
//! What it starts must not share that: a fork inherits both the score and the lowest score that it may go back to
//! without privilege, and writing the score with the privilege sets both. So the score is put back around each fork, by
//! the keeper itself: an init in a user namespace could not.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const PATH: &str = "/proc/self/oom_score_adj";
/// As journald and D-Bus are protected; not -1000, which would make it impossible to get rid of.
const PROTECTED: &str = "-900";

/// The score of this process; without the privilege nothing is changed.
#[derive(Default)]
pub(super) struct OomScore(Option<Protected>);

struct Protected {
    file: File,
    /// What it was before.
    ordinary: String,
}

impl OomScore {
    /// Protects this process, as far as it may.
    pub(super) fn protect() -> Self {
        let open = || {
            let ordinary = fs::read_to_string(PATH).ok()?.trim().to_owned();
            if ordinary.parse::<i32>().ok()? <= PROTECTED.parse().ok()? {
                return None; // who started us has seen to it
            }
            let file = File::options().write(true).open(PATH).ok()?;
            file.write_at(PROTECTED.as_bytes(), 0).ok()?;
            Some(Protected { file, ordinary })
        };
        Self(open())
    }

    /// Forks with the score of before. The child must not return from `fork`.
    pub(super) fn ordinary<T>(&self, fork: impl FnOnce() -> T) -> T {
        let Some(Protected { file, ordinary }) = &self.0 else {
            return fork();
        };
        // It could be written once, and nothing else is asked for now.
        let _ = file.write_at(ordinary.as_bytes(), 0);
        let forked = fork();
        let _ = file.write_at(PROTECTED.as_bytes(), 0);
        forked
    }
}
