//! What is done now and then: once a second while anything may have changed, else when somebody comes, and once a minute for what
//! becomes too old on disk. A daemon that supervises nothing and that nobody asks anything wakes nobody.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Daemon, lock};

/// How often it is looked at what has expired.
pub(super) const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often it is looked at what is too old on disk.
const SWEEP: Duration = Duration::from_secs(60);

/// Whether there is anything to look after.
#[derive(Debug, Default)]
pub(super) struct House {
    /// Nothing changes unless somebody comes.
    quiet: AtomicBool,
    stirred: Notify,
    /// Somebody looks at what is kept.
    tidying: AtomicBool,
    /// When it was last looked at what is too old on disk.
    swept: Mutex<Option<Instant>>,
}

impl House {
    /// Something may have changed.
    pub(super) fn stir(&self) {
        if self.quiet.swap(false, Ordering::AcqRel) {
            self.stirred.notify_one();
        }
    }

    fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    fn is_to_be_swept(&self) -> bool {
        let mut swept = lock(&self.swept);
        let due = swept.is_none_or(|last| last.elapsed() >= SWEEP);
        if due {
            *swept = Some(Instant::now());
        }
        due
    }
}

/// When it is looked after.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    last: Option<Instant>,
}

impl Rounds {
    /// Waits for the next time; `busy` if there is more to look after than the house. Who stops waiting misses none.
    pub(super) async fn next(&mut self, house: &House, busy: bool) {
        if let Some(last) = self.last {
            if house.is_quiet() && !busy {
                tokio::select! {
                    () = tokio::time::sleep_until(last + SWEEP) => {}
                    () = house.stirred.notified() => {}
                }
            }
            tokio::time::sleep_until(last + HOUSEKEEPING).await;
        }
        self.last = Some(Instant::now());
    }
}

/// Tidying up is over, however it ended.
struct Tidied<'d>(&'d House);

impl Drop for Tidied<'_> {
    fn drop(&mut self) {
        self.0.tidying.store(false, Ordering::Release);
    }
}

impl Daemon {
    /// Ends what has expired, and has what is kept looked at.
    pub(super) fn keep_house(&self) {
        let house = &self.0.house;
        let sweep = house.is_to_be_swept();
        if house.is_quiet() && !sweep {
            return;
        }
        let expired = self.state().leases.expired(std::time::Instant::now());
        for session in expired {
            tracing::info!(%session, "nobody attached it in time");
            self.close_session(session, "nobody attached it in time", false);
        }
        self.state().forget_inputs();
        if house.tidying.swap(true, Ordering::AcqRel) {
            return;
        }
        let daemon = self.clone();
        tokio::spawn(async move {
            let house = &daemon.0.house;
            let _tidied = Tidied(house);
            // First: who comes from now on is seen at the next time.
            house.quiet.store(true, Ordering::Release);
            let forgot = daemon.tidy(sweep).await;
            if forgot || daemon.has_something_to_do() {
                house.stir();
            }
        });
    }

    /// Whether something may have to be done the next time, if nobody comes before.
    fn has_something_to_do(&self) -> bool {
        if !self.degraded().is_empty() {
            return true;
        }
        let state = self.state();
        let unsettled = |process: &super::Supervised| {
            process.is_live() || self.0.kept.is_some() && !*process.filed.borrow()
        };
        state.leases.may_expire() || state.processes.values().any(|process| unsettled(process))
    }
}
