//! Which processes belong to the supervised process.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Generations that are walked upwards before a process counts as a stranger.
const ANCESTORS_MAX: usize = 4096;

/// The processes of one supervised process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Its first process, as this process numbers it.
    pub init: i32,
    /// The inode of its own PID namespace (`/proc/PID/ns/pid`), if it has one. Sandboxed programs cannot
    /// make further ones.
    pub pid_namespace: Option<u64>,
}

impl Tree {
    /// Whether a thread or process, as this process numbers it, belongs to the tree.
    ///
    /// Without a PID namespace that is ancestry, so a daemon that has left its parents does not count.
    /// Whatever cannot be known counts as a stranger.
    pub fn contains(&self, pid: i32) -> bool {
        if pid <= 0 {
            return false;
        }
        match self.pid_namespace {
            Some(inode) => namespace(pid, "pid") == Some(inode),
            None => self.descends(pid),
        }
    }

    /// Whether `number`, as the *target* numbers processes, belongs to the tree.
    pub(super) fn contains_as_seen_by(&self, target: i32, number: i32) -> bool {
        let targets = namespace(target, "pid");
        match self.pid_namespace {
            // Whatever has a number in that namespace is in the tree, except for our init.
            Some(inode) => number != 1 && targets == Some(inode),
            // One numbering for both, or we cannot say whom it means.
            None => {
                targets.is_some()
                    && targets == namespace(std::process::id().cast_signed(), "pid")
                    && self.contains(number)
            }
        }
    }

    fn descends(&self, pid: i32) -> bool {
        let mut current = pid;
        for _ in 0..ANCESTORS_MAX {
            if current == self.init {
                return true;
            }
            match status(current) {
                // A thread: ancestry is its process's.
                Some(status) if status.process == self.init => return true,
                Some(status) if status.parent > 1 => current = status.parent,
                _ => return false,
            }
        }
        false
    }
}

struct Status {
    process: i32,
    parent: i32,
}

fn status(pid: i32) -> Option<Status> {
    let text = fs::read(format!("/proc/{pid}/status")).ok()?;
    // The name is the first line and escaped by the kernel: no later line can be forged.
    let field = |name: &[u8]| -> Option<i32> {
        let line = text
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(name))?;
        std::str::from_utf8(line).ok()?.trim().parse().ok()
    };
    Some(Status {
        process: field(b"Tgid:")?,
        parent: field(b"PPid:")?,
    })
}

/// The inode of one of a task's namespaces (`pid`, `net`, …).
pub(super) fn namespace(pid: i32, kind: &str) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok()?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn descendants_belong_and_strangers_do_not() {
        let me = std::process::id().cast_signed();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let tree = Tree {
            init: me,
            pid_namespace: None,
        };
        assert!(tree.contains(me));
        assert!(tree.contains(child.id().cast_signed()));
        assert!(tree.contains(nix::unistd::gettid().as_raw()), "a thread");
        for stranger in [1, 2, 0, -1, i32::MIN, i32::MAX] {
            assert!(!tree.contains(stranger), "{stranger}");
        }
        let other = Tree {
            init: child.id().cast_signed(),
            pid_namespace: None,
        };
        assert!(!other.contains(me));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!tree.contains(child.id().cast_signed()), "reaped");
    }

    #[test]
    fn with_a_pid_namespace_its_members_belong() {
        let me = std::process::id().cast_signed();
        let own = namespace(me, "pid").unwrap();
        let tree = |inode| Tree {
            init: 1,
            pid_namespace: Some(inode),
        };
        assert!(tree(own).contains(me));
        assert!(!tree(own + 1).contains(me));
        assert!(!tree(own).contains(0));
    }
}
