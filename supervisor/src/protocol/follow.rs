//! Events of a process: read as they are there, followed as they come.

use provost_actors::event::{Event, ProcessId};
use provost_actors::session::SessionId;
use serde::{Deserialize, Serialize};

/// `process/read`: events that are there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessRead {
    /// Which.
    pub process: String,
    /// Behind this event; from the beginning, if 0.
    pub after_seq: u64,
    /// Instead: the last whole events that have so many bytes of output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// About so much output; 1 MiB.
    pub max_bytes: Option<usize>,
    /// Wait so long for the first one.
    pub wait_ms: u64,
}

/// The answer to `process/read`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Events {
    /// In order.
    pub events: Vec<Event>,
    /// The number of the last one: `after_seq` of the next read.
    pub next_seq: u64,
    /// The last one was the terminal event: nothing comes any more.
    pub ended: bool,
}

/// `process/follow`: events as they come, as notifications.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessFollow {
    /// Which.
    pub process: String,
    /// Behind this event.
    pub after_seq: u64,
    /// At this reader's pace: the process waits for it, and nothing is dropped before it has read it. One at a time.
    pub paced: bool,
    /// So many events at most are sent that were not acknowledged with `ack`; without it as many as the connection takes.
    pub window: Option<u64>,
}

/// The answer to a follow.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Following {
    /// Names the notifications that belong to it.
    pub subscription: u64,
    /// It has the pace.
    pub paced: bool,
}

/// `ack`: events that were taken, so that more may come.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Of which follower.
    pub subscription: u64,
    /// How many in all.
    pub events: u64,
}

/// `unfollow`, and the notification `follow/ended`: nothing comes any more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfollow {
    /// Which.
    pub subscription: u64,
}

/// The notification `process/event`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventNotification {
    /// To whom.
    pub subscription: u64,
    /// The session of the process, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// What.
    pub event: Event,
}

/// The notification `follow/gap`: what a follower was not told, because it did not keep up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowGap {
    /// Which follower.
    pub subscription: u64,
    /// Processes that were forgotten before their last events could be sent.
    pub processes: Vec<ForgottenProcess>,
    /// How many there are of them besides.
    pub more: u64,
    /// How many `session/event`s were left out.
    pub session_events: u64,
}

/// A process whose last events a follower was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenProcess {
    /// Which.
    pub process: ProcessId,
    /// Its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The number of the last event that was sent; 0 if none was.
    pub after_seq: u64,
}
