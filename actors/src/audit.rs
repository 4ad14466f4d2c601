//! AuditFeed: the one reader of Landlock's audit records, which routes them by domain.
//!
//! A record names a Landlock domain; the first record of a domain names the pid that entered it, which is the
//! command's. Records may come before the supervisor has heard of the command; they wait, in bounded number.

mod registered;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use provost_sandbox::compile::PreparedSandbox;
use provost_sandbox::denial::DenialClass;
use provost_sandbox::observe::audit::{AuditEvent, AuditSource, Drain, FenceId, LandlockDenial};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::Interest;
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::registered::{Registered, Told, rule};
use crate::denial::DenialMsg;
use crate::ledger::Fact;
use crate::process::ProcessMsg;
use crate::spool::ProcessSpool;

/// Records that are taken before other work of the runtime gets its turn: timers, too, wait for that.
const BATCH_MAX: usize = 512;
/// Domains of commands that are not registered (yet, or other people's) that are kept.
const STRANGERS_MAX: usize = 1024;
/// How long to wait for the kernel's counts where records were lost; they come some 50 ms after the end, if the machine has
/// time. Of a process that was not heard of none may come.
const RECONCILE_MAX: Duration = Duration::from_secs(1);
/// The same of a process that was refused something, for which one is sure to be made.
const OWED_MAX: Duration = Duration::from_secs(5);
/// The same for a process of which an earlier daemon may have read all there was without a trace.
const COUNT_MAX: Duration = Duration::from_millis(200);
/// Denials of an unknown domain for which there was no place may be those of a process that registers this late.
const LATE_MAX: Duration = Duration::from_secs(10);
/// Records kept for each of them.
const WAITING_MAX: usize = 256;

pub(crate) struct AuditFeed;

pub(crate) enum AuditMsg {
    /// A command that entered Landlock domains: records of these go to its process.
    Register {
        process_id: Uuid,
        pid: i32,
        process: ActorRef<ProcessMsg>,
        sandbox: Arc<PreparedSandbox>,
        /// Where what is told is written down first, if it is.
        spool: Option<Arc<ProcessSpool>>,
        /// Of a process that an earlier daemon watched: its domains, as far as that knew them, and how many denials of
        /// each it had told.
        earlier: Option<BTreeMap<u64, u64>>,
    },
    /// Forget a process.
    Unregister(Uuid),
    /// Answer when every record queued until now was delivered.
    Fence {
        process_id: Uuid,
        reply: ActorRef<DenialMsg>,
    },
    /// There is something to read.
    Readable,
    /// What was lost for this process has not been told in time.
    ReconcileExpired(Uuid),
}

/// A domain of which nobody has registered the command yet. The kernel sends a domain's first denial before it
/// says who entered the domain.
#[derive(Default)]
struct Stranger {
    pid: Option<i32>,
    /// Another user's, which no process of ours can be, whatever pid made it once.
    foreign: bool,
    waiting: Vec<LandlockDenial>,
    uncounted: u64,
    /// The domain has ended, when, and how many denials the kernel counted. A short command may be over before its
    /// supervisor has heard that it started.
    gone: Option<(Instant, u64)>,
}

impl Stranger {
    /// It was refused something, and who entered it was said to somebody else.
    fn is_orphan(&self) -> bool {
        let refused = self.gone.is_some_and(|(_, denials)| denials > 0) || !self.waiting.is_empty();
        refused && self.pid.is_none() && !self.foreign
    }
}

pub(crate) struct AuditState {
    reader: AuditSource,
    watch: JoinHandle<()>,
    processes: HashMap<Uuid, Registered>,
    domains: HashMap<u64, Domain>,
    strangers: HashMap<u64, Stranger>,
    /// Who waits for which.
    fences: HashMap<FenceId, Vec<(Uuid, ActorRef<DenialMsg>)>>,
    lost: u64,
    /// It goes on where an earlier daemon's feed ended.
    continued: bool,
    /// Whose processes these are.
    uid: u32,
    /// When there was last no place for an unknown domain.
    dropped_at: Option<Instant>,
    /// Processes that wait for the kernel's own counts, because records were lost.
    reconciling: HashMap<Uuid, ActorRef<DenialMsg>>,
    myself: ActorRef<AuditMsg>,
}

/// A Landlock domain of a registered process.
struct Domain {
    process: Uuid,
    /// Denials that were told so far.
    told: u64,
    /// The kernel has said how many there were.
    counted: bool,
}

