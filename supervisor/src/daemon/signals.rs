//! Signals to `provost serve`, passed on as what they mean.

use std::sync::Arc;

use futures_util::StreamExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2, SIGXFSZ};
use signal_hook_tokio::Signals;
use tokio::sync::mpsc;

/// What the daemon is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop: take no new processes, let those that run end within the time that the configuration gives them.
    Stop,
    /// Stop at once: somebody asked a second time.
    StopNow,
    /// Read the configuration again.
    Reload,
    /// Become the program that is on disk now; what is supervised goes on.
    Replace,
}

/// How many orders may wait; signals of a kind become one while they wait, and none is lost.
const ORDERS_WAITING: usize = 4;

/// Begins to listen for signals: TERM and INT stop, HUP reloads, USR2 replaces. From here on they end nothing by themselves. The channel
/// closes only with the runtime.
///
/// # Errors
/// The handlers cannot be installed.
pub fn watch() -> std::io::Result<mpsc::Receiver<Order>> {
    // A file that may not grow (RLIMIT_FSIZE) is an error of that write, and no end.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
    let (orders, received) = mpsc::channel(ORDERS_WAITING);
    tokio::spawn(async move {
        let mut meaning = Meaning::default();
        while let Some(signal) = signals.next().await {
            if orders.send(meaning.of(signal)).await.is_err() {
                return;
            }
        }
    });
    Ok(received)
}

/// What a signal means after those that came before.
#[derive(Debug, Default)]
struct Meaning {
    is_stopping: bool,
}

impl Meaning {
    fn of(&mut self, signal: i32) -> Order {
        match signal {
            SIGHUP => Order::Reload,
            SIGUSR2 => Order::Replace,
            _ if std::mem::replace(&mut self.is_stopping, true) => Order::StopNow,
            _ => Order::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_wish_to_stop_is_one_to_stop_at_once() {
        let mut meaning = Meaning::default();
        let orders = [SIGHUP, SIGTERM, SIGHUP, SIGINT, SIGTERM].map(|signal| meaning.of(signal));
        let expected = [
            Order::Reload,
            Order::Stop,
            Order::Reload,
            Order::StopNow,
            Order::StopNow,
        ];
        assert_eq!(orders, expected);
    }

    /// The only test here that installs handlers and raises signals, for both are the whole process's.
    #[tokio::test]
    async fn signals_arrive_as_orders() {
        let mut orders = watch().unwrap();
        for (signal, order) in [
            (SIGHUP, Order::Reload),
            (SIGUSR2, Order::Replace),
            (SIGTERM, Order::Stop),
            (SIGINT, Order::StopNow),
        ] {
            signal_hook::low_level::raise(signal).unwrap();
            assert_eq!(orders.recv().await, Some(order));
        }
    }
}
