//! Counters for people who watch many machines: the text that Prometheus reads, on a Unix socket or on loopback.
//!
//! Root's daemon tells the sums over its own and its instances', also of those that have ended. An instance says its own to the
//! broker, and may say anything: it can only make the sums wrong. Nothing of what was run is in them, only numbers.

mod counts;

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

pub(super) use self::counts::Counts;
use self::counts::Now;
use super::config::MetricsAddress;
use super::processes::Supervised;
use super::{Broker, Daemon, lock};

/// Where numbers to be told come from.
pub trait Source: Clone + Send + Sync + 'static {
    /// Their text, as of now.
    fn metrics_text(&self) -> String;
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<Counts>);

impl Metrics {
    pub(super) fn refused(&self) {
        lock(&self.0).refused += 1;
    }

    /// Counts a process now, and what it came to when it has its record.
    pub(super) fn watch(self: &Arc<Self>, process: &Supervised) {
        lock(&self.0).started += 1;
        let (metrics, link) = (self.clone(), process.link.clone());
        tokio::spawn(async move {
            let record = link.sealed().await;
            let mut counts = lock(&metrics.0);
            *counts.ended.entry(record.outcome).or_default() += 1;
            for (class, count) in &record.denials.by_class {
                *counts.denials.entry(*class).or_default() += count;
            }
            for stream in record.output.values() {
                counts.output += stream.bytes;
                counts.dropped += stream.dropped;
            }
            let seconds =
                |from: jiff::Timestamp, to: jiff::Timestamp| to.duration_since(from).as_secs_f64();
            if let Some(started) = record.started_at {
                let latency = record.queued_at.map(|queued| seconds(queued, started));
                counts.took(seconds(started, record.ended_at), latency);
            }
        });
    }
}

impl Source for Daemon {
    fn metrics_text(&self) -> String {
        self.counts().text()
    }
}

impl Source for Broker {
    fn metrics_text(&self) -> String {
        self.counts().text()
    }
}

/// Where metrics are going to be served.
#[derive(Debug)]
pub enum Bound {
    /// A loopback address.
    Loopback(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Takes this address.
///
/// # Errors
/// It cannot be had.
pub async fn bind(address: &MetricsAddress) -> io::Result<Bound> {
    match address {
        MetricsAddress::Loopback(address) => TcpListener::bind(address).await.map(Bound::Loopback),
        MetricsAddress::Unix(path) => {
            // A socket that nobody listens on any more is in the way; anything else there is somebody's.
            let is_socket =
                std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
            if is_socket && tokio::net::UnixStream::connect(path).await.is_err() {
                std::fs::remove_file(path)?;
            }
            UnixListener::bind(path).map(Bound::Unix)
        }
    }
}

impl Bound {
    /// Serves metrics there, for as long as the runtime lives.
    pub fn serve(self, source: impl Source) {
        tokio::spawn(async move {
            match self {
                Self::Loopback(listener) => {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(answer(source.clone(), stream));
                    }
                }
                Self::Unix(listener) => {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(answer(source.clone(), stream));
                    }
                }
            }
        });
    }
}

impl Daemon {
    /// What it has counted, and what it has.
    pub(super) fn counts(&self) -> Counts {
        let status = self.status();
        let mut counts = lock(&self.0.metrics.0).clone();
        counts.now = Now {
            live: status.live as u64,
            clients: status.clients as u64,
            sessions: status.sessions as u64,
            retained: status.retained_bytes,
            instances: 0,
        };
        counts
    }
}

async fn answer(source: impl Source, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(|request: Request<Incoming>| {
        let found = request.method() == Method::GET && request.uri().path() == "/metrics";
        let (status, text) = match found {
            true => (StatusCode::OK, source.metrics_text()),
            false => (StatusCode::NOT_FOUND, "want GET /metrics\n".to_owned()),
        };
        let response = Response::builder()
            .status(status)
            .header(
                "content-type",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )
            .body(Full::new(Bytes::from(text)));
        async move { Ok::<_, Infallible>(response.unwrap_or_default()) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Who asks and does not read harms nobody, and is not waited for.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), connection).await;
}
