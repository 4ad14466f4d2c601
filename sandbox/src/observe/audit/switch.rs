//! Switching audit on and off: who may, who does, and who puts things back.
//!
//! Audit is one per machine. Three files in a directory that belongs to root alone (`/run/provost`) settle
//! it between all processes that read:
//!
//! - `audit.lock`: the turnstile, held exclusively for the moment of coming or going;
//! - `audit.users`: held shared by everybody who relies on audit being on because of us;
//! - `audit.state`: there while it is on because of us; says what was before.
//!
//! Who comes through the turnstile and finds audit off and unowned writes the state, takes his share of
//! `audit.users`, sets the backlog limit, adds our rule, and switches on, in this order. Who goes tries to
//! hold `audit.users` alone; if he can, he is the last and puts everything back, the state last of all.
//! Locks die with their holders, so a killed reader holds up nobody; the state that it leaves behind is
//! taken over by the next one in, who will be a last one out.
//!
//! One thing cannot be put back: once audit was on, the kernel gives every new task an audit context, which
//! costs each of its system calls some 40 ns, also while audit is off. Only a `task,never` rule prevents
//! that, so the cost begins when ours is removed and lasts until the next boot. Leaving the rule behind
//! would be cheaper, and would silence the system call rules of an administrator who loads some later.
//!
//! What belongs to somebody else is not touched: audit that is on without a state of ours is only
//! listened to; and if a daemon or foreign rules appear while it is on because of us, then leaving takes
//! away our rule and nothing else.

mod lock;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::AuditUnavailable;
use super::control::{Control, Rules};
use super::wire::Status;
use lock::{Before, Turnstile};

#[cfg(test)]
pub(super) use lock::{Alone, among_tests};

/// How many records may wait in the kernel's queue; its default of 64 lost up to 6 % of 50,000.
const BACKLOG_LIMIT: u32 = 8192;

/// What to do on coming in.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It is on and not ours: change nothing.
    Listen,
    /// It is on because of us: use it too.
    Join,
    /// It is off and nobody's.
    SwitchOn,
    /// It can not be had, or only at someone else's expense.
    Refuse(&'static str),
}

fn decide(status: &Status, rules: Rules, switched_by_us: bool) -> Decision {
    if status.failure == Status::FAILURE_PANIC {
        return Decision::Refuse(
            "audit is set to panic the machine when a record is lost, and a sandboxed program could lose some",
        );
    }
    if rules.hides_landlock {
        return Decision::Refuse("an audit rule excludes Landlock's records (or may); see auditctl -l");
    }
    match (status.enabled, switched_by_us) {
        (0, _) if status.daemon != 0 || rules.foreign => Decision::Refuse(
            "audit is off, and there is an audit daemon or somebody's rules; switch it on with auditctl -e 1",
        ),
        (0, _) => Decision::SwitchOn,
        (_, true) => Decision::Join,
        (_, false) => Decision::Listen,
    }
}

/// A share in audit being on.
#[derive(Debug)]
pub(super) struct Switch {
    directory: PathBuf,
    users: File,
    before: Before,
}

