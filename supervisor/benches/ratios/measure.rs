//! Taking turns, and what remains of the samples.

use std::time::{Duration, Instant};

use crate::Result;

/// One way of doing the thing, timed by itself.
pub(crate) struct Side<'a> {
    pub(crate) name: String,
    sample: Box<dyn FnMut() -> Result<Duration> + 'a>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(name: impl Into<String>, sample: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Self {
            name: name.into(),
            sample: Box::new(sample),
        }
    }

    /// A side whose whole call is the sample.
    pub(crate) fn timed(name: impl Into<String>, mut call: impl FnMut() -> Result<()> + 'a) -> Self {
        Self::new(name, move || {
            let begin = Instant::now();
            call()?;
            Ok(begin.elapsed())
        })
    }
}

/// The samples of one side.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    pub(crate) name: String,
    sorted: Vec<Duration>,
}

impl Samples {
    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    pub(crate) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    pub(crate) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The sample below which this share of all lies.
    fn quantile(&self, share: f64) -> Duration {
        let last = self.sorted.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        self.sorted.get(index).copied().unwrap_or_default()
    }
}

/// Between two samples: what one side still does after its sample (a spawner makes the next sandbox ahead) is its own
/// affair and must not slow the next one, which may be another's.
const PAUSE: Duration = Duration::from_millis(6);

/// Takes `rounds` samples of each side: A B C, C B A, A B C … so that none always follows the same other one, with a
/// pause before each. A tenth of as many is thrown away first.
pub(crate) fn take_turns(rounds: usize, mut sides: Vec<Side<'_>>) -> Result<Vec<Samples>> {
    let warm_up = (rounds / 10).max(1);
    let mut sorted = vec![Vec::with_capacity(rounds); sides.len()];
    for round in 0..rounds + warm_up {
        for turn in 0..sides.len() {
            let index = if round % 2 == 0 {
                turn
            } else {
                sides.len() - 1 - turn
            };
            let side = &mut sides[index];
            #[allow(
                clippy::disallowed_methods,
                reason = "there is no event: it is time that is wanted"
            )]
            std::thread::sleep(PAUSE);
            let sample = (side.sample)().map_err(|error| format!("{}: {error}", side.name))?;
            if round >= warm_up {
                sorted[index].push(sample);
            }
        }
    }
    Ok(sides
        .iter()
        .zip(sorted)
        .map(|(side, mut sorted)| {
            sorted.sort_unstable();
            Samples {
                name: side.name.clone(),
                sorted,
            }
        })
        .collect())
}
