//! The table.

use std::time::Duration;

use serde_json::json;

use crate::measure::Samples;

/// What the ratio of a row must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// Our time is at most so many times the other's.
    TimeAtMost(f64),
    /// Our speed is at least so many times the other's.
    SpeedAtLeast(f64),
    /// Our time is at most so many microseconds.
    MicrosAtMost(u64),
    /// No promise; how many times the other's time.
    Time,
    /// No promise; how many times the other's speed.
    Speed,
}

/// One comparison.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: Samples,
    pub(crate) other: Samples,
    pub(crate) budget: Budget,
    /// The samples are so many of the thing, of which the table shows one.
    pub(crate) per_sample: u32,
}

impl Row {
    pub(crate) fn new(ours: &Samples, other: &Samples, budget: Budget) -> Self {
        Self {
            what: ours.name.clone(),
            ours: ours.clone(),
            other: other.clone(),
            budget,
            per_sample: 1,
        }
    }

    pub(crate) fn of(mut self, per_sample: u32) -> Self {
        self.per_sample = per_sample;
        self
    }

    fn ratio(&self) -> f64 {
        let (ours, other) = (
            self.ours.median().as_secs_f64(),
            self.other.median().as_secs_f64(),
        );
        match self.budget {
            Budget::SpeedAtLeast(_) | Budget::Speed => other / ours,
            _ => ours / other,
        }
    }

    fn is_kept(&self) -> Option<bool> {
        match self.budget {
            Budget::TimeAtMost(most) => Some(self.ratio() <= most),
            Budget::SpeedAtLeast(least) => Some(self.ratio() >= least),
            Budget::MicrosAtMost(most) => Some(self.ours.median() <= Duration::from_micros(most)),
            Budget::Time | Budget::Speed => None,
        }
    }
}

/// Prints every row.
pub(crate) fn print(rows: &[Row], as_json: bool) {
    if as_json {
        for row in rows {
            println!("{}", object(row));
        }
        return;
    }
    let header = [
        "what", "p50", "p99", "against", "p50", "p99", "ratio", "budget", "kept",
    ];
    let lines: Vec<[String; 9]> = std::iter::once(header.map(str::to_owned))
        .chain(rows.iter().map(line))
        .collect();
    let mut widths = [0; 9];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for (index, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("| {} |", cells.join(" | "));
        if index == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            println!("| {} |", rule.join(" | "));
        }
    }
}

fn line(row: &Row) -> [String; 9] {
    let time = |samples: Duration| words(samples / row.per_sample);
    let budget = match row.budget {
        Budget::TimeAtMost(most) => format!("≤ {most}"),
        Budget::SpeedAtLeast(least) => format!("speed ≥ {least}"),
        Budget::MicrosAtMost(most) => format!("≤ {most} µs"),
        Budget::Time => "–".to_owned(),
        Budget::Speed => "speed".to_owned(),
    };
    let kept = match row.is_kept() {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "–",
    };
    [
        row.what.clone(),
        time(row.ours.median()),
        time(row.ours.p99()),
        row.other.name.clone(),
        time(row.other.median()),
        time(row.other.p99()),
        format!("{:.2}", row.ratio()),
        budget,
        kept.to_owned(),
    ]
}

fn object(row: &Row) -> serde_json::Value {
    let side = |samples: &Samples| {
        json!({
            "name": samples.name,
            "p50_us": (samples.median() / row.per_sample).as_secs_f64() * 1e6,
            "p99_us": (samples.p99() / row.per_sample).as_secs_f64() * 1e6,
            "samples": samples.count(),
        })
    };
    json!({
        "what": row.what,
        "ours": side(&row.ours),
        "other": side(&row.other),
        "ratio": row.ratio(),
        "kept": row.is_kept(),
    })
}

fn words(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    if us < 100.0 {
        format!("{us:.1} µs")
    } else if us < 100_000.0 {
        format!("{:.2} ms", us / 1e3)
    } else {
        format!("{:.2} s", us / 1e6)
    }
}
