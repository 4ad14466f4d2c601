//! A spec as a request to a daemon, or why it cannot be one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::time::Duration;

use provost_actors::log::LogLimits;

use crate::protocol::{self, ProcessStart};
use crate::{Error, OnDenial, ProcessSpec, StdinSpec, TreeRule};

/// What to ask a daemon for, so that it is what would run here.
///
/// # Errors
/// [`Error::EmbeddedOnly`]: the protocol has no word for something of it.
pub(crate) fn request(spec: ProcessSpec) -> Result<ProcessStart, Error> {
    let argv: Result<Vec<String>, Error> =
        spec.argv.iter().map(|word| text(word, "an argument")).collect();
    let argv = argv?;
    let only = |why: &str, hint: &str| Error::embedded_only(protocol::starting(&argv), why, hint);
    let mut env = BTreeMap::new();
    for (key, value) in &spec.env {
        let what = format!("the variable {}", key.display());
        let twice = env.insert(text(key, &what)?, text(value, &what)?);
        if twice.is_some() {
            return Err(only(&format!("{what} is there twice"), "leave one out"));
        }
    }
    let stdin = match spec.stdin {
        StdinSpec::Null => false,
        StdinSpec::Pipe => true,
        StdinSpec::Given(_) => {
            let why = "a descriptor cannot be sent to a daemon as standard input";
            return Err(only(why, "use `StdinSpec::Pipe` and write to it"));
        }
    };
    let kept = spec
        .retention
        .head_bytes
        .saturating_add(spec.retention.tail_bytes);
    if spec.retention != LogLimits::keeping(kept) || !protocol::OUTPUT_BYTES.contains(&kept) {
        let why = format!("a daemon cannot be asked for {:?}", spec.retention);
        return Err(only(&why, "use `LogLimits::keeping` with 4 KiB to 8 MiB"));
    }
    Ok(ProcessStart {
        cwd: text(spec.cwd.as_os_str(), "the directory")?,
        env: Some(env),
        prepared_policy: Some(spec.policy),
        stdin,
        terminal: spec.terminal.map(Into::into),
        timeout_ms: spec.timeout.map(millis),
        idle_timeout_ms: spec.idle_timeout.map(millis),
        stop_signal: Some(spec.stop.signal.to_string()),
        grace_ms: Some(millis(spec.stop.grace)),
        tree: Some(match spec.tree {
            TreeRule::Kill => "kill".to_owned(),
            TreeRule::Wait => "wait".to_owned(),
        }),
        drain_ms: Some(millis(spec.drain)),
        on_denial: Some(match spec.on_denial {
            OnDenial::Report => "report".to_owned(),
            OnDenial::Stop => "stop".to_owned(),
        }),
        ask_timeout_ms: Some(millis(spec.ask_timeout)),
        observe_reads: spec.observe_reads,
        max_output: Some(kept),
        slot_grace_ms: spec.slot.as_ref().and_then(|slot| slot.grace).map(millis),
        slot: spec.slot.map(|slot| slot.name),
        report: spec.report,
        ready: spec.ready,
        labels: spec.labels,
        follow: spec.paced,
        argv,
        ..ProcessStart::default()
    })
}

/// Whole milliseconds, rounded up: nothing ends before its time.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// The protocol is JSON, and bytes that are no UTF-8 would arrive as others.
fn text(bytes: &OsStr, what: &str) -> Result<String, Error> {
    let text = bytes.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        let why = format!("{what} is not UTF-8: {bytes:?}");
        Error::embedded_only("send it to the daemon", why, "")
    })
}
