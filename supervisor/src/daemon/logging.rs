//! What the daemon says about itself, and where: the journal with fields, JSON lines, or text.
//!
//! Nothing that a supervised program or a client wrote is a log line of its own: it stands in fields, escaped.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::config::LogFormat;

/// What is logged unless something else is asked for.
pub const DEFAULT_FILTER: &str = "info";

type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// Reads a filter: a level, or directives like `info,provost_actors=debug`.
///
/// # Errors
/// In words: it is neither.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let hint =
        "want off, error, warn, info, debug, trace, or directives like `info,provost_actors=debug`";
    if text.trim().is_empty() {
        return Err(hint.to_owned());
    }
    // A single word that is no level would be taken as the name of a module, and nothing be logged.
    let level = text.parse::<LevelFilter>().ok();
    if level.is_none() && !text.contains(['=', ',']) {
        return Err(format!("`{text}` is no level; {hint}"));
    }
    let wrong = |error| format!("`{text}`: {error}; {hint}");
    let filter = EnvFilter::try_new(text).map_err(wrong)?;
    // That each actor lives, which is said around everything that happens in it, is of use to nobody who did not ask for it.
    Ok(match text.contains("ractor") || level == Some(LevelFilter::OFF) {
        true => filter,
        false => filter.add_directive("ractor=error".parse().map_err(wrong)?),
    })
}

/// Changes what is logged while the daemon runs.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// From now on this filter holds.
    ///
    /// # Errors
    /// In words: it is no filter; the former one still holds.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = filter(text)?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}

/// Begins to log, for the whole process.
///
/// # Errors
/// In words: the filter is none, the journal was asked for and is not there, or something else logs already.
pub fn set_up(filter_text: &str, format: LogFormat) -> Result<LogLevel, String> {
    let (filter, level) = reload::Layer::new(filter(filter_text)?);
    let journal = std::env::var("JOURNAL_STREAM").ok();
    let format = match format {
        LogFormat::Auto if leads_to_journal(journal.as_deref(), io::stderr()) => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        chosen => chosen,
    };
    Registry::default()
        .with(filter)
        .with(layer(format)?)
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(LogLevel(level))
}

fn layer<S>(format: LogFormat) -> Result<BoxedLayer<S>, String>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    // An error to write the log would be said on stderr, which is where the log goes: if nobody reads it any more, that
    // would be a panic.
    let lines = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    Ok(match format {
        LogFormat::Journald => {
            let journal = tracing_journald::layer().map_err(|error| {
                format!("the journal cannot be reached: {error}; choose another log_format (text, json)")
            })?;
            journal.with_syslog_identifier("provost".to_owned()).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Auto | LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    })
}

/// Whether this is the stream that systemd connected to the journal: `DEVICE:INODE` in `JOURNAL_STREAM` are its own. The
/// variable alone says nothing, for it is inherited also where stderr was sent elsewhere.
fn leads_to_journal(journal_stream: Option<&str>, stream: impl AsFd) -> bool {
    let Some((device, inode)) = journal_stream.and_then(|stream| stream.split_once(':')) else {
        return false;
    };
    fstat(stream).is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn filters_are_levels_or_directives() {
        for good in [
            "off",
            "warn",
            "INFO",
            "info,provost_actors=debug",
            "provost=trace",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,provost=loud"] {
            assert!(filter(bad).unwrap_err().contains("want off, error"), "{bad}");
        }
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let meta = file.metadata().unwrap();
        let stream = |device: u64, inode: u64| format!("{device}:{inode}");
        let own = stream(meta.dev(), meta.ino());
        assert!(leads_to_journal(Some(&own), &file));
        assert!(!leads_to_journal(
            Some(&stream(meta.dev(), meta.ino() + 1)),
            &file
        ));
        assert!(!leads_to_journal(
            Some(&stream(meta.dev() + 1, meta.ino())),
            &file
        ));
        assert!(!leads_to_journal(Some("nonsense"), &file));
        assert!(!leads_to_journal(None, &file));
    }

    #[test]
    fn the_filter_changes_while_it_is_in_use() {
        let (layer, handle) = reload::Layer::new(filter("warn").unwrap());
        let level = LogLevel(handle);
        tracing::subscriber::with_default(Registry::default().with(layer), || {
            assert!(!tracing::enabled!(tracing::Level::INFO));
            level.set("info").unwrap();
            assert!(tracing::enabled!(tracing::Level::INFO));
            // What is no filter changes nothing.
            assert!(level.set("loud").is_err());
            assert!(tracing::enabled!(tracing::Level::INFO));
        });
    }
}
