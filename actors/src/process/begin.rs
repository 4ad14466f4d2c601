//! How it begins: with descriptors and children of its own, or not at all.

use std::os::fd::OwnedFd;

use provost_sandbox::keeper::wire::Started;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::{ProcessMsg, ProcessState, Timer};
use crate::denial::{DenialActor, DenialArgs};
use crate::exit::ExitActor;
use crate::ledger::Fact;
use crate::stream::{StreamActor, StreamArgs};

impl ProcessState {
    pub(super) fn did_not_start(&mut self, myself: &ActorRef<ProcessMsg>, why: &str) {
        let reason = self.refused.take().unwrap_or_else(|| why.to_owned());
        let exit_code = 125;
        self.fact(myself, Fact::SpawnFailed { reason, exit_code });
    }

    /// It will not have started; what there is of it is killed first.
    pub(super) fn refuse(&mut self, myself: &ActorRef<ProcessMsg>, reason: &str) {
        self.refused.get_or_insert_with(|| reason.to_owned());
        self.kill_tree(myself);
    }

    /// The command runs: its children actors begin.
    pub(super) async fn started(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        started: Started,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ActorProcessingErr> {
        if self.refused.is_some() {
            return Ok(()); // it came too late; its tree is being killed
        }
        self.started_with(myself, started, true, fds).await
    }

    /// What comes with its descriptors: without its output where that is not kept any more.
    pub(super) async fn started_with(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        started: Started,
        output: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ActorProcessingErr> {
        let streams = if output { self.args.spec.streams() } else { &[] };
        let others =
            usize::from(started.stdin_pipe) + usize::from(started.listener) + started.extras.count();
        let relays = if started.relay { 2 } else { 0 };
        if fds.len() < 1 + streams.len() + relays + others {
            // The kernel leaves out descriptors for which there is no room.
            let reason = "this process has no room for its descriptors (RLIMIT_NOFILE); raise the limit or \
                          run fewer at a time";
            self.refuse(myself, reason);
            return Ok(());
        }
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or("the spawner sent too few descriptors");
        let pidfd = next()?;
        let outputs = streams.iter().map(|_| next()).collect::<Result<Vec<_>, _>>()?;
        let mut relay = match started.relay {
            true => Some((next()?, next()?)),
            false => None,
        };
        if started.stdin_pipe {
            self.args.stdin.open(pipe::Sender::from_owned_fd(next()?)?);
        }
        if let (true, Some(master)) = (started.terminal, outputs.first()) {
            let master = pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?;
            self.args.stdin.open_terminal(master);
        }
        let listener = if started.listener { Some(next()?) } else { None };
        let extras: Vec<OwnedFd> = fds.collect();
        self.init_pid = started.init_pid;
        self.last_output = Instant::now();
        self.fact(
            myself,
            Fact::Started {
                pid: started.pid,
                report: self.args.sandbox.report.clone(),
            },
        );
        let ready = self.take_extras(myself, started.extras, extras);
        let cell = myself.get_cell();
        if self.args.sandbox.policy.confined && !self.ledger.is_drained() {
            let args = DenialArgs {
                process_id: started.process,
                process: myself.clone(),
                sandbox: self.args.sandbox.clone(),
                listener,
                ready,
                pid: started.pid,
                init_pid: started.init_pid,
                pid_namespace: started.pid_namespace,
                audit: self.args.audit.clone(),
                ask_timeout: self.args.spec.ask_timeout,
                session_grants: self.args.session_grants.clone(),
                proxy: self.args.proxy.take(),
                spool: self.args.spool.clone(),
            };
            let (denials, _) = DenialActor::spawn_linked(None, DenialActor, args, cell.clone()).await?;
            self.denials = Some(denials);
        }
        for (&stream, fd) in streams.iter().zip(outputs) {
            if self.ledger.is_closed(stream) {
                continue;
            }
            let args = StreamArgs {
                stream,
                pipe: fd,
                log: self.args.log.clone(),
                process: myself.clone(),
                spool: self.args.spool.as_ref().map(|spool| spool.spool()),
                relay: relay.take().filter(|_| self.args.spool.is_some()),
            };
            let (actor, _) = StreamActor::spawn_linked(None, StreamActor, args, cell.clone()).await?;
            self.streams.push((stream, actor));
        }
        let args = (pidfd, myself.clone());
        let (exit, _) = ExitActor::spawn_linked(None, ExitActor, args, cell).await?;
        self.exit = Some(exit);
        self.arm_timeout(myself);
        if let Some(idle) = self.args.spec.idle_timeout {
            self.arm(myself, idle, Timer::Idle);
        }
        self.watch_disk(myself);
        Ok(())
    }
}
