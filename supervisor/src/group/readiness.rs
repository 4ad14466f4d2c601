//! Waiting until a member is ready.

use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::Readiness;

/// Between two tries. There is nothing to wait on: a socket that begins to listen tells nobody.
const PAUSE: Duration = Duration::from_millis(50);
/// A connection that is not refused but hangs is one try.
const TRY_MAX: Duration = Duration::from_secs(2);

/// Returns when its socket accepts; without one that is for others to know, so it never does.
pub(super) async fn ready(readiness: &Readiness) {
    loop {
        let connected = async {
            match readiness {
                Readiness::Tcp(address) => TcpStream::connect(address).await.is_ok(),
                Readiness::Unix(path) => UnixStream::connect(path).await.is_ok(),
                Readiness::Started | Readiness::Descriptor | Readiness::Notify => {
                    std::future::pending().await
                }
            }
        };
        match readiness {
            Readiness::Started | Readiness::Descriptor | Readiness::Notify => drop(connected.await),
            _ if timeout(TRY_MAX, connected).await == Ok(true) => return,
            _ => sleep(PAUSE).await,
        }
    }
}
