//! Starting a process: what must hold before it is accepted, and in which order that is done.

use std::sync::Arc;

use jiff::Timestamp;
use provost_sandbox::compile::{CompileError, PreparedSandbox};
use provost_sandbox::extras::ReadyBy;
use provost_sandbox::kernel::KernelSupport;
use tokio::sync::oneshot;

use super::Tree;
use super::validate::validate;
use crate::event::ProcessId;
use crate::head_start::{Prepared, compile_context};
use crate::log::Log;
use crate::process::{ProcessArgs, spawn_request};
use crate::proxy::ProxyPort;
use crate::spawner::lock;
use crate::spec::{ProcessSpec, Slot};
use crate::spool::{Accepted, StdinProgress, StoredSpec, monotonic};
use crate::stdin::StdinPort;
use crate::supervisor::{Claim, ProcessLink, SessionLink, SupervisorMsg};

/// Compiled sandboxes that are kept for the next process with the same policy.
const PREPARED_MAX: usize = 16;

/// A process was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SpawnRefused {
    /// The spec cannot be used.
    #[error("{0}")]
    Spec(String),
    /// The policy is wrong, or this machine cannot hold it.
    #[error(transparent)]
    Sandbox(#[from] CompileError),
    /// There is no room to write down that it was accepted.
    #[error("cannot write down that it was accepted: {0}")]
    Spool(#[source] std::io::Error),
    /// There is no port for the process's proxy.
    #[error("cannot listen on loopback for the proxy: {0}")]
    Proxy(#[source] std::io::Error),
    /// The supervisor takes nothing any more.
    #[error("{0}")]
    Gone(String),
}

impl Tree {
    /// Starts a process. It is accepted when this returns; whatever happens then, it gets its record.
    ///
    /// # Errors
    /// The spec or its policy cannot be used, or this machine cannot hold it; nothing was started.
    pub async fn spawn(&self, spec: ProcessSpec) -> Result<ProcessLink, SpawnRefused> {
        self.spawn_in(&self.own, spec).await
    }

    /// Starts a process in a session, as [`Tree::spawn`] does in none.
    ///
    /// # Errors
    /// As there.
    pub async fn spawn_in(
        &self,
        session: &SessionLink,
        spec: ProcessSpec,
    ) -> Result<ProcessLink, SpawnRefused> {
        self.spawn_noted(session, ProcessId::new(), spec, serde_json::Value::Null)
            .await
    }

    /// Starts a process in a session, under an id that no process had before. Where processes survive us, `note` is written down with it, for whoever
    /// [adopts](Self::adopt) it.
    ///
    /// # Errors
    /// As [`Tree::spawn`]; nor is it started if there is no room to write it down.
    pub async fn spawn_noted(
        &self,
        session: &SessionLink,
        id: ProcessId,
        mut spec: ProcessSpec,
        note: serde_json::Value,
    ) -> Result<ProcessLink, SpawnRefused> {
        validate(&spec)?;
        let link = self
            .link()
            .await
            .map_err(|error| SpawnRefused::Gone(error.to_string()))?;
        let (kernel, audit) = if spec.policy.confined {
            let (kernel, audit) = self.resolved().await;
            (kernel, audit.clone())
        } else {
            (&self.found, None)
        };
        let has_audit = audit.is_some();
        let mut sandbox = self.prepare(&mut spec, kernel)?;
        if spec.ready == ReadyBy::Notify && sandbox.plan.filter.is_empty() {
            let why = "it is to say that it is ready to NOTIFY_SOCKET, which only what runs under a seccomp listener can reach: \
                       not under the policy `unconfined`; use `fd`, or another policy";
            return Err(SpawnRefused::Spec(why.to_owned()));
        }
        // Nothing makes room for what cannot start; and nothing is accepted before there is room.
        let claim = match spec.slot.clone() {
            Some(slot) => {
                let claim = claim_slot(session, slot).await?;
                // Meanwhile files may have changed.
                sandbox = self.prepare(&mut spec, kernel)?;
                Some(claim)
            }
            None => None,
        };
        let proxy = match sandbox.policy.net.proxy {
            true => Some(ProxyPort::open().map_err(SpawnRefused::Proxy)?),
            false => None,
        };
        for (name, value) in proxy.iter().flat_map(ProxyPort::variables) {
            spec.env.retain(|(known, _)| known != name);
            spec.env.push((name.into(), value.into()));
        }
        let queued_at = Timestamp::now();
        let spool = match &self.keeping {
            None => None,
            Some(keeping) => {
                let accepted = Accepted {
                    process: id,
                    session: session.id.clone(),
                    queued_at,
                    boot: keeping.spool.boot().to_owned(),
                    monotonic: monotonic(),
                    spec: StoredSpec::from(&spec),
                    proxy: proxy.as_ref().map(ProxyPort::place),
                    note,
                };
                let spool = keeping.spool.clone();
                let begun = tokio::task::spawn_blocking(move || spool.begin(accepted)).await;
                Some(
                    begun
                        .map_err(std::io::Error::other)
                        .flatten()
                        .map_err(SpawnRefused::Spool)?,
                )
            }
        };
        let log = Arc::new(match &spool {
            Some(spool) => Log::in_files(id, spec.retention, spool.spool().segments(id)),
            None => Log::new(id, spec.retention),
        });
        if spec.paced {
            log.reserve_pace();
        }
        let stdin = StdinPort::new(&spec, spool.clone(), StdinProgress::default());
        let stdin = Arc::new(match &spool {
            Some(_) => stdin.kept_by(link.clone(), id),
            None => stdin,
        });
        let (request, given) = spawn_request(id, &mut spec, &sandbox);
        let args = Box::new(ProcessArgs {
            id,
            spec,
            audit: audit.filter(|_| sandbox.uses_audit()),
            sandbox,
            link: link.clone(),
            log: log.clone(),
            stdin: stdin.clone(),
            session: session.id.clone(),
            queued_at,
            spool: spool.clone(),
            session_grants: session.grants.clone(),
            proxy,
            resumed: None,
        });
        let (reply, accepted) = oneshot::channel();
        let gone = || SpawnRefused::Gone("the supervisor ended".to_owned());
        {
            let accepts = lock(&self.accepts);
            if !*accepts {
                return Err(SpawnRefused::Gone("the supervisor is shutting down".to_owned()));
            }
            // The spawner begins while the actor is made.
            let (sandbox, process) = (args.sandbox.clone(), *id.as_uuid());
            link.announce(process);
            link.post(request, Some(sandbox), given);
            if session
                .supervisor
                .send_message(SupervisorMsg::Spawn { args, claim, reply })
                .is_err()
            {
                link.disown(process);
                return Err(gone());
            }
        }
        let actor = match accepted.await {
            Ok(Ok(actor)) => actor,
            refused => {
                link.disown(*id.as_uuid());
                return Err(refused.map_or_else(
                    |_| gone(),
                    |why| SpawnRefused::Gone(why.err().unwrap_or_default()),
                ));
            }
        };
        if has_audit {
            // Asked now, it does not hold the process up.
            self.share_audit();
        }
        let spool = spool.map(|spool| spool.spool());
        Ok(ProcessLink::live(id, queued_at, actor, log, stdin, spool))
    }

    /// Its sandbox; and from then on it shares its policy with all that have the same.
    pub(super) fn prepare(
        &self,
        spec: &mut ProcessSpec,
        kernel: &KernelSupport,
    ) -> Result<Arc<PreparedSandbox>, CompileError> {
        let context = compile_context(spec);
        let mut prepared = lock(&self.prepared);
        if let Some(known) = prepared
            .iter()
            .find(|known| known.policy == spec.policy && known.context == context)
            && known.sandbox.is_current()
        {
            spec.policy = known.policy.clone();
            return Ok(known.sandbox.clone());
        }
        prepared.retain(|known| known.policy != spec.policy || known.context != context);
        let compiled = Prepared::compile(spec.policy.clone(), context, kernel)?;
        let sandbox = compiled.sandbox.clone();
        if prepared.len() >= PREPARED_MAX {
            prepared.remove(0);
        }
        prepared.push(compiled);
        Ok(sandbox)
    }
}

/// Waits until a slot is free.
async fn claim_slot(session: &SessionLink, slot: Slot) -> Result<Claim, SpawnRefused> {
    let gone = || SpawnRefused::Gone("the supervisor is shutting down".to_owned());
    let (reply, given) = oneshot::channel();
    let sent = session
        .supervisor
        .send_message(SupervisorMsg::Claim { slot, reply });
    sent.map_err(|_| gone())?;
    given.await.map_err(|_| gone())
}
