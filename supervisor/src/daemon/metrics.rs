//! Counters for people who watch many machines: the text that Prometheus reads, on a Unix socket or on loopback.
//!
//! They are of one daemon: an instance of another user has none. Nothing of what was run is in them, only numbers.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::Daemon;
use super::config::MetricsAddress;
use super::processes::Supervised;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Word {
    /// `outcome` or `class`, as the family says.
    kind: String,
}

/// What is counted.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    started: Counter,
    refused: Counter,
    ended: Family<Word, Counter>,
    denials: Family<Word, Counter>,
    output: Counter,
    dropped: Counter,
    duration: Histogram,
    start_latency: Histogram,
    live: Gauge,
    clients: Gauge,
    sessions: Gauge,
    retained: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("provost");
        let metrics = Self {
            started: Counter::default(),
            refused: Counter::default(),
            ended: Family::default(),
            denials: Family::default(),
            output: Counter::default(),
            dropped: Counter::default(),
            duration: Histogram::new(exponential_buckets(0.001, 4.0, 12)),
            start_latency: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
            live: Gauge::default(),
            clients: Gauge::default(),
            sessions: Gauge::default(),
            retained: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "processes_started",
            "Processes that were accepted",
            metrics.started.clone(),
        );
        registry.register(
            "processes_refused",
            "Starts that were refused",
            metrics.refused.clone(),
        );
        registry.register(
            "processes_ended",
            "Processes by their outcomes",
            metrics.ended.clone(),
        );
        registry.register("denials", "Denials by their classes", metrics.denials.clone());
        registry.register_with_unit(
            "output",
            "Bytes that processes wrote",
            Unit::Bytes,
            metrics.output.clone(),
        );
        registry.register_with_unit(
            "output_dropped",
            "Bytes of it that were not kept to the end",
            Unit::Bytes,
            metrics.dropped.clone(),
        );
        registry.register_with_unit(
            "process_duration",
            "From the start to the record",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "start_latency",
            "From the acceptance to the command's first instruction",
            Unit::Seconds,
            metrics.start_latency.clone(),
        );
        registry.register("processes_live", "Processes that live", metrics.live.clone());
        registry.register("clients", "Connections", metrics.clients.clone());
        registry.register("sessions", "Sessions", metrics.sessions.clone());
        registry.register_with_unit(
            "retained",
            "Output that is kept",
            Unit::Bytes,
            metrics.retained.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    /// Counts a process now, and what it came to when it has its record.
    pub(super) fn watch(self: &Arc<Self>, process: &Supervised) {
        self.started.inc();
        let (metrics, log) = (self.clone(), process.link.log().clone());
        tokio::spawn(async move {
            let record = log.sealed().await;
            let kind = |value: &dyn erased::Word| Word { kind: value.word() };
            metrics.ended.get_or_create(&kind(&record.outcome)).inc();
            for (class, count) in &record.denials.by_class {
                metrics.denials.get_or_create(&kind(class)).inc_by(*count);
            }
            for stream in record.output.values() {
                metrics.output.inc_by(stream.bytes);
                metrics.dropped.inc_by(stream.dropped);
            }
            let seconds =
                |from: jiff::Timestamp, to: jiff::Timestamp| to.duration_since(from).as_secs_f64();
            if let Some(started) = record.started_at {
                metrics.duration.observe(seconds(started, record.ended_at));
                if let Some(queued) = record.queued_at {
                    metrics.start_latency.observe(seconds(queued, started));
                }
            }
        });
    }
}

/// The word by which JSON names something.
mod erased {
    use serde::Serialize;

    pub(super) trait Word {
        fn word(&self) -> String;
    }

    impl<T: Serialize> Word for T {
        fn word(&self) -> String {
            let value = serde_json::to_value(self).unwrap_or_default();
            value.as_str().unwrap_or_default().to_owned()
        }
    }
}

impl Daemon {
    /// Serves metrics at this address, for as long as the daemon runs.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn serve_metrics(&self, address: &MetricsAddress) -> io::Result<()> {
        let daemon = self.clone();
        match address {
            MetricsAddress::Loopback(address) => {
                let listener = TcpListener::bind(address).await?;
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(answer(daemon.clone(), stream));
                    }
                });
            }
            MetricsAddress::Unix(path) => {
                // A socket that nobody listens on any more is in the way; anything else there is somebody's.
                let is_socket =
                    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
                if is_socket && tokio::net::UnixStream::connect(path).await.is_err() {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(answer(daemon.clone(), stream));
                    }
                });
            }
        }
        Ok(())
    }

    fn metrics_text(&self) -> String {
        let status = self.status();
        let metrics = &self.0.metrics;
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.live.set(number(status.live));
        metrics.clients.set(number(status.clients));
        metrics.sessions.set(number(status.sessions));
        metrics
            .retained
            .set(i64::try_from(status.retained_bytes).unwrap_or(i64::MAX));
        let mut text = String::new();
        // A string takes everything.
        let _ = encode(&mut text, &metrics.registry);
        text
    }
}

async fn answer(daemon: Daemon, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(|request: Request<Incoming>| {
        let found = request.method() == Method::GET && request.uri().path() == "/metrics";
        let (status, text) = match found {
            true => (StatusCode::OK, daemon.metrics_text()),
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
