//! Asking: a call that no rule permits and none forbids waits while somebody is asked about it.
//!
//! A [`Question`] holds everything that the permitted call needs: the duplicate of the socket and the copied address,
//! or the file that the path led to. What is asked about is what is performed if the answer is yes; the target's own
//! call is never continued.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::names::HeldName;
use super::opening::HeldOpen;
use super::{Answer, BlockingConnect, Response};
use crate::denial::Denial;

/// Permissions that are remembered; more are not (each is then asked about again).
const GRANTS_MAX: usize = 4096;

/// What a permission that outlives one call covers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// TCP connections to this address and port.
    Connect {
        /// The address; IPv4-mapped ones as IPv4.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// Looking up this name, and TCP connections to what was found.
    Name {
        /// In lower case, without a final dot.
        name: String,
    },
    /// Connections to the unix socket at this path.
    Socket {
        /// Its path, without symlinks.
        path: PathBuf,
    },
    /// Opening this file for reading.
    Read {
        /// Its path, without symlinks.
        path: PathBuf,
    },
    /// Opening this file for writing, reading, or making it.
    Write {
        /// Its path, without symlinks.
        path: PathBuf,
    },
}

/// Permissions that are remembered. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Grants(Arc<Mutex<HashSet<Grant>>>);

impl Grants {
    /// Remembers a permission; false where there is no room.
    pub fn add(&self, grant: Grant) -> bool {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() >= GRANTS_MAX {
            return false;
        }
        grants.insert(grant);
        true
    }

    /// Whether this was permitted.
    pub fn covers(&self, grant: &Grant) -> bool {
        let grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        grants.contains(grant)
            || match grant {
                // Who may write a file may read it.
                Grant::Read { path } => grants.contains(&Grant::Write { path: path.clone() }),
                _ => false,
            }
    }
}

/// A refused call about which somebody may be asked first.
#[derive(Debug)]
pub struct Question {
    denial: Denial,
    errno: i32,
    grant: Grant,
    act: Act,
}

/// What is done if the answer is yes.
#[derive(Debug)]
enum Act {
    Connect(BlockingConnect),
    Open(HeldOpen),
    Resolve(HeldName),
}

impl Question {
    pub(super) fn connect(denial: Denial, errno: i32, grant: Grant, connect: BlockingConnect) -> Self {
        let act = Act::Connect(connect);
        Self {
            denial,
            errno,
            grant,
            act,
        }
    }

    pub(super) fn open(denial: Denial, errno: i32, grant: Grant, open: HeldOpen) -> Self {
        let act = Act::Open(open);
        Self {
            denial,
            errno,
            grant,
            act,
        }
    }

    pub(super) fn resolve(denial: Denial, name: HeldName) -> Self {
        Self {
            denial,
            errno: 0,
            grant: name.grant(),
            act: Act::Resolve(name),
        }
    }

    /// The denial that it will be if nobody allows it.
    pub fn denial(&self) -> &Denial {
        &self.denial
    }

    /// Whoever was asked before may have let it be done, and nobody knows whether it was.
    pub(super) fn again(&mut self) {
        if let Act::Connect(connect) = &mut self.act {
            connect.again();
        }
    }

    /// What a permission for more than this call would cover.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The answer is no.
    pub fn refuse(self) -> (Answer, Denial) {
        let answer = match self.act {
            Act::Connect(_) | Act::Open(_) => Answer::Now(Response::Errno(self.errno)),
            Act::Resolve(name) => Answer::Name(name.refused()),
        };
        (answer, self.denial)
    }

    /// The answer is yes.
    pub fn permit(self) -> Answer {
        match self.act {
            Act::Connect(connect) => Answer::Blocking(connect),
            Act::Open(open) => Answer::Open(open),
            Act::Resolve(name) => Answer::Name(name),
        }
    }
}

/// A path as a grant for reading or writing names it.
pub(super) fn file_grant(path: &Path, writes: bool) -> Grant {
    let path = path.to_owned();
    if writes {
        Grant::Write { path }
    } else {
        Grant::Read { path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_what_it_names_and_nothing_else() {
        let grants = Grants::default();
        let shared = grants.clone();
        assert!(shared.add(file_grant(Path::new("/a"), true)));
        assert!(grants.covers(&file_grant(Path::new("/a"), true)));
        assert!(grants.covers(&file_grant(Path::new("/a"), false)));
        assert!(!grants.covers(&file_grant(Path::new("/a/b"), false)));
        assert!(grants.add(file_grant(Path::new("/r"), false)));
        assert!(!grants.covers(&file_grant(Path::new("/r"), true)));
        let connect = |port| Grant::Connect {
            address: "192.0.2.1".parse().unwrap(),
            port,
        };
        assert!(grants.add(connect(80)));
        assert!(grants.covers(&connect(80)) && !grants.covers(&connect(81)));
    }

    #[test]
    fn permissions_are_bounded() {
        let grants = Grants::default();
        let added = (0..GRANTS_MAX + 10)
            .filter(|n| grants.add(file_grant(Path::new(&format!("/{n}")), false)))
            .count();
        assert_eq!(added, GRANTS_MAX);
    }
}
