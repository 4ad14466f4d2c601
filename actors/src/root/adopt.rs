//! Processes that an earlier daemon accepted, taken up again.

use std::sync::Arc;

use provost_sandbox::keeper::wire::HeldState;
use provost_sandbox::policy::Policy;
use tokio::io::Interest;
use tokio::sync::oneshot;

use super::{SpawnRefused, Tree};
use crate::event::ProcessId;
use crate::process::{KILL_MAX, ProcessArgs, Resumed, Unkept};
use crate::proxy::ProxyPort;
use crate::spawner::lock;
use crate::spool::{Loaded, monotonic};
use crate::stdin::StdinPort;
use crate::supervisor::{ProcessLink, SessionLink, SupervisorMsg};

impl Tree {
    /// Takes up a process that was loaded from the spool: in this session, or none. One that has its record is only
    /// there to be read.
    ///
    /// # Errors
    /// The supervisor takes nothing any more. What there is of the process is as it was.
    pub async fn adopt(
        &self,
        session: Option<&SessionLink>,
        loaded: Loaded,
    ) -> Result<ProcessLink, SpawnRefused> {
        let id = loaded.accepted.process;
        let link = lock(&self.link).clone();
        if let Some(record) = loaded.record {
            // It may have been forgotten already, which is no error.
            lock(&self.inventory).trees.remove(id.as_uuid());
            let spool = loaded.journal.spool();
            loaded.journal.once_kept(move || link.forget(*id.as_uuid()));
            return Ok(ProcessLink::ended(id, record, spool));
        }
        let queued_at = loaded.accepted.queued_at;
        let mut spec = loaded.accepted.spec.restore();
        let (kernel, audit) = if spec.policy.confined {
            let (kernel, audit) = self.resolved().await;
            (kernel, audit.clone())
        } else {
            (&self.found, None)
        };
        let mut cannot_go_on = None;
        let sandbox = self.prepare(&mut spec, kernel).or_else(|error| {
            // What decides about its calls cannot be made again.
            cannot_go_on = Some(format!("its policy cannot be held any more: {error}"));
            let mut unconfined = loaded.accepted.spec.restore();
            unconfined.policy = Policy::unconfined().into();
            self.prepare(&mut unconfined, kernel)
        })?;
        let port = loaded.accepted.proxy.as_ref();
        let proxy = match (sandbox.policy.net.proxy, port.map(ProxyPort::reopen)) {
            (true, Some(Ok(port))) => Some(port),
            (true, refused) => {
                let why = refused.and_then(Result::err).map(|error| error.to_string());
                cannot_go_on = Some(format!("its proxy is gone: {}", why.unwrap_or_default()));
                None
            }
            (false, _) => None,
        };
        let accepted = loaded.accepted.monotonic;
        let accepted_before = accepted.and_then(|then| monotonic()?.checked_sub(then));
        let progress = loaded.stdin;
        let stdin = StdinPort::new(&spec, Some(loaded.journal.clone()), progress);
        let stdin = Arc::new(stdin.kept_by(link.clone(), id));
        let session = session.unwrap_or(&self.own);
        let uses_audit = sandbox.uses_audit();
        let args = Box::new(ProcessArgs {
            id,
            spec,
            audit: audit.filter(|_| uses_audit),
            sandbox,
            link: link.clone(),
            log: loaded.log.clone(),
            stdin: stdin.clone(),
            session: session.id.clone(),
            queued_at,
            spool: Some(loaded.journal.clone()),
            session_grants: session.grants.clone(),
            proxy,
            resumed: Some(Box::new(Resumed {
                held: self.held(id, &loaded),
                ledger: loaded.ledger,
                untold: loaded.untold,
                accepted_before,
                cannot_go_on,
            })),
        });
        let (reply, adopted) = oneshot::channel();
        let gone = || SpawnRefused::Gone("the supervisor ended".to_owned());
        let sent = session.supervisor.send_message(SupervisorMsg::Spawn {
            args,
            claim: None,
            reply,
        });
        sent.map_err(|_| gone())?;
        let actor = adopted.await.map_err(|_| gone())?.map_err(SpawnRefused::Gone)?;
        if uses_audit {
            self.share_audit();
        }
        let spool = Some(loaded.journal.spool());
        Ok(ProcessLink::live(id, queued_at, actor, loaded.log, stdin, spool))
    }

    /// What the keeper says of a process, or why it says nothing.
    fn held(
        &self,
        id: ProcessId,
        loaded: &Loaded,
    ) -> Result<(HeldState, Vec<std::os::fd::OwnedFd>), Unkept> {
        let mut inventory = lock(&self.inventory);
        if let Some(held) = inventory.trees.remove(id.as_uuid()) {
            return Ok(held);
        }
        let boot = self.keeping.as_ref().map(|keeping| keeping.spool.boot());
        let same_boot = boot.is_none_or(|boot| boot == loaded.accepted.boot);
        let exit = self.exits.get(id.as_uuid()).copied();
        Err(Unkept::why(same_boot, inventory.was_there, exit))
    }

    /// Kills what the keeper holds of a process that cannot be taken up, and waits until it is dead, but not for ever.
    /// Whether there was anything.
    pub async fn disown(&self, process: ProcessId) -> bool {
        let id = process.as_uuid();
        let Some((state, descriptors)) = lock(&self.inventory).trees.remove(id) else {
            return false;
        };
        let link = lock(&self.link).clone();
        link.disown(*id);
        // The first is the init's, with which everything ends.
        if let (HeldState::Started(_), Some(pidfd)) = (state, descriptors.into_iter().next())
            && let Ok(pidfd) = crate::readiness::watch(pidfd, Interest::READABLE)
            && tokio::time::timeout(KILL_MAX, pidfd.readable()).await.is_err()
        {
            tracing::error!(%process, "it was killed, and is not dead yet");
        }
        link.forget(*id);
        true
    }

    /// Kills what the keeper holds and nobody took up: there is no journal of it. How many.
    pub fn disown_rest(&self) -> usize {
        let link = lock(&self.link).clone();
        let rest = std::mem::take(&mut lock(&self.inventory).trees);
        for process in rest.keys() {
            link.disown(*process);
            link.forget(*process);
        }
        rest.len()
    }
}
