//! The command, between vfork and exec.
//!
//! Contract: this code shares its memory with the init, which is suspended meanwhile. It makes system calls on
//! memory that was prepared before the fork and does nothing else: no allocation, no locks, no environment, no
//! formatting, no tracing, no unwinding. It reports into [`Attempt`] and ends by exec or exit.
//!
//! The steps, in order; the order is the documentation:
//!
//! 1. nothing about signals: all are blocked, and at their defaults since the spawner began, which handles none
//! 2. a session and process group of its own; its terminal, where it has one, becomes the controlling one
//! 3. resource limits
//! 4. working directory
//! 5. capabilities dropped, from the bounding set too, then `no_new_privs`
//! 6. Landlock layers (this task calls it, so that audit records name its pid)
//! 7. the seccomp filter; its listener appears in the descriptor table that is shared with the init
//! 8. a descriptor table of its own, stdio moved to 0, 1, 2, what it was handed besides to 3 and 4, everything else closed
//! 9. in a sandbox made ahead: wait for the order to go on
//! 10. signals unblocked, exec

#![allow(unsafe_code)]

use super::Step;
use super::image::Image;
use super::sys::{self, Errno};
use super::terminal;

/// What the command is given and what it reports; lives on the init's stack.
pub(super) struct Attempt<'a> {
    pub(super) image: &'a mut Image,
    /// The step that failed; 0 while none has.
    pub(super) step: u32,
    pub(super) errno: Errno,
    pub(super) detail: u32,
    /// The command's pid as the spawner numbers it; 0 where that is unknown. Only the command can find it out in
    /// time: once it has ended nobody can.
    pub(super) pid: i32,
    /// The listener's number in the init's table, or -1.
    pub(super) listener: i32,
}

/// Entry point for the vfork.
pub(super) extern "C" fn entry(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the init passes its `Attempt`, and is suspended until we exec or exit.
    let attempt = unsafe { &mut *argument.cast::<Attempt<'_>>() };
    let (step, errno, detail) = become_command(attempt);
    attempt.step = step as u32;
    attempt.errno = errno;
    attempt.detail = detail;
    sys::exit(127);
}

/// Returns only on failure.
fn become_command(attempt: &mut Attempt<'_>) -> (Step, Errno, u32) {
    match prepare(attempt) {
        Ok(()) => {}
        Err(failure) => return failure,
    }
    exec(attempt.image)
}

fn prepare(attempt: &mut Attempt<'_>) -> Result<(), (Step, Errno, u32)> {
    let image = &*attempt.image;
    let plan = &image.request.plan;
    attempt.pid = sys::pid_in(image.proc).unwrap_or(0);
    sys::setsid().map_err(|e| (Step::Session, e, 0))?;
    if image.terminal.is_some() {
        terminal::control(image.stdio[0]).map_err(|e| (Step::Terminal, e, 4))?;
    }
    // Where the init dies without a namespace that takes the rest along, the command at least goes with it.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map_err(|e| (Step::Session, e, 1))?;
    if let Some(soft) = image.descriptors_soft {
        sys::set_soft_rlimit(libc::RLIMIT_NOFILE, soft).map_err(|e| (Step::Limits, e, u32::MAX))?;
    }
    for (index, (resource, value)) in plan.rlimits.iter().enumerate() {
        sys::set_rlimit(*resource, *value).map_err(|e| (Step::Limits, e, index as u32))?;
    }
    sys::chdir(&image.cwd).map_err(|e| (Step::WorkingDirectory, e, 0))?;
    if plan.drop_capabilities {
        drop_capabilities(image.last_capability).map_err(|e| (Step::Capabilities, e, 0))?;
    }
    if plan.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(|e| (Step::NoNewPrivs, e, 0))?;
    }
    for (index, ruleset) in image.rulesets.iter().enumerate() {
        sys::landlock_restrict_self(*ruleset, plan.landlock_flags)
            .map_err(|e| (Step::Landlock, e, index as u32))?;
    }
    if !image.filter.is_empty() {
        attempt.listener = sys::install_filter(&image.filter).map_err(|e| (Step::Seccomp, e, 0))?;
    }
    let stdio = image.stdio;
    sys::unshare(libc::CLONE_FILES).map_err(|e| (Step::Stdio, e, 0))?;
    for (to, from) in stdio.into_iter().enumerate() {
        sys::dup2(from, to as i32).map_err(|e| (Step::Stdio, e, 1))?;
    }
    // Only now: stdio may have come from these numbers.
    for (from, to) in &image.extras {
        sys::dup2(*from, *to).map_err(|e| (Step::Stdio, e, 3))?;
    }
    sys::close_all_but(&image.command_keep).map_err(|e| (Step::Stdio, e, 2))?;
    if image.waits {
        sys::wait_for_order(image.control).map_err(|e| (Step::InitDied, e, 1))?;
    }
    Ok(())
}

fn drop_capabilities(last: u32) -> Result<(), Errno> {
    for capability in 0..=last {
        match sys::prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0) {
            // Without CAP_SETPCAP there is nothing to drop: an ordinary user has no capabilities, and
            // no_new_privs keeps exec from giving any.
            Ok(_) | Err(libc::EPERM) => {}
            Err(libc::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    sys::drop_capability_sets()
}

/// Tries the candidates as `execvp` does. Reports the most telling error.
fn exec(image: &Image) -> (Step, Errno, u32) {
    sys::set_signal_mask(0);
    let mut telling = libc::ENOENT;
    let program = image.program.read();
    for index in 0.. {
        let file = program.candidate(index);
        if file.is_null() {
            break;
        }
        let env = program.env;
        // SAFETY: the arrays were made null-terminated, of NUL-terminated strings that outlive this call.
        let mut errno = unsafe { sys::execve(file, program.argv, env) };
        if errno == libc::ENOEXEC {
            // A script without `#!`.
            // SAFETY: as above.
            errno = unsafe { sys::execve(c"/bin/sh".as_ptr(), program.shell_for(file), env) };
        }
        match errno {
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            libc::EACCES => telling = errno,
            other => return (Step::Exec, other, index as u32),
        }
    }
    (Step::Exec, telling, 0)
}
