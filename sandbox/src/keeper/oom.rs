//! The keeper's own place in line when memory runs out.
//!
//! What it keeps ends with it, so it should be the last to be killed, where it may say so (root, or `CAP_SYS_RESOURCE`).
//! What it starts must not share that: a fork inherits both the score and the lowest score that it may go back to
//! without privilege, and writing the score with the privilege sets both. So the score is put back around each fork, by
//! the keeper itself: an init in a user namespace could not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

const PATH: &str = "/proc/self/oom_score_adj";
/// As D-Bus is protected; not -1000, which would make it impossible to get rid of.
const PROTECTED: i32 = -900;

/// The score of this process; without the privilege nothing is changed.
#[derive(Default)]
pub(super) struct OomScore(Option<Changed>);

struct Changed {
    file: File,
    /// What it was before.
    ordinary: String,
    now: String,
}

impl OomScore {
    /// Protects this process, as far as it may.
    pub(super) fn protect() -> Self {
        match score() {
            // Who started us has seen to it.
            Some(score) if score <= PROTECTED => Self(None),
            Some(score) => Self(change(score, PROTECTED).ok()),
            None => Self(None),
        }
    }

    /// Forks with the score of before. The child must not return from `fork`.
    pub(super) fn ordinary<T>(&self, fork: impl FnOnce() -> T) -> T {
        let Some(changed) = &self.0 else {
            return fork();
        };
        // It could be written once, and nothing else is asked for now.
        let _ = changed.file.write_at(changed.ordinary.as_bytes(), 0);
        let forked = fork();
        let _ = changed.file.write_at(changed.now.as_bytes(), 0);
        forked
    }
}

fn score() -> Option<i32> {
    fs::read_to_string(PATH).ok()?.trim().parse().ok()
}

fn change(from: i32, to: i32) -> io::Result<Changed> {
    let file = File::options().write(true).open(PATH)?;
    let (ordinary, now) = (from.to_string(), to.to_string());
    file.write_at(now.as_bytes(), 0)?;
    Ok(Changed { file, ordinary, now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forked_has_the_score_of_before() {
        let before = score().expect("our own");
        // Upwards it goes without privilege.
        let higher = (before + 50).min(1000);
        let oom = OomScore(Some(change(before, higher).expect("upwards")));
        assert_eq!(score(), Some(higher));
        let mut child = oom
            .ordinary(|| {
                std::process::Command::new("cat")
                    .arg(PATH)
                    .stdout(std::process::Stdio::piped())
                    .spawn()
            })
            .expect("cat");
        assert_eq!(score(), Some(higher));
        let text = io::read_to_string(child.stdout.take().expect("its output")).expect("text");
        assert_eq!(text.trim(), before.to_string());
        child.wait().expect("its end");
        change(higher, before).expect("back");
    }
}
