//! Limits, by the best means that this machine has, and the words that say which.

use super::lacking;
use crate::keeper::plan::CgroupPlan;
use crate::kernel::{KernelSupport, LimitGroups};
use crate::policy::{Degrade, Policy};
use crate::report::{Degradation, UnsupportedError};

/// As many as a kernel can number; a pids cgroup takes no larger limit.
const TASKS_MAX: u64 = 4 * 1024 * 1024;

/// The time over which CPU time is shared out, and the least that can be: the kernel's usual values.
const CPU_PERIOD_US: u64 = 100_000;
const CPU_QUOTA_US_MIN: u64 = 1000;

/// What holds the limits.
#[derive(Debug, Default)]
pub(super) struct LimitPlan {
    pub(super) rlimits: Vec<(u32, u64)>,
    pub(super) cgroups: Vec<CgroupPlan>,
    pub(super) described: Vec<String>,
}

pub(super) fn plan(
    policy: &Policy,
    kernel: &KernelSupport,
    degraded: &mut Vec<Degradation>,
) -> Result<LimitPlan, UnsupportedError> {
    let mut plan = LimitPlan::default();
    let best_effort = policy.degrade == Degrade::BestEffort;
    if let Some(tasks) = policy.limits.tasks {
        // The init is one of them.
        let with_init = tasks.saturating_add(1);
        if let Some(groups) = &kernel.pids_groups {
            plan.group(groups, &[("pids.max", with_init.min(TASKS_MAX).to_string())]);
            plan.described.push(format!("tasks={tasks} (pids cgroup)"));
        } else if kernel.needs_user_namespace && kernel.pid_namespace.is_yes() && policy.confined {
            // Tasks are counted by user and user namespace, and the namespace is the process's own.
            plan.rlimits.push((libc::RLIMIT_NPROC, with_init));
            plan.described
                .push(format!("tasks={tasks} (RLIMIT_NPROC in a user namespace)"));
        } else {
            lacking(
                best_effort,
                degraded,
                "limit tasks",
                "no pids cgroup may be made here, and RLIMIT_NPROC counts all of the user's tasks",
                "run as root or where a cgroup is delegated",
            )?;
        }
    }
    if let Some(bytes) = policy.limits.memory_bytes {
        if let Some(groups) = &kernel.memory_groups {
            let file = if groups.unified {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            };
            plan.group(groups, &[(file, bytes.to_string())]);
            plan.described.push(format!("memory={bytes} (memory cgroup)"));
        } else {
            plan.rlimits.push((libc::RLIMIT_DATA, bytes));
            plan.described.push(format!(
                "memory={bytes} (RLIMIT_DATA, for each process by itself)"
            ));
        }
    }
    if let Some(millis) = policy.limits.cpu_millis {
        let cpus = format!("{}.{:03}", millis / 1000, millis % 1000);
        if let Some(groups) = &kernel.cpu_groups {
            let quota = (millis.saturating_mul(CPU_PERIOD_US) / 1000)
                .max(CPU_QUOTA_US_MIN)
                .to_string();
            let period = CPU_PERIOD_US.to_string();
            match groups.unified {
                true => plan.group(groups, &[("cpu.max", format!("{quota} {period}"))]),
                false => plan.group(
                    groups,
                    &[("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)],
                ),
            }
            plan.described.push(format!("cpus={cpus} (cpu cgroup)"));
        } else {
            lacking(
                best_effort,
                degraded,
                "limit CPUs",
                "no cpu cgroup may be made here",
                "run as root or where a cgroup with the cpu controller is delegated, or use --cpu-time",
            )?;
        }
    }
    if let Some(bytes) = policy.limits.disk_bytes {
        plan.described
            .push(format!("disk-written={bytes} (looked at now and then)"));
    }
    if let Some(seconds) = policy.limits.cpu_seconds {
        // At the soft limit SIGXCPU says why it ends; a little later it is killed.
        plan.rlimits.push((libc::RLIMIT_CPU, seconds));
        plan.described.push(format!(
            "cpu-time={seconds}s (RLIMIT_CPU, for each process by itself)"
        ));
    }
    if let Some(files) = policy.limits.open_files {
        plan.rlimits.push((libc::RLIMIT_NOFILE, files));
        plan.described.push(format!(
            "open-files={files} (RLIMIT_NOFILE, for each process by itself)"
        ));
    }
    if let Some(bytes) = policy.limits.file_bytes {
        plan.rlimits.push((libc::RLIMIT_FSIZE, bytes));
        plan.described.push(format!(
            "file-size={bytes} (RLIMIT_FSIZE, for each process by itself)"
        ));
    }
    Ok(plan)
}

impl LimitPlan {
    fn group(&mut self, groups: &LimitGroups, files: &[(&str, String)]) {
        let files = files
            .iter()
            .map(|(file, value)| ((*file).to_owned(), value.clone()));
        // In v2 a process is in one group, whatever that limits.
        let known = self
            .cgroups
            .iter_mut()
            .find(|group| group.unified && groups.unified);
        match known {
            Some(group) => group.files.extend(files),
            None => self.cgroups.push(CgroupPlan {
                parent: groups.parent.clone(),
                unified: groups.unified,
                files: files.collect(),
            }),
        }
    }
}
