//! Fences: messages of our own in the stream, which nobody else can make come back early.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many fences may be on their way; an older one is given up.
const OUTSTANDING_MAX: usize = 1024;
const PREFIX: &str = "provost-fence";

/// A fence on its way through the audit queue.
///
/// Others with the right to write audit messages may send text of their own, so a fence carries the pid of
/// its sender, which the kernel writes beside it, and a number that nobody can guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FenceId {
    pub(super) pid: u32,
    pub(super) counter: u64,
    pub(super) random: u128,
}

impl FenceId {
    /// One that goes through a broker, on a socket of one's own: it needs no secret.
    pub(super) fn numbered(counter: u64) -> Self {
        Self {
            pid: 0,
            counter,
            random: 0,
        }
    }
}

impl fmt::Display for FenceId {
    /// The text of the message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, counter, random } = self;
        write!(f, "{PREFIX}:{pid}:{counter}:{random:032x}")
    }
}

impl FromStr for FenceId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(());
        if next()? != PREFIX {
            return Err(());
        }
        let fence = Self {
            pid: next()?.parse().map_err(drop)?,
            counter: next()?.parse().map_err(drop)?,
            random: u128::from_str_radix(next()?, 16).map_err(drop)?,
        };
        // One text for one fence: no signs, no leading zeros, nothing behind.
        if fence.to_string() == text {
            Ok(fence)
        } else {
            Err(())
        }
    }
}

/// The fences of one reader.
#[derive(Debug)]
pub(super) struct Fences {
    random: u128,
    counter: u64,
    outstanding: VecDeque<FenceId>,
}

impl Fences {
    pub(super) fn new() -> io::Result<Self> {
        let mut random = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Self {
            random: u128::from_ne_bytes(random),
            counter: 0,
            outstanding: VecDeque::new(),
        })
    }

    /// A fence that was never there before.
    pub(super) fn next(&mut self) -> FenceId {
        self.counter += 1;
        FenceId {
            // Asked each time: the process may have forked since.
            pid: std::process::id(),
            counter: self.counter,
            random: self.random,
        }
    }

    /// Remembers a fence that is about to be sent.
    pub(super) fn expect(&mut self, fence: FenceId) {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(fence);
    }

    /// Forgets all that were expected.
    pub(super) fn forget(&mut self) {
        self.outstanding.clear();
    }

    /// Whether the fence was expected; it is no longer then.
    pub(super) fn take(&mut self, fence: FenceId) -> bool {
        match self.outstanding.iter().position(|expected| *expected == fence) {
            Some(at) => self.outstanding.remove(at).is_some(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_taken_once_and_no_other_is() {
        let mut fences = Fences::new().unwrap();
        let (fence, other) = (fences.next(), fences.next());
        fences.expect(fence);
        assert!(!fences.take(other));
        assert!(fences.take(fence));
        assert!(!fences.take(fence));
    }

    #[test]
    fn fences_on_their_way_are_bounded() {
        let mut fences = Fences::new().unwrap();
        let first = fences.next();
        fences.expect(first);
        for _ in 0..OUTSTANDING_MAX {
            let next = fences.next();
            fences.expect(next);
        }
        assert_eq!(fences.outstanding.len(), OUTSTANDING_MAX);
        assert!(!fences.take(first));
    }

    #[test]
    fn only_the_exact_text_is_a_fence() {
        let fence = Fences::new().unwrap().next();
        let text = fence.to_string();
        assert_eq!(text.parse(), Ok(fence));
        for wrong in [
            format!("{text} "),
            format!("{text}:1"),
            text.replacen(':', ":+", 1),
            text.replacen(':', ":0", 1),
            text.to_uppercase(),
            text[..text.len() - 1].to_owned(),
        ] {
            assert_eq!(wrong.parse::<FenceId>(), Err(()), "{wrong}");
        }
    }
}
