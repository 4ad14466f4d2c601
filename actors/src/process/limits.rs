//! What limits refused, as denials: by the counters of the tree's groups, and by the signals that tell of a limit.

use std::time::{Duration, Instant};

use provost_sandbox::denial::{Certainty, Decision, Denial, DenialClass, DenialTarget};
use provost_sandbox::keeper::wire::{LimitHits, SignalScope};
use provost_sandbox::observe::written;
use ractor::ActorRef;

use super::{ProcessMsg, ProcessState, Timer};
use crate::ledger::{Fact, StopCause};

/// How often it is looked at what it writes; less often where looking takes its time.
const DISK_INTERVAL: Duration = Duration::from_millis(50);
const DISK_SHARE: u32 = 50;

impl ProcessState {
    /// What the limits of its groups refused it, which they tell at the end.
    pub(super) fn limit_hits(&mut self, myself: &ActorRef<ProcessMsg>, hits: LimitHits) {
        let limits = &self.args.sandbox.policy.limits;
        let (memory, tasks) = (limits.memory_bytes, limits.tasks);
        if hits.out_of_memory > 0 && memory.is_some() {
            self.fact(myself, Fact::OutOfMemory);
            self.resource_denials(myself, "memory", memory, "ENOMEM", hits.out_of_memory);
        }
        if hits.unknown {
            let fact = Fact::Unobserved("limits (a counter could not be read)".to_owned());
            self.fact(myself, fact);
        }
        if hits.tasks > 0 && tasks.is_some() {
            self.resource_denials(myself, "fork", tasks, "EAGAIN", hits.tasks);
        }
    }

    /// The signals by which the kernel ends what is at a limit of its own process.
    pub(super) fn limit_signal(&mut self, myself: &ActorRef<ProcessMsg>, status: i32) {
        use nix::libc;
        if !libc::WIFSIGNALED(status) {
            return;
        }
        let limits = &self.args.sandbox.policy.limits;
        match libc::WTERMSIG(status) {
            libc::SIGXCPU if limits.cpu_seconds.is_some() => {
                self.resource_denials(myself, "cpu_time", limits.cpu_seconds, "SIGXCPU", 1);
            }
            libc::SIGXFSZ if limits.file_bytes.is_some() => {
                self.resource_denials(myself, "file_size", limits.file_bytes, "SIGXFSZ", 1);
            }
            _ => {}
        }
    }

    /// Looks at what it writes to disks, if there is a limit, as long as it lives.
    pub(super) fn watch_disk(&mut self, myself: &ActorRef<ProcessMsg>) {
        if self.args.sandbox.policy.limits.disk_bytes.is_some() {
            self.arm(myself, DISK_INTERVAL, Timer::Disk);
        }
    }

    pub(super) fn disk(&mut self, myself: &ActorRef<ProcessMsg>) {
        if self.ledger.tree_settled() {
            return;
        }
        // A tree may be large, and `/proc` slow: nobody else waits for it.
        let (init_pid, myself) = (self.init_pid, myself.clone());
        tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let bytes = written::disk_bytes(init_pid);
            let took = began.elapsed();
            let _ = myself.send_message(ProcessMsg::Written { bytes, took });
        });
    }

    pub(super) fn written(&mut self, myself: &ActorRef<ProcessMsg>, bytes: u64, took: Duration) {
        let Some(limit) = self.args.sandbox.policy.limits.disk_bytes else {
            return;
        };
        // What is dead by now was another process's number, perhaps.
        if self.ledger.tree_settled() {
            return;
        }
        if bytes <= limit {
            let next = DISK_INTERVAL.max(took * DISK_SHARE);
            return self.arm(myself, next, Timer::Disk);
        }
        self.resource_denials(myself, "disk_written", Some(limit), "EDQUOT", 1);
        let limit = format!("disk_written = {limit}");
        // Asked politely it would go on writing.
        self.stopping = true;
        self.fact(myself, Fact::StopRequested(StopCause::OverLimit { limit }));
        self.say_signal(myself, "SIGKILL", SignalScope::Tree, "limit");
        self.kill_tree(myself);
    }

    fn resource_denials(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        operation: &str,
        limit: Option<u64>,
        errno: &str,
        count: u64,
    ) {
        let name = if operation == "fork" { "tasks" } else { operation };
        let denial = Denial {
            class: DenialClass::Resource,
            operation: operation.to_owned(),
            target: DenialTarget::default(),
            pid: None,
            comm: None,
            rule: format!("limit {name} = {}", limit.unwrap_or(0)),
            errno: errno.to_owned(),
            certainty: Certainty::Observed,
            decision: Decision::Deny,
            allow: None,
        };
        self.fact(myself, Fact::Denied(denial));
        if count > 1 {
            let (class, extra) = (DenialClass::Resource, count - 1);
            self.fact(myself, Fact::DenialsCounted { class, extra });
        }
    }
}
