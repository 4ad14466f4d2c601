//! The numbers, as values that can be sent and added up, and as the text that Prometheus reads.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use provost_actors::record::Outcome;
use provost_sandbox::denial::DenialClass;
use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets: the first, the factor, and how many; one more takes the rest.
const DURATION: (f64, f64, usize) = (0.001, 4.0, 12);
const START_LATENCY: (f64, f64, usize) = (0.000_25, 2.0, 14);

/// What was counted since a daemon began, and what it has now. No field grows with what is run: words are those of the
/// record's own lists.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Counts {
    pub(super) started: u64,
    pub(super) refused: u64,
    pub(super) ended: HashMap<Outcome, u64>,
    pub(super) denials: BTreeMap<DenialClass, u64>,
    pub(super) output: u64,
    pub(super) dropped: u64,
    pub(super) duration: Distribution,
    pub(super) start_latency: Distribution,
    pub(in super::super) now: Now,
}

/// What there is at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Now {
    pub(super) live: u64,
    pub(super) clients: u64,
    pub(super) sessions: u64,
    pub(super) retained: u64,
    pub(in super::super) instances: u64,
}

/// How many seconds things took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Distribution {
    sum: f64,
    buckets: Vec<u64>,
}

impl Counts {
    /// Counts a process that took so long, of which so much until it ran.
    pub(super) fn took(&mut self, duration: f64, start_latency: Option<f64>) {
        self.duration.observe(DURATION, duration);
        if let Some(latency) = start_latency {
            self.start_latency.observe(START_LATENCY, latency);
        }
    }

    /// Takes another's on top.
    pub(in super::super) fn add(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add, |one, other| one + other);
        let (now, other) = (&mut self.now, other.now);
        now.live = now.live.saturating_add(other.live);
        now.clients = now.clients.saturating_add(other.clients);
        now.sessions = now.sessions.saturating_add(other.sessions);
        now.retained = now.retained.saturating_add(other.retained);
        now.instances = now.instances.saturating_add(other.instances);
    }

    /// Takes what the same daemon says later. What counts up never goes down, whatever it says.
    pub(in super::super) fn renew(&mut self, later: &Self) {
        self.combine(later, u64::max, f64::max);
        // How many instances there are is not an instance's to say.
        self.now = Now {
            instances: 0,
            ..later.now
        };
    }

    /// That daemon is gone: what it counted stays.
    pub(in super::super) fn ended(mut self) -> Self {
        self.now = Now::default();
        self
    }

    fn combine(&mut self, other: &Self, count: fn(u64, u64) -> u64, sum: fn(f64, f64) -> f64) {
        let each = [
            (&mut self.started, other.started),
            (&mut self.refused, other.refused),
            (&mut self.output, other.output),
            (&mut self.dropped, other.dropped),
        ];
        each.into_iter()
            .for_each(|(own, other)| *own = count(*own, other));
        for (outcome, number) in &other.ended {
            let own = self.ended.entry(*outcome).or_default();
            *own = count(*own, *number);
        }
        for (class, number) in &other.denials {
            let own = self.denials.entry(*class).or_default();
            *own = count(*own, *number);
        }
        for (own, other, shape) in [
            (&mut self.duration, &other.duration, DURATION),
            (&mut self.start_latency, &other.start_latency, START_LATENCY),
        ] {
            own.sum = sum(own.sum, other.sum.max(0.0));
            own.buckets.resize(shape.2 + 1, 0);
            for (own, other) in own.buckets.iter_mut().zip(&other.buckets) {
                *own = count(*own, *other);
            }
        }
    }

    /// As Prometheus reads it.
    pub(super) fn text(self) -> String {
        let mut registry = Registry::with_prefix("provost");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // A string takes everything.
        let _ = encode(&mut text, &registry);
        text
    }
}

impl Distribution {
    fn observe(&mut self, shape: (f64, f64, usize), seconds: f64) {
        let bounds = bounds(shape);
        self.buckets.resize(bounds.len(), 0);
        self.sum += seconds;
        if let Some(at) = bounds.iter().position(|bound| seconds <= *bound)
            && let Some(bucket) = self.buckets.get_mut(at)
        {
            *bucket += 1;
        }
    }

