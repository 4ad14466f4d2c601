//! The own place of keeper and daemon in line when memory runs out.
//!
//! What the keeper keeps ends with it, so it should be the last to be killed, where it may say so (root, or
//! `CAP_SYS_RESOURCE`); the daemon, without which everything goes on, shortly before it. What they start must not share
//! that: a fork inherits both the score and the lowest score that it may go back to without privilege, and writing the
//! score with the privilege sets both. So the score is put back around each fork, by who forks: an init in a user namespace
//! could not. It is put back to what it was, or to 0 if it was lower: nobody is spared for somebody else because of who
//! started the daemon.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

const PATH: &str = "/proc/self/oom_score_adj";
/// The lowest that is not -1000, which would make it impossible to get rid of.
const KEEPER: i32 = -999;
/// As D-Bus is protected.
const DAEMON: i32 = -900;

/// The score of a daemon that is protected.
static OWN: Mutex<OomScore> = Mutex::new(OomScore(None));

/// Protects this process, a daemon, when memory runs out, as far as it may (root, or `CAP_SYS_RESOURCE`). Whoever then starts
/// processes does so [with the score of before](with_ordinary_score).
pub fn protect_daemon() {
    *OWN.lock().unwrap_or_else(PoisonError::into_inner) = OomScore::protect(DAEMON);
}

/// Starts a process, or becomes another program, with the score that this process had before it was
/// [protected](protect_daemon), but none below 0. One thread at a time.
pub fn with_ordinary_score<T>(start: impl FnOnce() -> T) -> T {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).ordinary(start)
}

/// The score of this process; without the privilege nothing is changed.
#[derive(Default)]
pub(super) struct OomScore(Option<Changed>);

struct Changed {
    file: File,
    /// What whoever is started gets.
    ordinary: String,
    now: String,
}

impl OomScore {
    /// Protects this process, the keeper, as far as it may.
    pub(super) fn protect_keeper() -> Self {
        Self::protect(KEEPER)
    }

    fn protect(to: i32) -> Self {
        let Some(score) = score() else {
            return Self(None);
        };
        let changed = change(score, score.min(to)).or_else(|error| match score {
            // What it was started with is not for those whom it starts.
            ..0 => change(score, score),
            _ => Err(error),
        });
        Self(changed.ok())
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
    let (ordinary, now) = (from.max(0).to_string(), to.to_string());
    file.write_at(now.as_bytes(), 0)?;
    Ok(Changed { file, ordinary, now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forked_has_the_score_of_before() {
        let before = score().expect("our own").max(0);
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
