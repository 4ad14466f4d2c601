//! Calls that were received from a process's listener and not answered yet.
//!
//! ```text
//! <process>.calls    slots of 128 bytes, each with the call that was received into it last, as the kernel put it there
//! ```
//!
//! The kernel hands each call out once: what a supervisor had received when it died, nobody is ever told again, and its
//! thread would wait for ever. So each is received into the file itself. A slot is used again once its call was answered, and is
//! empty from then until the next one comes: the kernel knows which of them still wait.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use provost_sandbox::observe::notify::{
    KeepsCalls, Notification, Place, SLOT_BYTES, Slots, decode_slot, encode_slot,
};

use super::{Directory, ProcessSpool};
use crate::event::ProcessId;
use crate::spawner::lock;

/// Room is made for so many slots at once.
const PAGE_SLOTS: u32 = 32;

pub(super) const CALLS: &str = "calls";

/// Where the calls of one process are written down.
#[derive(Debug)]
pub(crate) struct Calls {
    spool: Arc<ProcessSpool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    opened: Option<Opened>,
    broken: bool,
    /// In which slots the calls are that were not answered yet.
    held: HashMap<u64, u32>,
    free: Vec<u32>,
    used: u32,
    /// For so many slots there is room.
    room: u32,
    /// The slot that is ready for the next call.
    next: Option<u32>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    slots: Arc<Slots>,
}

impl Calls {
    /// What is in the file already stays there until it is released.
    pub(crate) fn new(spool: Arc<ProcessSpool>, left: &[Option<Notification>]) -> Self {
        let mut state = State::default();
        for call in left {
            match call {
                Some(call) => drop(state.held.insert(call.id, state.used)),
                None => state.free.push(state.used),
            }
            state.used += 1;
        }
        state.room = state.used;
        let state = Mutex::new(state);
        Self { spool, state }
    }

    /// It was answered, or nobody waits for it.
    pub(crate) fn release(&self, id: u64) {
        let mut state = lock(&self.state);
        if let Some(slot) = state.held.remove(&id) {
            state.free.push(slot);
        }
    }

    /// Whether this one is under way.
    pub(crate) fn has(&self, id: u64) -> bool {
        lock(&self.state).held.contains_key(&id)
    }
}

impl KeepsCalls for Calls {
    fn place(&self) -> Option<Place> {
        let mut state = lock(&self.state);
        if state.broken {
            return None;
        }
        match state.place(&self.spool) {
            Ok(place) => place,
            Err(error) => {
                state.fail(&self.spool, &error);
                None
            }
        }
    }

    fn placed(&self) -> io::Result<Notification> {
        let mut state = lock(&self.state);
        let slot = state.next.take();
        let (Some(opened), Some(slot)) = (&state.opened, slot) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut bytes = [0; SLOT_BYTES];
        opened.file.read_exact_at(&mut bytes, offset(slot))?;
        let call = decode_slot(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        state.held.insert(call.id, slot);
        Ok(call)
    }

    /// Writes it down. Without room it is not, and its program may wait for ever if we die.
    fn unplaced(&self, call: &Notification) {
        let mut state = lock(&self.state);
        let slot = state.next.take().unwrap_or_else(|| state.unused().0);
        state.held.insert(call.id, slot);
        let Some(opened) = &state.opened else { return };
        if let Err(error) = opened.file.write_all_at(&encode_slot(call), offset(slot)) {
            state.fail(&self.spool, &error);
        }
    }
}

impl State {
    fn place(&mut self, spool: &ProcessSpool) -> io::Result<Option<Place>> {
        if self.opened.is_none() {
            let file = spool.open_calls()?;
            let slots = Slots::map(&file)?;
            self.opened = Some(Opened { file, slots });
        }
        let slot = match self.next {
            Some(slot) => slot,
            None => {
                let (slot, is_written) = self.unused();
                self.next = Some(slot);
                if is_written {
                    let opened = self.opened.as_ref().expect("it was opened above");
                    opened.file.write_all_at(&[0; SLOT_BYTES], offset(slot))?;
                }
                slot
            }
        };
        let opened = self.opened.as_ref().expect("it was opened above");
        while slot >= self.room {
            make_room(&opened.file, offset(self.room), offset(PAGE_SLOTS))?;
            self.room += PAGE_SLOTS;
        }
        Ok(opened.slots.place(slot))
    }

    /// One, and whether something may be in it.
    fn unused(&mut self) -> (u32, bool) {
        match self.free.pop() {
            Some(slot) => (slot, true),
            None => {
                self.used += 1;
                (self.used - 1, false)
            }
        }
    }

    fn fail(&mut self, spool: &ProcessSpool, error: &io::Error) {
        self.broken = true;
        spool.spool().is_full(error);
    }
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * SLOT_BYTES as u64
}

/// Makes the file so much longer. Where its file system cannot promise room, the kernel finds out when it puts a call there.
fn make_room(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    match fallocate(
        file,
        FallocateFlags::empty(),
        from.cast_signed(),
        bytes.cast_signed(),
    ) {
        Err(Errno::EOPNOTSUPP) => file.set_len(from + bytes),
        allocated => Ok(allocated?),
    }
}

/// What was written into each slot last.
pub(crate) type Left = Vec<Option<Notification>>;

/// What an earlier daemon left: nothing if it never received a call.
pub(super) fn read(directory: &Directory, process: ProcessId) -> io::Result<Option<Left>> {
    let file = match directory.open(&name(process), OFlag::O_RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut calls = Vec::new();
    let mut slot = [0; SLOT_BYTES];
    while file.read_at(&mut slot, offset(calls.len() as u32))? == SLOT_BYTES {
        calls.push(decode_slot(&slot));
    }
    Ok(Some(calls))
}

pub(super) fn name(process: ProcessId) -> String {
    format!("{process}.{CALLS}")
}
