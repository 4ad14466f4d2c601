//! ExitActor: the end of a command, and of its tree.
//!
//! The spawner tells both, from the init that waits for them. When the spawner is gone the pidfd still tells
//! (`PIDFD_GET_INFO`, Linux 6.15): everything that a spawner held dies with it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use provost_sandbox::keeper::wire::Usage as TreeUsage;
use provost_sandbox::spawn::exit_status;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::Interest;

use crate::ledger::{Exit, Fact};
use crate::process::ProcessMsg;
use crate::record::Usage;

/// How long a command may take to die after its spawner.
const ORPHAN_MAX: Duration = Duration::from_secs(5);

pub(crate) struct ExitActor;

pub(crate) enum ExitMsg {
    /// The command ended with this raw wait status.
    Exited { status: i32 },
    /// Nothing of the tree lives.
    Ended { killed: u64, usage: Option<TreeUsage> },
    /// The spawner is gone.
    SpawnerLost { reason: String },
}

pub(crate) struct ExitState {
    process: ActorRef<ProcessMsg>,
    pidfd: OwnedFd,
    /// The end of the command was said.
    said: bool,
}

impl Actor for ExitActor {
    type Msg = ExitMsg;
    type State = ExitState;
    type Arguments = (OwnedFd, ActorRef<ProcessMsg>);

    async fn pre_start(
        &self,
        _myself: ActorRef<ExitMsg>,
        (pidfd, process): Self::Arguments,
    ) -> Result<ExitState, ActorProcessingErr> {
        Ok(ExitState {
            process,
            pidfd,
            said: false,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<ExitMsg>,
        message: ExitMsg,
        state: &mut ExitState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ExitMsg::Exited { status } => state.exited(Some(status), ""),
            ExitMsg::Ended { killed, usage } => {
                let status = exit_status(state.pidfd.as_fd());
                state.exited(
                    status,
                    "its init was killed, and this kernel does not tell its status",
                );
                state.say(Fact::TreeEmpty {
                    killed,
                    usage: usage.map(usage_of),
                    unkillable: Vec::new(),
                });
            }
            ExitMsg::SpawnerLost { reason } => state.orphaned(reason).await,
        }
        Ok(())
    }
}

impl ExitState {
    fn say(&self, fact: Fact) {
        let _ = self.process.send_message(ProcessMsg::Fact(fact, None));
    }

    /// Says how the command ended, or that nobody knows; once.
    fn exited(&mut self, status: Option<i32>, why_unknown: &str) {
        if std::mem::replace(&mut self.said, true) {
            return;
        }
        self.say(match status {
            Some(status) => Fact::Exited(decode(status)),
            None => Fact::Lost {
                reason: why_unknown.to_owned(),
            },
        });
    }

    /// Learns from the kernel what the spawner can no longer tell.
    async fn orphaned(&mut self, reason: String) {
        let ended = tokio::time::timeout(ORPHAN_MAX, self.wait_for_end()).await;
        let status = exit_status(self.pidfd.as_fd()).filter(|_| ended.is_ok());
        self.exited(status, &reason);
        self.say(Fact::SpawnerLost { reason });
    }

    /// Waits until the command has ended and was reaped.
    async fn wait_for_end(&self) {
        let Ok(fd) = self.pidfd.try_clone() else { return };
        let Ok(fd) = crate::readiness::watch(fd, Interest::READABLE) else {
            return;
        };
        // Readable means ended; closed for reading means reaped, and only then the status is told.
        while let Ok(mut ready) = fd.readable().await {
            if ready.ready().is_read_closed() || exit_status(self.pidfd.as_fd()).is_some() {
                return;
            }
            ready.clear_ready();
        }
    }
}

/// A raw wait status in words.
pub(crate) fn decode(status: i32) -> Exit {
    use nix::libc;
    if libc::WIFSIGNALED(status) {
        Exit::Signal(signal_name(libc::WTERMSIG(status)))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    }
}

/// The name of a signal: `SIGTERM`, `SIGRTMIN+3`.
pub(crate) fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("SIGRTMIN+{}", number - 34),
    }
}

pub(crate) fn usage_of(usage: TreeUsage) -> Usage {
    Usage {
        user_ms: usage.user_us / 1000,
        system_ms: usage.system_us / 1000,
        max_rss_bytes: usage.max_rss_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::listening;

    /// What tells no status, as pidfds of older kernels do not.
    fn telling_nothing() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null").into()
    }

    #[tokio::test]
    async fn i1_a_tree_that_ended_without_a_status_is_said_to_be_lost() {
        let (process, mut facts) = listening().await;
        let arguments = (telling_nothing(), process);
        let (exit, _) = ExitActor::spawn(None, ExitActor, arguments)
            .await
            .expect("an actor");
        let ended = ExitMsg::Ended {
            killed: 2,
            usage: None,
        };
        exit.send_message(ended).expect("it lives");
        assert!(matches!(facts.recv().await, Some(Fact::Lost { .. })));
        assert!(matches!(
            facts.recv().await,
            Some(Fact::TreeEmpty { killed: 2, .. })
        ));
    }

    #[tokio::test]
    async fn a_status_is_said_once() {
        let (process, mut facts) = listening().await;
        let arguments = (telling_nothing(), process);
        let (exit, _) = ExitActor::spawn(None, ExitActor, arguments)
            .await
            .expect("an actor");
        for status in [0x700, 0x900] {
            exit.send_message(ExitMsg::Exited { status }).expect("it lives");
        }
        let ended = ExitMsg::Ended {
            killed: 0,
            usage: None,
        };
        exit.send_message(ended).expect("it lives");
        assert_eq!(facts.recv().await, Some(Fact::Exited(Exit::Code(7))));
        assert!(matches!(facts.recv().await, Some(Fact::TreeEmpty { .. })));
    }
}
