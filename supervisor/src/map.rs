//! Fan-out: one command for each of many items. What needs no daemon.
//!
//! ```text
//! items ──template──► argument lists ──► jobs of a group of their own, in the daemon
//!   │                                              │ ends
//!   └────────────► rows, in item order ◄── journal ┘
//! ```
//!
//! Everything that can be wrong with the input is found before anything starts: all items are read, and every argument list
//! is made once, first.

mod halt;
mod items;
mod journal;
mod plan;
mod rows;
mod template;

pub use halt::{HaltRule, HaltWhen, exit_code};
pub use items::{Cell, Item, ItemError, ItemErrorKind, Items, Source};
pub use journal::{Journal, JournalError};
pub use plan::{Maps, Plan, PlanError};
pub use rows::{Format, Row, Writer};
pub use template::{CommandTemplate, TemplateError};
