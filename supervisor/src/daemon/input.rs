//! Who writes to a process: at most one connection holds its input, and gives it back with its end.
//!
//! Nobody needs to hold an input to write to it. Only where somebody does, others are refused, unless they say that they mean
//! it: two people at one keyboard type into each other's lines. The size of a terminal goes with its input.
//!
//! It is taken by compare-and-set (I9), under the same lock as leases and connections: who has gone holds nothing, and who may
//! not touch the process any more, because its session is attached elsewhere, does not hold its input either.

use std::time::Duration;

use provost_actors::event::ProcessId;
use provost_actors::session::Holder;

use super::connection::notification;
use super::processes::Supervised;
use super::{Daemon, State};
use crate::TerminalSize;
use crate::protocol::{
    self, ErrorKind, InputLost, ProcessAttach, ProcessAttached, ProcessResize, RpcError,
};

/// How long a program may take to notice that its terminal was smaller for a moment. One that takes longer may see nothing new.
const REDRAW_MAX: Duration = Duration::from_millis(100);

impl State {
    /// Who holds the input of a process now.
    fn input_of(&self, process: &Supervised) -> Option<Holder> {
        let holder = *self.inputs.get(&process.id())?;
        let holds = self.holders.contains_key(&holder)
            && process.is_live()
            && self.may_touch(process.session, holder);
        holds.then_some(holder)
    }

    /// The holder, for people.
    fn who(&self, holder: Holder) -> String {
        let known = self.holders.get(&holder);
        known.map_or_else(|| "another client".to_owned(), |known| known.who.clone())
    }

    /// Inputs of processes that have ended are nobody's.
    pub(super) fn forget_inputs(&mut self) {
        let processes = &self.processes;
        let lives = |id: &ProcessId| processes.get(id).is_some_and(|process| process.is_live());
        self.inputs.retain(|id, _| lives(id));
    }
}

impl Daemon {
    /// Takes the input of a process, if nobody has it or it is to be taken over. Whoever loses it is told.
    pub(super) async fn attach_input(
        &self,
        process: &Supervised,
        holder: Holder,
        asked: &ProcessAttach,
    ) -> ProcessAttached {
        let (writer, held_by) = self.take_input(process, holder, asked);
        ProcessAttached {
            writer,
            held_by,
            terminal: process
                .link
                .terminal_size()
                .await
                .ok()
                .map(|size| protocol::TerminalSize {
                    rows: size.rows,
                    cols: size.cols,
                }),
        }
    }

    fn take_input(
        &self,
        process: &Supervised,
        holder: Holder,
        asked: &ProcessAttach,
    ) -> (bool, Option<String>) {
        let mut state = self.state();
        let before = state.input_of(process);
        if before == Some(holder) {
            return (true, None);
        }
        let wanted = !asked.read_only && process.is_live() && state.holders.contains_key(&holder);
        if !wanted || before.is_some() && !asked.steal {
            return (false, before.map(|before| state.who(before)));
        }
        state.inputs.insert(process.id(), holder);
        if let Some(before) = before.and_then(|before| state.holders.get(&before)) {
            let lost = InputLost {
                process: process.id(),
                by: state.who(holder),
            };
            before.outbox.push(&notification("input/lost", &lost));
        }
        (true, None)
    }

    /// Gives the input of a process up. Whether the holder had it.
    pub(super) fn detach_input(&self, process: &Supervised, holder: Holder) -> bool {
        let mut state = self.state();
        let held = state.inputs.get(&process.id()) == Some(&holder);
        if held {
            state.inputs.remove(&process.id());
        }
        held
    }

    /// Whether a holder may write to a process: it may touch it, and nobody else has its input.
    pub(super) fn may_write(
        &self,
        process: &Supervised,
        holder: Holder,
        force: bool,
        what: &str,
    ) -> Result<(), RpcError> {
        self.may_touch(process.session, holder, what)?;
        let state = self.state();
        let Some(other) = state.input_of(process).filter(|other| *other != holder && !force) else {
            return Ok(());
        };
        let why = format!("its input is attached elsewhere, by {}", state.who(other));
        Err(RpcError::new(ErrorKind::InputHeld, what, why).hint(
            "wait until it is given back, write all the same (`force`; `provost send --force`), or take it over (`steal`; \
             `provost attach --steal`)",
        ))
    }

    /// Changes the size of the terminal. With `redraw` the program notices also if it had that size.
    pub(super) async fn resize(
        &self,
        process: &Supervised,
        holder: Holder,
        asked: &ProcessResize,
    ) -> Result<(), RpcError> {
        let what = || format!("resize {}", process.id());
        self.may_write(process, holder, false, &what())?;
        let size = TerminalSize {
            rows: asked.rows,
            cols: asked.cols,
        };
        let resized = async {
            if asked.redraw && process.link.terminal_size().await? == size {
                let smaller = smaller(size);
                // It has drawn something when the second signal comes, and so takes both for what they are.
                let log = process.link.log().await;
                let mut drawn = log.follow(log.last_seq(), false);
                process.link.resize(smaller).await?;
                let _ = tokio::time::timeout(REDRAW_MAX, drawn.next()).await;
                // Somebody else's size is left alone.
                if process.link.terminal_size().await? != smaller {
                    return Ok(());
                }
            }
            process.link.resize(size).await
        };
        let resized: std::io::Result<()> = resized.await;
        resized.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => RpcError::new(ErrorKind::Ended, what(), "it has ended"),
            _ => RpcError::new(ErrorKind::Refused, what(), error.to_string()),
        })
    }
}

/// A size that differs by one row, or by one column where there is no more than one.
fn smaller(size: TerminalSize) -> TerminalSize {
    match size.rows {
        0 | 1 => TerminalSize {
            cols: size.cols.checked_sub(1).filter(|cols| *cols > 0).unwrap_or(2),
            ..size
        },
        rows => TerminalSize {
            rows: rows - 1,
            ..size
        },
    }
}
