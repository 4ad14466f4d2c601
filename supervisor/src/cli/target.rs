//! The process that signals, keys and sizes go to: ours, or a daemon's.

use std::sync::Arc;

use provost_sandbox::keeper::wire::SignalScope;
use tokio::sync::Mutex;

use crate::client::{ClientError, Lasting};
use crate::protocol::{ProcessResize, ProcessSignal, ProcessStop, ProcessWrite, Told, Written};
use crate::{ProcessHandle, TerminalSize};

/// The process. What a daemon does not take because it is gone is noticed where its events are read.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// Ours.
    Here(ProcessHandle),
    /// A daemon's, which goes on without us.
    Daemon {
        /// The way to it.
        client: Lasting,
        /// Its id or name.
        process: String,
        /// Where the next byte of its input comes, as far as that is known. Held by whoever writes.
        place: Arc<Mutex<Option<u64>>>,
    },
}

impl Target {
    pub(super) async fn signal(&self, signal: i32, scope: SignalScope) {
        match self {
            Self::Here(process) => drop(process.signal(signal, scope).await),
            Self::Daemon { client, process, .. } => {
                let asked = ProcessSignal {
                    process: process.clone(),
                    signal: signal.to_string(),
                    scope: Some(scope),
                };
                let _: Result<Told, _> = client.call_once("process/signal", &asked).await;
            }
        }
    }

    /// Stops it by its rule, or kills it.
    pub(super) async fn end(&self, reason: String, kill: bool) {
        match self {
            Self::Here(process) if kill => drop(process.kill(reason).await),
            Self::Here(process) => drop(process.stop(reason).await),
            Self::Daemon { client, process, .. } => {
                let asked = ProcessStop {
                    process: process.clone(),
                    reason: Some(reason),
                    grace_ms: None,
                };
                let method = if kill { "process/kill" } else { "process/stop" };
                let _: Result<Told, _> = client.call(method, &asked).await;
            }
        }
    }

    /// Writes to its standard input. False when it takes no more.
    pub(super) async fn write_stdin(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Here(process) => process.write_stdin(bytes).await.is_ok(),
            Self::Daemon {
                client,
                process,
                place,
            } => {
                let mut place = place.lock().await;
                client.write(process, &mut place, bytes, false).await.is_ok()
            }
        }
    }

    pub(super) async fn close_stdin(&self) {
        match self {
            Self::Here(process) => drop(process.close_stdin().await),
            Self::Daemon { client, process, .. } => drop(close(client, process, false).await),
        }
    }

    /// Changes the size of its terminal; a daemon's can be told to `redraw` what it shows. False when it cannot be told.
    pub(super) async fn resize(&self, size: TerminalSize, redraw: bool) -> bool {
        match self {
            Self::Here(process) => process.resize(size).await.is_ok(),
            Self::Daemon { client, process, .. } => {
                let asked = ProcessResize {
                    process: process.clone(),
                    rows: size.rows,
                    cols: size.cols,
                    redraw,
                };
                let done: Result<serde_json::Value, _> = client.call("process/resize", &asked).await;
                done.is_ok()
            }
        }
    }
}

/// Ends it.
pub(super) async fn close(client: &Lasting, process: &str, force: bool) -> Result<(), ClientError> {
    let request = ProcessWrite {
        process: process.to_owned(),
        close: true,
        force,
        ..ProcessWrite::default()
    };
    client.call::<Written>("process/write", &request).await.map(drop)
}