impl Switch {
    /// Comes in; nothing where audit is on and not ours.
    pub(super) fn enter(
        directory: &Path,
        control: &mut Control,
    ) -> Result<Option<Self>, AuditUnavailable> {
        let turnstile = match lock::prepare(directory).and_then(|()| Turnstile::pass(directory)) {
            Ok(turnstile) => turnstile,
            // Somebody is coming or going: nothing is certain.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(cannot("lock a file in", directory)(error));
            }
            // Listening to somebody else's audit needs no files of ours.
            Err(error) => {
                let (status, rules) = look(control)?;
                return match decide(&status, rules, false) {
                    Decision::Listen if !rules.ours => Ok(None),
                    Decision::Refuse(why) => Err(AuditUnavailable::new(why)),
                    _ => Err(cannot("lock a file in", directory)(error)),
                };
            }
        };
        Self::enter_inside(&turnstile, directory, control)
    }

    /// Comes in only where it is on because of us.
    pub(super) fn join(
        directory: &Path,
        control: &mut Control,
    ) -> Result<Option<Self>, AuditUnavailable> {
        let turnstile = lock::prepare(directory)
            .and_then(|()| Turnstile::pass(directory))
            .map_err(cannot("lock a file in", directory))?;
        let (status, rules) = look(control)?;
        match decide(&status, rules, lock::state_exists(directory)) {
            Decision::Join => Self::enter_inside(&turnstile, directory, control),
            _ => Ok(None),
        }
    }

    fn enter_inside(
        _turnstile: &Turnstile,
        directory: &Path,
        control: &mut Control,
    ) -> Result<Option<Self>, AuditUnavailable> {
        let users = lock::open_users(directory).map_err(cannot("open a file in", directory))?;
        let boot =
            lock::boot_id().map_err(|error| AuditUnavailable::new(format!("no boot id: {error}")))?;
        let state = lock::read_state(directory).map_err(cannot("read the state in", directory))?;
        let state = state.filter(|state| state.boot == boot);
        let (status, rules) = look(control)?;
        let decision = decide(&status, rules, state.is_some());
        match decision {
            Decision::Listen => return Ok(None),
            Decision::Refuse(why) => return Err(AuditUnavailable::new(why)),
            Decision::Join | Decision::SwitchOn => {}
        }

        let too_small = (1..BACKLOG_LIMIT).contains(&status.backlog_limit);
        let before = state.unwrap_or(Before {
            boot,
            backlog_limit: status.backlog_limit,
            backlog_limit_set: if too_small {
                BACKLOG_LIMIT
            } else {
                status.backlog_limit
            },
        });
        // Held exclusively only inside the turnstile, so this cannot fail for long; and never waits.
        users
            .try_lock_shared()
            .map_err(io::Error::from)
            .map_err(cannot("lock a file in", directory))?;
        let switch = Self {
            directory: directory.to_owned(),
            users,
            before,
        };
        if decision == Decision::SwitchOn
            && let Err(error) = switch.switch_on(control, rules, too_small)
        {
            switch.restore_if_last(control);
            return Err(AuditUnavailable::new(format!(
                "it cannot be switched on: {error}"
            )));
        }
        Ok(Some(switch))
    }

    /// Whether [`Switch::enter`] would likely succeed.
    pub(super) fn could_enter(directory: &Path, control: &mut Control) -> Result<(), AuditUnavailable> {
        let (status, rules) = look(control)?;
        match decide(&status, rules, lock::state_exists(directory)) {
            Decision::Listen => return Ok(()),
            Decision::Refuse(why) => return Err(AuditUnavailable::new(why)),
            Decision::Join | Decision::SwitchOn => {}
        }
        match lock::check_private(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = directory.parent().unwrap_or(directory);
                access(parent, AccessFlags::W_OK)
                    .map_err(io::Error::from)
                    .map_err(cannot("write to", parent))
            }
            other => other.map_err(cannot("use", directory)),
        }
    }

    fn switch_on(&self, control: &mut Control, rules: Rules, raise_backlog: bool) -> io::Result<()> {
        lock::write_state(&self.directory, &self.before)?;
        if raise_backlog {
            control.set_backlog_limit(BACKLOG_LIMIT)?;
        }
        // First the rule: from the moment that audit is on, every new task without it would be given an
        // audit context and pay for it with each system call until it ends.
        if !rules.ours {
            control.add_rule()?;
        }
        control.set_enabled(1)
    }

    /// Goes out, and puts everything back if nobody else is in.
    pub(super) fn leave(self, control: &mut Control) {
        match Turnstile::pass(&self.directory) {
            Ok(_turnstile) => self.restore_if_last(control),
            // The next one in finds the state, and will be a last one out.
            Err(error) => tracing::warn!(%error, "audit stays on: its lock could not be had"),
        }
    }

    /// Inside the turnstile: nobody comes or goes meanwhile.
    fn restore_if_last(self, control: &mut Control) {
        let alone = self.users.unlock().is_ok() && self.users.try_lock().is_ok();
        if alone && let Err(error) = self.restore_all(control) {
            tracing::warn!(%error, "audit could not be put back to what it was");
        }
        // Closing alone would leave the lock with a child that is just between fork and exec.
        let _ = self.users.unlock();
    }

    fn restore_all(&self, control: &mut Control) -> io::Result<()> {
        restore(control, &self.before)?;
        lock::remove_state(&self.directory)
    }
}

