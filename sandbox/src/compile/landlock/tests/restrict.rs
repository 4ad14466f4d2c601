//! Restricts one thread of the test process, for the length of a closure.
//!
//! Contract: the raw calls get descriptors that outlive them and attributes on the stack, and they change
//! the calling thread only, which ends with the closure. Nothing here runs outside of tests.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::path::Path;

use super::{LandlockLayers, MountedGrant};

/// The kernel's Landlock version.
pub(super) fn abi() -> u32 {
    // SAFETY: without an attribute and with the version flag the call reads and writes no memory.
    // WHY: the landlock crate does not tell the number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            1u32,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Runs `attempt` in a thread that these layers hold.
pub(in super::super) fn restricted<T: Send>(
    layers: &LandlockLayers,
    attempt: impl FnOnce() -> T + Send,
) -> T {
    restricted_with(layers, || {}, attempt)
}

/// The same, with `prepare` (mounts) run in the thread before the rules for mounts are added.
pub(in super::super) fn restricted_with<T: Send>(
    layers: &LandlockLayers,
    prepare: impl FnOnce() + Send,
    attempt: impl FnOnce() -> T + Send,
) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            prepare();
            restrict_this_thread(layers);
            attempt()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Adds the rules for what this thread has mounted at the grant's path.
pub(super) fn add_mounted(layers: &LandlockLayers, grant: &MountedGrant) {
    #[repr(C, packed)]
    struct PathBeneath {
        allowed: u64,
        parent: i32,
    }
    let root = std::fs::File::open(Path::new(&grant.path)).unwrap();
    for (ruleset, allowed) in layers.rulesets.iter().zip(&grant.access) {
        let rule = PathBeneath {
            allowed: *allowed,
            parent: root.as_raw_fd(),
        };
        if *allowed == 0 {
            continue;
        }
        // SAFETY: `rule` has the kernel's layout and lives across the call; both descriptors are open.
        // WHY: the landlock crate cannot add rules to a ruleset that it no longer owns.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                1u32,
                &raw const rule,
                0u32,
            )
        };
        assert_eq!(rc, 0, "add_rule: {}", std::io::Error::last_os_error());
    }
}

fn restrict_this_thread(layers: &LandlockLayers) {
    nix::sys::prctl::set_no_new_privs().unwrap();
    for ruleset in &layers.rulesets {
        let flags = layers.restrict_flags;
        // SAFETY: the call takes a descriptor and flags, no memory.
        // WHY: this is the call that children make; the crate's own would hide the flags.
        let rc = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), flags) };
        assert_eq!(rc, 0, "restrict_self: {}", std::io::Error::last_os_error());
    }
}
