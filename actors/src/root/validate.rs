//! Which specs cannot be used, whatever this machine offers.

use std::os::fd::OwnedFd;

use super::SpawnRefused;
use crate::slots::SLOT_BYTES_MAX;
use crate::spec::{ProcessSpec, Slot, StdinSpec};

pub(super) fn validate(spec: &ProcessSpec) -> Result<(), SpawnRefused> {
    let refuse = |why: String| Err(SpawnRefused::Spec(why));
    if spec.argv.first().is_none_or(|program| program.is_empty()) {
        return refuse("no command to run".to_owned());
    }
    if let Some(Slot { name, .. }) = &spec.slot
        && (name.is_empty() || name.len() > SLOT_BYTES_MAX || name.chars().any(char::is_control))
    {
        return refuse(format!(
            "{name:?} cannot be a slot: want 1 to {SLOT_BYTES_MAX} bytes without control characters"
        ));
    }
    let nul = |text: &std::ffi::OsStr| text.as_encoded_bytes().contains(&0);
    if let Some(bad) = spec.argv.iter().find(|argument| nul(argument)) {
        return refuse(format!("the argument {bad:?} has a NUL byte in it"));
    }
    for (key, value) in &spec.env {
        if nul(key) || nul(value) || key.is_empty() || key.as_encoded_bytes().contains(&b'=') {
            return refuse(format!("{key:?} cannot be an environment variable"));
        }
    }
    if let (true, StdinSpec::Given(given)) = (spec.policy.confined, &spec.stdin)
        && let Some(why) = leads_out(given)
    {
        return refuse(format!(
            "standard input {why}; give a pipe, a file or a stream socket"
        ));
    }
    if spec.terminal.is_some() && matches!(spec.stdin, StdinSpec::Given(_)) {
        return refuse("the terminal is its standard input: it cannot be given another".to_owned());
    }
    if !spec.cwd.is_absolute() {
        return refuse(format!("the working directory {:?} is not absolute", spec.cwd));
    }
    match std::fs::metadata(&spec.cwd) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => refuse(format!(
            "the working directory {} is not a directory",
            spec.cwd.display()
        )),
        Err(error) => refuse(format!("the working directory {}: {error}", spec.cwd.display())),
    }
}

/// Why a sandboxed command must not have this descriptor, if there is a reason.
fn leads_out(given: &OwnedFd) -> Option<&'static str> {
    use nix::libc;
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    let kind = nix::sys::stat::fstat(given).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    match kind {
        libc::S_IFDIR => {
            Some("is a directory: paths that begin there pass by the mounts that hide and protect files")
        }
        libc::S_IFSOCK if getsockopt(given, sockopt::SockType) != Ok(SockType::Stream) => {
            Some("is a socket that can send to any address")
        }
        _ => None,
    }
}
