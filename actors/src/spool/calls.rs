//! Calls that were received from a process's listener and not answered yet.
//!
//! ```text
//! <process>.calls    slots of 128 bytes, each with the call that was written into it last
//! ```
//!
//! The kernel hands each call out once: what a supervisor had received when it died, nobody is ever told again, and its
//! thread would wait for ever. So each is written down before anything is done about it. A slot is used again once its call
//! was answered and is never emptied: the kernel knows which of them still wait.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;
use provost_sandbox::observe::notify::Notification;

use super::{Directory, ProcessSpool};
use crate::event::ProcessId;
use crate::spawner::lock;

/// No slot crosses a page, so that each is written at once.
const SLOT_BYTES: usize = 128;
const WORDS: usize = 9;
/// Marks a slot that was written to: any id is possible.
const WRITTEN: u32 = 0x5041_4c43;

pub(super) const CALLS: &str = "calls";

/// Where the calls of one process are written down.
#[derive(Debug)]
pub(crate) struct Calls {
    spool: Arc<ProcessSpool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    broken: bool,
    slots: HashMap<u64, u32>,
    free: Vec<u32>,
    used: u32,
}

impl Calls {
    /// What is in the file already stays there until it is released.
    pub(crate) fn new(spool: Arc<ProcessSpool>, left: &[Option<Notification>]) -> Self {
        let mut state = State::default();
        for call in left {
            match call {
                Some(call) => drop(state.slots.insert(call.id, state.used)),
                None => state.free.push(state.used),
            }
            state.used += 1;
        }
        let state = Mutex::new(state);
        Self { spool, state }
    }

    /// Makes the file: a call is about to be received, so that without a slot in it one may have been.
    pub(crate) fn prepare(&self) {
        let mut state = lock(&self.state);
        if state.file.is_some() || state.broken {
            return;
        }
        match self.spool.open_calls() {
            Ok(file) => state.file = Some(file),
            Err(error) => state.fail(&self.spool, &error),
        }
    }

    /// Writes a call down. Without room it is not, and its program may wait for ever if we die.
    pub(crate) fn keep(&self, call: &Notification) {
        let mut state = lock(&self.state);
        let slot = state.free.pop().unwrap_or_else(|| {
            state.used += 1;
            state.used - 1
        });
        state.slots.insert(call.id, slot);
        let Some(file) = &state.file else { return };
        if let Err(error) = file.write_all_at(&encode(call), u64::from(slot) * SLOT_BYTES as u64) {
            state.fail(&self.spool, &error);
        }
    }

    /// It was answered, or nobody waits for it.
    pub(crate) fn release(&self, id: u64) {
        let mut state = lock(&self.state);
        if let Some(slot) = state.slots.remove(&id) {
            state.free.push(slot);
        }
    }

    /// Whether this one is under way.
    pub(crate) fn has(&self, id: u64) -> bool {
        lock(&self.state).slots.contains_key(&id)
    }
}

impl State {
    fn fail(&mut self, spool: &ProcessSpool, error: &io::Error) {
        self.broken = true;
        spool.spool().is_full(error);
    }
}

/// What was written into each slot last.
pub(crate) type Slots = Vec<Option<Notification>>;

/// What an earlier daemon left: nothing if it never received a call.
pub(super) fn read(directory: &Directory, process: ProcessId) -> io::Result<Option<Slots>> {
    let file = match directory.open(&name(process), OFlag::O_RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut calls = Vec::new();
    let mut slot = [0; SLOT_BYTES];
    while file.read_at(&mut slot, (calls.len() * SLOT_BYTES) as u64)? >= WORDS * 8 {
        calls.push(decode(&slot));
    }
    Ok(Some(calls))
}

pub(super) fn name(process: ProcessId) -> String {
    format!("{process}.{CALLS}")
}

fn encode(call: &Notification) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let halves = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let head = [
        call.id,
        halves(call.pid.cast_unsigned(), call.number),
        halves(call.arch, WRITTEN),
    ];
    for (at, word) in head.iter().chain(&call.args).enumerate() {
        slot[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
    }
    slot
}

fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Notification> {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(slot.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    let [id, who, abi, args @ ..] = words;
    ((abi >> 32) as u32 == WRITTEN).then_some(Notification {
        id,
        pid: (who as u32).cast_signed(),
        number: (who >> 32) as u32,
        arch: abi as u32,
        args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_a_whole_call() {
        let call = Notification {
            id: u64::MAX - 1,
            pid: -7,
            number: 42,
            arch: 0xc000_003e,
            args: [1, u64::MAX, 3, 4, 5, 6],
        };
        assert_eq!(decode(&encode(&call)), Some(call));
        assert_eq!(decode(&[0; SLOT_BYTES]), None);
    }
}
