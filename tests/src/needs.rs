//! What a test may need from the machine.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::World;

/// Says that something is missing; fails where the environment declares that nothing may be.
///
/// # Panics
/// If `MUST_HAVE` is `all`.
pub fn missing(what: &str) {
    assert!(
        std::env::var_os("MUST_HAVE").is_none_or(|value| value != "all"),
        "MUST_HAVE=all, but this machine lacks: {what}"
    );
    println!("skipped: this machine lacks {what}");
}

/// The kernel's Landlock version, 0 without.
pub fn landlock_abi() -> i64 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no addresses and returns a number.
    // WHY: no safe wrapper asks for nothing but the version.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            VERSION,
        )
    };
    version.max(0)
}

/// Whether the world's user may make a PID namespace: as root, or inside a user namespace.
pub fn pid_namespaces(world: &World) -> bool {
    world.is_root() || succeeds(world, "unshare", &["--user", "--pid", "--fork", "true"])
}

/// Whether a command exists where the tests look for commands.
pub fn command(name: &str) -> bool {
    which(name).is_some()
}

fn which(name: &str) -> Option<PathBuf> {
    let directories = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    directories
        .iter()
        .map(|directory| PathBuf::from(directory).join(name))
        .find(|path| path.is_file())
}

/// Whether a helper program's attempt gets through without a sandbox: what the kernel does not offer at all
/// proves nothing.
pub fn possible(world: &World, words: &[&str]) -> bool {
    let escape = crate::program("escape");
    let words: Vec<&str> = std::iter::once(escape.as_str())
        .chain(words.iter().copied())
        .collect();
    bare(world, &words).is_some_and(|code| code == 3)
}

/// Whether a program other than the staged one gets through, see [`possible`].
pub fn gets_through(world: &World, words: &[&str]) -> bool {
    bare(world, words).is_some_and(|code| code == 3)
}

/// Whether a command succeeds for the world's user, outside of any sandbox.
pub fn succeeds(world: &World, name: &str, arguments: &[&str]) -> bool {
    let words: Vec<&str> = std::iter::once(name).chain(arguments.iter().copied()).collect();
    bare(world, &words).is_some_and(|code| code == 0)
}

/// The exit code of a command of the world's user, outside of any sandbox.
fn bare(world: &World, words: &[&str]) -> Option<i32> {
    let mut command = Command::new(words.first()?);
    command.args(&words[1..]).current_dir(world.work());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    command.status().ok()?.code()
}

/// The cgroup of version 2 that a process is in, unless that is the machine's own.
pub fn group(pid: nix::unistd::Pid) -> Option<PathBuf> {
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(mount))
    })?;
    path.contains("provost-").then(|| mount.join(path))
}
