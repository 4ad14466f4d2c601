//! What a daemon and its helpers hold of the machine, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;

/// What one process holds.
#[derive(Debug, Clone)]
pub(crate) struct Footprint {
    /// `VmRSS`.
    pub(crate) memory_kib: u64,
    descriptors: usize,
    threads: usize,
    children: usize,
}

/// Threads that come and go with what is done every second.
const PASSING_THREADS: usize = 3;

impl Footprint {
    /// As many descriptors and children, and as many threads but for those that come and go.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.descriptors, self.children) == (other.descriptors, other.children)
            && self.threads.abs_diff(other.threads) <= PASSING_THREADS
    }
}

/// The daemon with this pid, its keeper, its instances and their keepers, by name. They are all children of it: whoever
/// launches a keeper is its parent as long as it lives.
pub(crate) fn of(daemon: u32) -> BTreeMap<String, Footprint> {
    let children = children();
    let mut all = BTreeMap::new();
    let mut add = |name: &str, pid: u32| {
        if let Some(print) = look(pid, &children) {
            all.insert(name.to_owned(), print);
        }
    };
    add("daemon", daemon);
    for child in children.get(&daemon).into_iter().flatten() {
        match comm(*child).as_str() {
            "provost-keeper" => add("its keeper", *child),
            _ => {
                add("instance", *child);
                for keeper in children.get(child).into_iter().flatten() {
                    add("the instance's keeper", *keeper);
                }
            }
        }
    }
    all
}

fn look(pid: u32, children: &BTreeMap<u32, Vec<u32>>) -> Option<Footprint> {
    let count = |what: &str| Some(fs::read_dir(format!("/proc/{pid}/{what}")).ok()?.count());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(Footprint {
        memory_kib: memory.trim().strip_suffix(" kB")?.parse().ok()?,
        descriptors: count("fd")?,
        threads: count("task")?,
        children: children.get(&pid).map_or(0, Vec::len),
    })
}

fn comm(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

/// Every process's children, zombies included: one that is not reaped is held as well.
fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut all: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which may have anything in it.
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        if let Some(parent) = rest.split(' ').nth(1).and_then(|word| word.parse().ok()) {
            all.entry(parent).or_default().push(pid);
        }
    }
    all
}
