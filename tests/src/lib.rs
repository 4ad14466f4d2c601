//! Support for the black-box tests: runs the `provost` binary on a real kernel, as root and as an ordinary
//! user, and reads what it says.
//!
//! - [`World`]: a user, a working directory, a home and a directory outside, made for one test.
//! - [`Run`] → [`Live`] → [`Finished`]: one `provost run`, started, watched, ended.
//! - [`AtTerminal`]: one at a terminal that the test types at.
//! - [`Service`]: a `provost serve` and the verbs that ask it.
//! - [`embedded`], [`script`]: the library in the test's own process.
//! - [`Wanted`]: what a denial in a record should look like.
//! - [`Witness`]: a FIFO that tells whether anything that opened it still lives.
//! - [`host`]: sockets and processes outside of the sandbox that must stay untouched.
//! - [`Load`]: many processes of which everything is known, under a daemon that dies again and again.
//! - [`require!`]: what a test needs from the machine. With `MUST_HAVE=all` in the environment a test that
//!   lacks it fails instead of being skipped.
//!
//! Nothing here sleeps: whatever is waited for is an event (an exit, the end of a stream, a hang-up), with a
//! deadline after which the test fails.

pub mod asking;
mod binaries;
mod denial;
mod disk;
mod embedded;
mod finished;
pub mod host;
pub mod keeper;
mod line_client;
mod live;
mod load;
pub mod needs;
pub mod random;
mod record;
mod run;
mod served;
mod service;
mod terminal;
pub mod truth;
pub mod weaker;
mod witness;
mod world;

pub use binaries::{program, provost};
pub use denial::{Wanted, filesystem, network, syscall};
pub use disk::{FailingDisk, SmallDisk};
pub use embedded::{embedded, script};
pub use finished::{Finished, check_pattern};
pub use keeper::end_keeper;
pub use line_client::LineClient;
pub use live::{Live, peak_memory};
pub use load::{Count, Load};
pub use run::Run;
pub use served::{Served, open_socket};
pub use service::Service;
pub use terminal::AtTerminal;
pub use witness::Witness;
pub use world::{User, World};

use std::time::Duration;

/// After this long without the awaited event a test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks over and over until it is so, for what nobody announces. To ask must take a while: an answer of the daemon's, a moment.
pub fn asked_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < DEADLINE, "it never comes: {what}");
    }
}

/// Waits until a file is there.
///
/// # Panics
/// If it is not there in time.
pub fn until_it_is_there(path: &std::path::Path) {
    asked_until(&path.display().to_string(), || {
        std::thread::yield_now();
        path.exists()
    });
}

/// Makes two tests, `NAME::as_root` and `NAME::as_user`, of each function `fn NAME(world: &World)`.
///
/// The root variant is skipped where the tests themselves do not run as root.
#[macro_export]
macro_rules! both_users {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn as_root() {
                if let Some(world) = $crate::World::try_new($crate::User::Root) {
                    super::$name(&world);
                }
            }

            #[test]
            fn as_user() {
                if let Some(world) = $crate::World::try_new($crate::User::Ordinary) {
                    super::$name(&world);
                }
            }
        }
    )+};
}

/// Returns from the test, with the reason printed, unless the condition holds; fails under `MUST_HAVE=all`.
#[macro_export]
macro_rules! require {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            $crate::needs::missing(&format!($($what)+));
            return;
        }
    };
}
