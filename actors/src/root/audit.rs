//! Where this tree has audit records from, and that audit is on.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use provost_sandbox::keeper::wire::Request;
use provost_sandbox::observe::audit::{AuditSource, AuditUnavailable};
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::Tree;
use super::actor::RootMsg;
use crate::audit::AuditMsg;
use crate::spawner::lock;

/// The keeper's name for the socket of audit records.
pub(super) const AUDIT: &str = "audit";

impl Tree {
    /// Has the keeper keep the socket, with what comes while nobody reads.
    pub(super) fn keep_audit(&self, audit: Option<&AuditSource>) {
        let socket = audit.and_then(AuditSource::socket);
        if let (Some(_), Some(socket)) = (&self.keeping, socket)
            && let Ok(copy) = socket.try_clone_to_owned()
        {
            let name = AUDIT.to_owned();
            lock(&self.link).post(Request::Hold { name }, None, Some(copy));
        }
    }

    /// Where audit records of this user's processes are to be had: a socket of an
    /// [`AuditBroker`](provost_sandbox::observe::audit::AuditBroker). To be said before anything is started.
    pub fn use_audit_broker(&self, socket: OwnedFd) {
        *lock(&self.audit_broker) = Some(socket);
    }

    /// Has the spawner hold a share in audit being on: it puts audit back after us, also if we are killed.
    pub fn share_audit(&self) {
        if !self.audit_shared.swap(true, Ordering::Relaxed) {
            lock(&self.link).post(Request::ShareAudit, None, None);
        }
    }

    pub(super) async fn start_feed(&self, reader: AuditSource) -> Option<ActorRef<AuditMsg>> {
        let (reply, started) = oneshot::channel();
        let reader = Box::new(reader);
        self.root
            .send_message(RootMsg::StartFeed { reader, reply })
            .ok()?;
        started.await.ok().flatten()
    }
}

/// A broker may take its time, which is nobody else's.
pub(super) async fn open_audit(broker: Option<OwnedFd>) -> Result<AuditSource, AuditUnavailable> {
    if broker.is_none() {
        return AuditSource::open(None);
    }
    let opened = tokio::task::spawn_blocking(|| AuditSource::open(broker)).await;
    opened.unwrap_or_else(|error| {
        Err(AuditUnavailable {
            reason: error.to_string(),
        })
    })
}