    fn encode(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        shape: (f64, f64, usize),
    ) -> fmt::Result {
        // The encoder adds them up, and what instances say may be any number.
        let mut left = u64::MAX;
        let within = |bucket: &u64| {
            let taken = left.min(*bucket);
            left -= taken;
            taken
        };
        let counted = self.buckets.iter().chain(std::iter::repeat(&0)).map(within);
        let buckets: Vec<(f64, u64)> = bounds(shape).into_iter().zip(counted).collect();
        let count = u64::MAX - left;
        let unit = Some(&Unit::Seconds);
        let mut encoder = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(self.sum, count, &buckets, None)
    }
}

fn bounds((first, factor, count): (f64, f64, usize)) -> Vec<f64> {
    let finite = std::iter::successors(Some(first), |bound| Some(bound * factor)).take(count);
    finite.chain([f64::INFINITY]).collect()
}

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let bytes = Some(&Unit::Bytes);
        for (name, help, unit, value) in [
            (
                "processes_started",
                "Processes that were accepted",
                None,
                self.started,
            ),
            (
                "processes_refused",
                "Starts that were refused",
                None,
                self.refused,
            ),
            ("output", "Bytes that processes wrote", bytes, self.output),
            (
                "output_dropped",
                "Bytes of it that were not kept to the end",
                bytes,
                self.dropped,
            ),
        ] {
            encoder
                .encode_descriptor(name, help, unit, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        let ended = self.ended.iter().map(|(outcome, count)| (word(outcome), *count));
        let denials = self.denials.iter().map(|(class, count)| (word(class), *count));
        for (name, help, counts) in [
            (
                "processes_ended",
                "Processes by their outcomes",
                ended.collect::<BTreeMap<_, _>>(),
            ),
            ("denials", "Denials by their classes", denials.collect()),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (kind, count) in counts {
                family
                    .encode_family(&[("kind", kind)])?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let duration = ("process_duration", "From the start to the record");
        self.duration.encode(encoder, duration, DURATION)?;
        let latency = (
            "start_latency",
            "From the acceptance to the command's first instruction",
        );
        self.start_latency.encode(encoder, latency, START_LATENCY)?;
        let now = self.now;
        for (name, help, unit, value) in [
            ("processes_live", "Processes that live", None, now.live),
            ("clients", "Connections", None, now.clients),
            ("sessions", "Sessions", None, now.sessions),
            (
                "instances",
                "Other users' instances that live",
                None,
                now.instances,
            ),
            ("retained", "Output that is kept", bytes, now.retained),
        ] {
            encoder
                .encode_descriptor(name, help, unit, MetricType::Gauge)?
                .encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }
}

/// The word by which JSON names something.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Counts {
        let mut counts = Counts {
            started: 3,
            output: 7,
            ended: HashMap::from([(Outcome::Exited, 2)]),
            denials: BTreeMap::from([(DenialClass::Network, 5)]),
            ..Counts::default()
        };
        counts.now.live = 1;
        counts.took(0.5, Some(0.001));
        counts.took(1e9, None);
        counts
    }

    #[test]
    fn what_is_sent_arrives_and_what_is_added_is_in_the_text() {
        let sent = serde_json::to_vec(&some()).unwrap();
        let mut sum: Counts = serde_json::from_slice(&sent).unwrap();
        assert_eq!(sum, some());
        sum.add(&some());
        sum.add(&some().ended());
        let text = sum.text();
        for line in [
            "provost_processes_started_total 9",
            "provost_output_bytes_total 21",
            "provost_processes_ended_total{kind=\"exited\"} 6",
            "provost_denials_total{kind=\"network\"} 15",
            "provost_processes_live 2",
            "provost_process_duration_seconds_count 6",
            "provost_process_duration_seconds_bucket{le=\"1.024\"} 3",
            "provost_process_duration_seconds_bucket{le=\"+Inf\"} 6",
            "provost_start_latency_seconds_count 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn whatever_an_instance_says_nothing_goes_down_or_overflows_and_no_words_are_its_own() {
        let mut counts = some();
        let mut lies = Counts {
            output: u64::MAX,
            ..Counts::default()
        };
        lies.now.instances = 9;
        lies.duration.buckets = vec![u64::MAX; 10_000];
        counts.renew(&lies);
        assert_eq!((counts.started, counts.now.live, counts.now.instances), (3, 0, 0));
        assert_eq!(counts.duration.buckets.len(), DURATION.2 + 1);
        let mut sum = counts.clone();
        sum.add(&counts);
        assert_eq!(sum.output, u64::MAX);
        assert!(sum.text().ends_with("# EOF\n"));
        let word = r#"{"ended":{"of my own":1}}"#;
        assert!(serde_json::from_str::<Counts>(word).is_err());
    }
}
