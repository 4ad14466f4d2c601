//! How much a tree has written to disks.
//!
//! The kernel counts for each process the bytes that it caused to be written (`write_bytes` of `/proc/PID/io`, proc(5)),
//! adds to a parent's what a child had when it is waited for, and limits none of it. Memory file systems do not count.

use std::fs;

/// Processes that are looked at.
const PROCESSES_MAX: usize = 65_536;

/// The bytes that the process and its descendants have caused to be written to disks, the dead ones included that were
/// waited for. What may not be looked at is left out: another user's processes, and as an ordinary user the init of a
/// sandbox, with what it has waited for.
pub fn disk_bytes(root: i32) -> u64 {
    let mut total = 0u64;
    let mut waiting = vec![root];
    let mut seen = 0;
    while let Some(pid) = waiting.pop() {
        seen += 1;
        if seen > PROCESSES_MAX {
            break;
        }
        total = total.saturating_add(written(pid).unwrap_or(0));
        for thread in fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            waiting.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            );
        }
    }
    total
}

fn written(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?;
    line.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_children_wrote_that_are_gone_counts() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let before = disk_bytes(std::process::id().cast_signed());
        let script = format!(
            "dd if=/dev/zero of={}/f bs=65536 count=32 2>/dev/null",
            directory.path().display()
        );
        assert!(
            std::process::Command::new("sh")
                .args(["-c", &script])
                .status()
                .unwrap()
                .success()
        );
        let after = disk_bytes(std::process::id().cast_signed());
        assert!(after - before >= 32 * 65536, "{before} {after}");
    }
}
