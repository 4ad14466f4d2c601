//! Sizes and times as people write them.

use std::time::Duration;

/// A time of at least a nanosecond: seconds, or with units (`500ms`, `1h30m`).
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => humantime::parse_duration(text)
            .map_err(|error| format!("{error}; want a time like 90, 500ms, 90s, 5m or 1h30m"))?,
    };
    if duration.is_zero() {
        return Err("must be more than nothing".to_owned());
    }
    Ok(duration)
}

/// A number of bytes greater than 0, with a unit of powers of 1024 (`64K`, `2GiB`).
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let hint = "want a number of bytes like 65536, 64K, 512M or 2G";
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| hint.to_owned())?;
    let shift = match unit
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(hint.to_owned()),
    };
    match number.checked_mul(1 << shift) {
        Some(0) | None => Err(format!("out of range; {hint}")),
        Some(bytes) => Ok(bytes),
    }
}

/// Thousandths of a CPU, at least ten.
pub(crate) fn cpu_millis(cpus: f64) -> Result<u64, String> {
    if !(0.01..=65_536.0).contains(&cpus) {
        return Err("want a number of CPUs from 0.01 on, like 0.5 or 2".to_owned());
    }
    // In range, as was just seen.
    Ok((cpus * 1000.0).round() as u64)
}

/// The same as text.
#[cfg(feature = "cli")]
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    let number = text.parse::<f64>();
    cpu_millis(number.map_err(|_| "want a number of CPUs, like 0.5 or 2".to_owned())?)
}

/// A moment: RFC 3339, or how long ago it was.
#[cfg(feature = "cli")]
pub(crate) fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text)
        .map_err(|_| "want a time like 2026-01-02T03:04:05Z, or how long ago: 30s, 5m".to_owned())?;
    let time = jiff::Timestamp::now().checked_sub(ago);
    time.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_with_their_units() {
        assert_eq!(bytes("64K"), Ok(65536));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("7"), Ok(7));
        assert!(bytes("x").is_err() && bytes("0").is_err() && bytes("9999999999999T").is_err());
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("soon").is_err() && duration("0").is_err() && duration("-1").is_err());
    }
}