impl Drop for AuditState {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Actor for AuditFeed {
    type Msg = AuditMsg;
    type State = AuditState;
    type Arguments = AuditSource;

    async fn pre_start(
        &self,
        myself: ActorRef<AuditMsg>,
        mut reader: AuditSource,
    ) -> Result<AuditState, ActorProcessingErr> {
        // What came while nobody read may be missing from the start.
        let missing = reader.lost().unwrap_or(u64::MAX);
        let continued = reader.is_continued();
        let watched = crate::readiness::watch(reader.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        let told = myself.clone();
        let watch = tokio::spawn(async move {
            // Told once per readiness; the actor reads until nothing is left.
            while let Ok(mut ready) = watched.readable().await {
                ready.clear_ready();
                if told.send_message(AuditMsg::Readable).is_err() {
                    return;
                }
            }
        });
        Ok(AuditState {
            reader,
            watch,
            processes: HashMap::new(),
            domains: HashMap::new(),
            strangers: HashMap::new(),
            fences: HashMap::new(),
            lost: if continued { missing } else { 0 },
            continued,
            uid: nix::unistd::getuid().as_raw(),
            dropped_at: None,
            reconciling: HashMap::new(),
            myself,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<AuditMsg>,
        message: AuditMsg,
        state: &mut AuditState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            AuditMsg::Register {
                process_id,
                pid,
                process,
                sandbox,
                spool,
                earlier,
            } => {
                let resumed = earlier.is_some();
                let lost_before = match (resumed, state.continued) {
                    (false, _) => state.lost_before(),
                    (true, true) => 0,
                    (true, false) => u64::MAX,
                };
                let registered = Registered {
                    pid,
                    process,
                    sandbox,
                    spool,
                    resumed,
                    lost_before,
                    told: Told::default(),
                    facts: Vec::new(),
                    domains: BTreeMap::new(),
                    written: Vec::new(),
                    uncounted: 0,
                };
                state.register(process_id, registered, earlier.unwrap_or_default());
            }
            AuditMsg::Unregister(process) => state.unregister(process),
            AuditMsg::Fence { process_id, reply } => state.fence(&myself, process_id, reply),
            AuditMsg::Readable => {
                state.tell_those_who_wait();
                state.read(&myself);
                // A flood keeps this actor's mailbox filled, and an actor with messages does not yield by itself.
                tokio::task::yield_now().await;
            }
            AuditMsg::ReconcileExpired(process) => state.reconciled(process),
        }
        Ok(())
    }
}

impl AuditState {
    fn register(&mut self, process_id: Uuid, registered: Registered, earlier: BTreeMap<u64, u64>) {
        let pid = registered.pid;
        self.processes.insert(process_id, registered);
        for (domain, told) in earlier {
            self.adopt(domain, process_id, told);
        }
        let found: Vec<u64> = self
            .strangers
            .iter()
            .filter(|(_, stranger)| stranger.pid == Some(pid))
            .map(|(domain, _)| *domain)
            .collect();
        for domain in found {
            self.adopt(domain, process_id, 0);
        }
        self.flush(process_id);
    }

    fn unregister(&mut self, process: Uuid) {
        self.processes.remove(&process);
        self.domains.retain(|_, domain| domain.process != process);
        self.reconciling.remove(&process);
    }

    fn fence(&mut self, myself: &ActorRef<AuditMsg>, process: Uuid, reply: ActorRef<DenialMsg>) {
        self.send_fence(vec![(process, reply)]);
        // It is usually there already.
        self.read(myself);
    }

    fn send_fence(&mut self, waiting: Vec<(Uuid, ActorRef<DenialMsg>)>) {
        match self.reader.send_fence() {
            Ok(id) => drop(self.fences.insert(id, waiting)),
            Err(error) => {
                tracing::warn!(%error, "cannot fence the audit feed");
                for (_, reply) in waiting {
                    let _ = reply.send_message(DenialMsg::AuditDrained { complete: false });
                }
            }
        }
    }

    /// Something has come, so their turn will come.
    fn tell_those_who_wait(&self) {
        let fenced = self.fences.values().flatten().map(|(_, reply)| reply);
        for reply in fenced.chain(self.reconciling.values()) {
            let _ = reply.send_message(DenialMsg::AuditAdvanced);
        }
    }

    fn read(&mut self, myself: &ActorRef<AuditMsg>) {
        let mut taken = 0;
        loop {
            let mut events = Vec::new();
            let drain = match self.reader.read(&mut events) {
                Ok(drain) => drain,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the audit feed");
                    self.give_up();
                    break;
                }
            };
            taken += events.len();
            for event in events {
                self.event(event);
            }
            for registered in self.processes.values_mut() {
                registered.flush();
            }
            if drain == Drain::Empty {
                break;
            }
            if taken >= BATCH_MAX {
                let _ = myself.send_message(AuditMsg::Readable);
                break;
            }
        }
    }

    /// Nothing that is waited for is sure to come any more.
    fn give_up(&mut self) {
        self.lost += 1;
        let waiting = self.fences.drain().flat_map(|(_, waiting)| waiting);
        let waiting = waiting.map(|(_, reply)| reply);
        for reply in waiting.chain(self.reconciling.drain().map(|(_, reply)| reply)) {
            let _ = reply.send_message(DenialMsg::AuditDrained { complete: false });
        }
    }

    fn event(&mut self, event: AuditEvent) {
        match event {
            AuditEvent::DomainAllocated { domain, pid, uid, .. } => self.allocated(domain, pid, uid),
            AuditEvent::Denied(denial) => self.denied(denial),
            AuditEvent::DomainGone { domain, denials } => self.gone(domain, denials),
            AuditEvent::Fence(id) => {
                for (process, reply) in self.fences.remove(&id).unwrap_or_default() {
                    self.fenced(process, reply);
                }
            }
            // Fences may be among what was lost, and there is room again.
            AuditEvent::Overflow => {
                let waiting: Vec<_> = self.fences.drain().flat_map(|(_, waiting)| waiting).collect();
                if !waiting.is_empty() {
                    self.send_fence(waiting);
                }
            }
        }
    }

    /// Everything that was queued before the fence has been told. If records were lost, the kernel's own count of each
    /// domain, which it tells when the domain ends, says how many.
    fn fenced(&mut self, process: Uuid, reply: ActorRef<DenialMsg>) {
        self.flush(process);
        if self.nothing_lost(process) {
            let _ = reply.send_message(DenialMsg::AuditDrained { complete: true });
            return;
        }
        let patience = match self.processes.get(&process) {
            Some(registered) if registered.resumed && registered.domains.is_empty() => COUNT_MAX,
            // A new broker does not know whose a domain is that an earlier one was told of.
            Some(registered) if registered.resumed && !self.continued => RECONCILE_MAX,
            Some(registered) if !registered.domains.is_empty() => OWED_MAX,
            _ => RECONCILE_MAX,
        };
        self.reconciling.insert(process, reply);
        self.myself
            .send_after(patience, move || AuditMsg::ReconcileExpired(process));
        self.reconcile(process);
    }

    fn gone(&mut self, id: u64, denials: u64) {
        let Some(domain) = self.domains.get_mut(&id) else {
            if let Some(stranger) = self.stranger(id) {
                stranger.gone = Some((Instant::now(), denials));
            }
            return;
        };
        domain.counted = true;
        let process = domain.process;
        let untold = denials.saturating_sub(domain.told);
        domain.told += untold;
        let told = domain.told;
        self.told(process, id, told);
        self.count(process, untold);
        self.reconcile(process);
    }

    /// Ends the waiting when every domain of the process was counted.
    fn reconcile(&mut self, process: Uuid) {
        if self.domains.values().any(|domain| domain.process == process) && self.is_counted(process) {
            self.reconciled(process);
        }
    }

    /// The details of what was lost stay unknown, so the record is not complete even if the count is exact.
    fn reconciled(&mut self, process: Uuid) {
        let Some(reply) = self.reconciling.remove(&process) else {
            return;
        };
        self.flush(process);
        // Of a process that was not watched for a while the count says whether anything is missing.
        let complete = self.continued
            && self.processes.get(&process).is_some_and(|registered| {
                registered.resumed && registered.uncounted == 0 && registered.lost_before == self.lost
            })
            && self.is_counted(process)
            && !self.strangers.values().any(Stranger::is_orphan);
        let _ = reply.send_message(DenialMsg::AuditDrained { complete });
    }

    /// Whether the kernel has said of every domain of the process how many denials there were.
    fn is_counted(&self, process: Uuid) -> bool {
        let own = |domain: &&Domain| domain.process == process;
        self.domains.values().filter(own).all(|domain| domain.counted)
    }

    fn flush(&mut self, process: Uuid) {
        if let Some(registered) = self.processes.get_mut(&process) {
            registered.flush();
        }
    }

    /// Whether no record can have been lost since the process was registered.
    fn nothing_lost(&mut self, process: Uuid) -> bool {
        match self.reader.lost() {
            Ok(lost) => self.lost += lost,
            Err(_) => return false,
        }
        self.processes.get(&process).is_some_and(|registered| {
            // What an earlier daemon had read and not written down yet, only the count can tell.
            registered.lost_before == self.lost && !registered.resumed
        })
    }

    /// What the lost counter has to be for a process that registers now, if nothing of it was lost.
    fn lost_before(&self) -> u64 {
        match self.dropped_at {
            Some(when) if when.elapsed() < LATE_MAX => u64::MAX,
            _ => self.lost,
        }
    }

    fn allocated(&mut self, domain: u64, pid: i32, uid: u32) {
        if uid != self.uid {
            if let Some(stranger) = self.stranger(domain) {
                stranger.foreign = true;
                stranger.waiting = Vec::new();
            }
            return;
        }
        let owner = self
            .processes
            .iter()
            .find(|(_, registered)| registered.pid == pid)
            .map(|(process, _)| *process);
        if let Some(process) = owner {
            self.adopt(domain, process, 0);
        } else if let Some(stranger) = self.stranger(domain) {
            stranger.pid = Some(pid);
        }
    }

    /// The domain is this process's: what waited for that is delivered.
    fn adopt(&mut self, domain: u64, process: Uuid, before: u64) {
        if self.domains.contains_key(&domain) {
            return; // said twice
        }
        let (mut told, mut counted) = (before, false);
        self.told(process, domain, told);
        if let Some(stranger) = self.strangers.remove(&domain) {
            for denial in &stranger.waiting {
                told += 1;
                self.deliver(process, denial, told);
            }
            told += stranger.uncounted;
            self.count(process, stranger.uncounted);
            if let Some((_, denials)) = stranger.gone {
                let untold = denials.saturating_sub(told);
                told += untold;
                self.count(process, untold);
                counted = true;
            }
            self.told(process, domain, told);
        }
        self.domains.insert(
            domain,
            Domain {
                process,
                told,
                counted,
            },
        );
    }

    fn denied(&mut self, denial: LandlockDenial) {
        if let Some(domain) = self.domains.get_mut(&denial.domain) {
            domain.told += 1;
            let (process, told) = (domain.process, domain.told);
            self.deliver(process, &denial, told);
        } else if let Some(stranger) = self.stranger(denial.domain) {
            if stranger.foreign {
                return;
            }
            if stranger.waiting.len() < WAITING_MAX {
                stranger.waiting.push(denial);
            } else {
                stranger.uncounted += 1;
            }
        }
    }

    /// The place of an unknown domain, while there is room for more of them. What has no place is lost, to whom it may
    /// concern.
    fn stranger(&mut self, domain: u64) -> Option<&mut Stranger> {
        if self.strangers.len() >= STRANGERS_MAX && !self.strangers.contains_key(&domain) {
            // Nobody who is still to come can own what ended so long ago.
            let late = |gone: Instant| gone.elapsed() < LATE_MAX;
            self.strangers
                .retain(|_, stranger| stranger.gone.is_none_or(|(when, _)| late(when)));
        }
        if self.strangers.len() >= STRANGERS_MAX && !self.strangers.contains_key(&domain) {
            self.lost += 1;
            self.dropped_at = Some(Instant::now());
            return None;
        }
        Some(self.strangers.entry(domain).or_default())
    }

    fn deliver(&mut self, process: Uuid, denial: &LandlockDenial, told: u64) {
        let Some(registered) = self.processes.get_mut(&process) else {
            return;
        };
        registered.domains.insert(denial.domain, told);
        if denial.is_moot() || !registered.told.is_to_be_told(denial) {
            return;
        }
        let sandbox = &registered.sandbox;
        let fact = denial.to_denial(|path, access| rule(sandbox, path, access));
        registered.facts.push(Fact::Denied(fact));
    }

    /// So many denials of this domain have been told, once what is to be told has been.
    fn told(&mut self, process: Uuid, domain: u64, told: u64) {
        if let Some(registered) = self.processes.get_mut(&process) {
            registered.domains.insert(domain, told);
        }
    }

    fn count(&mut self, process: Uuid, extra: u64) {
        if let Some(registered) = self.processes.get_mut(&process) {
            registered.uncounted += extra;
            registered.count(DenialClass::Filesystem, extra);
        }
    }
}
