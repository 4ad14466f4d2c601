//! Signals to `provost run`, passed on as what they mean.
//!
//! The first INT, TERM, HUP or QUIT stops the process by its rule, the second kills it. Stopped at the terminal
//! (Ctrl-Z), the tree is stopped too, and continues with us. With `--tty` keys make no signals of ours, and a new size of
//! our terminal is passed on. A process of a daemon's does not end with our terminal (HUP).

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use futures_util::StreamExt;
use nix::libc::SIGSTOP;
use provost_sandbox::keeper::wire::SignalScope;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook_tokio::Signals;

use super::target::Target;
use super::tty::Attached;

/// The signal that interrupted the run; 0 while none has.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupted(Arc<AtomicI32>);

impl Interrupted {
    pub(super) fn signal(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }
}

/// Registered before the process starts, so that no signal is missed.
pub(super) fn register(tty: bool) -> std::io::Result<Signals> {
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])?;
    if tty {
        signals.handle().add_signal(SIGWINCH)?;
    }
    Ok(signals)
}

/// Passes signals on for as long as it runs.
pub(super) async fn pass_on(
    mut signals: Signals,
    target: Target,
    interrupted: Interrupted,
    attached: Option<Arc<Attached>>,
) {
    let attached = attached.as_deref();
    while let Some(signal) = signals.next().await {
        match signal {
            SIGTSTP => {
                target.signal(SIGSTOP, SignalScope::Tree).await;
                attached.inspect(|attached| attached.restore());
                let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
            }
            SIGCONT => {
                attached.inspect(|attached| attached.continued());
                target.signal(SIGCONT, SignalScope::Tree).await;
            }
            SIGHUP if matches!(target, Target::Daemon { .. }) => {
                let _ = signal_hook::low_level::emulate_default_handler(SIGHUP);
            }
            SIGWINCH => {
                attached.inspect(|attached| attached.resized());
            }
            _ => {
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                let reason = format!("interrupted by {name}");
                let first = interrupted
                    .0
                    .compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
                target.end(reason, !first).await;
            }
        }
    }
}