/// Undoes what [`Switch::switch_on`] did, as far as nobody else relies on it by now.
fn restore(control: &mut Control, before: &Before) -> io::Result<()> {
    let status = control.status()?;
    if status.enabled == Status::ENABLED_LOCKED {
        // Somebody locked it as it is, our rule with it, until the next boot.
        return Ok(());
    }
    let rules = control.rules()?;
    // On, but our rule is gone: whoever cleared the rules has taken over.
    let taken_over = status.daemon != 0 || rules.foreign || (status.enabled != 0 && !rules.ours);
    if !taken_over && status.enabled != 0 {
        control.set_enabled(0)?;
    }
    if rules.ours {
        control.delete_rule()?;
    }
    if !taken_over
        && status.backlog_limit == before.backlog_limit_set
        && before.backlog_limit != before.backlog_limit_set
    {
        control.set_backlog_limit(before.backlog_limit)?;
    }
    Ok(())
}

fn look(control: &mut Control) -> Result<(Status, Rules), AuditUnavailable> {
    let refused = |error: io::Error| {
        AuditUnavailable::new(match error.raw_os_error() {
            Some(libc::EPERM) => {
                "asking for its state needs CAP_AUDIT_CONTROL in the initial PID namespace; \
                                  run Provost as root on the host"
                    .to_owned()
            }
            Some(libc::ECONNREFUSED) => "the kernel has no audit system for a user namespace; \
                                         run Provost as root on the host"
                .to_owned(),
            _ => format!("its state cannot be read: {error}"),
        })
    };
    Ok((
        control.status().map_err(refused)?,
        control.rules().map_err(refused)?,
    ))
}

fn cannot(verb: &str, path: &Path) -> impl Fn(io::Error) -> AuditUnavailable {
    let what = format!("cannot {verb} {}", path.display());
    move |error| AuditUnavailable::new(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Status = Status {
        enabled: 0,
        failure: 1,
        daemon: 0,
        backlog_limit: 64,
        lost: 0,
    };
    const NO_RULES: Rules = Rules {
        ours: false,
        foreign: false,
        hides_landlock: false,
    };

    #[test]
    fn what_belongs_to_somebody_else_is_never_switched() {
        let on = Status { enabled: 1, ..OFF };
        let daemon = Status { daemon: 77, ..OFF };
        let foreign = Rules {
            foreign: true,
            ..NO_RULES
        };
        let ours = Rules {
            ours: true,
            ..NO_RULES
        };
        assert_eq!(decide(&OFF, NO_RULES, false), Decision::SwitchOn);
        assert_eq!(decide(&OFF, ours, true), Decision::SwitchOn);
        assert_eq!(decide(&on, ours, true), Decision::Join);
        assert_eq!(decide(&on, NO_RULES, false), Decision::Listen);
        assert_eq!(decide(&on, foreign, false), Decision::Listen);
        assert_eq!(decide(&on, ours, false), Decision::Listen);
        for by_us in [false, true] {
            assert!(matches!(decide(&daemon, NO_RULES, by_us), Decision::Refuse(_)));
            assert!(matches!(decide(&OFF, foreign, by_us), Decision::Refuse(_)));
        }
    }

    #[test]
    fn a_machine_that_panics_or_hides_is_refused() {
        let panics = Status {
            enabled: 1,
            failure: 2,
            ..OFF
        };
        assert!(matches!(decide(&panics, NO_RULES, false), Decision::Refuse(_)));
        let hides = Rules {
            foreign: true,
            hides_landlock: true,
            ..NO_RULES
        };
        let on = Status { enabled: 1, ..OFF };
        assert!(matches!(decide(&on, hides, true), Decision::Refuse(_)));
    }
}
