//! `provost.toml`: what may stand in it, and what its values mean.

use std::path::Path;

use provost_actors::spool::WhenFull;
use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, LogFormat, MetricsAddress, ServeConfig, Surroundings, absolute, socket_path};
use crate::daemon::{ConfinedPeers, logging};
use crate::policy_file::{NO_SUCH_FILE, Text, deserialize, read_file};
use crate::units;

/// The keys. An unknown one is an error: what is silently ignored silently does not hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServeFile {
    socket: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
    state_dir: Option<Spanned<String>>,
    durable: Option<bool>,
    disk_full: Option<WhenFull>,
    reattach_timeout: Option<Spanned<String>>,
    log: Option<Spanned<String>>,
    log_format: Option<LogFormat>,
    confined_peers: Option<Spanned<String>>,
    max_clients: Option<Spanned<u64>>,
    max_requests_in_flight: Option<Spanned<u64>>,
    max_frame_bytes: Option<Spanned<String>>,
    max_processes: Option<Spanned<u64>>,
    max_output_bytes: Option<Spanned<String>>,
    max_memory_bytes: Option<Spanned<String>>,
    max_session_bytes: Option<Spanned<String>>,
    records_max_age: Option<Spanned<String>>,
    records_max_bytes: Option<Spanned<String>>,
    stop_timeout: Option<Spanned<String>>,
    metrics: Option<Spanned<String>>,
}

/// Reads a file onto the defaults; one that need not exist and does not is none.
pub(super) fn read(
    path: &Path,
    must_exist: bool,
    surroundings: &Surroundings,
) -> Result<ServeConfig, ConfigError> {
    let config = ServeConfig::default_for(surroundings);
    // Whoever can write it decides what the daemon does: that holds for every user.
    let text = match read_file(path, true, surroundings.uid) {
        Ok(found) => found.text,
        Err(error) if error.why == NO_SUCH_FILE && !must_exist => return Ok(config),
        Err(error) => return Err(error),
    };
    let file = deserialize(&text)?;
    Ok(ServeConfig {
        file: Some(path.to_owned()),
        ..Reader { text: &text }.apply(file, config)?
    })
}

/// Judges values; its errors name their places.
struct Reader<'a> {
    text: &'a Text,
}

impl Reader<'_> {
    fn apply(&self, file: ServeFile, mut config: ServeConfig) -> Result<ServeConfig, ConfigError> {
        if let Some(path) = &file.socket {
            config.socket = Some(self.value("socket", path, |path| socket_path(Path::new(path)))?);
        }
        if let Some(name) = &file.group {
            config.group =
                Some(self.value("group", name, |name| not_empty(name, "the name of a group"))?);
        }
        if let Some(path) = &file.state_dir {
            config.state_dir = Some(self.value("state_dir", path, |path| absolute(Path::new(path)))?);
        }
        if let Some(filter) = &file.log {
            config.log = self.value("log", filter, |text| {
                logging::filter(text).map(|_| text.to_owned())
            })?;
        }
        config.log_format = file.log_format.unwrap_or_default();
        config.durable = file.durable.unwrap_or(true);
        config.disk_full = file.disk_full.unwrap_or_default();
        if let Some(time) = &file.reattach_timeout {
            config.settings.reattach = self.value("reattach_timeout", time, units::duration)?;
        }
        if let Some(what) = &file.confined_peers {
            config.settings.confined_peers = self.value("confined_peers", what, confined_peers)?;
        }
        if let Some(time) = &file.stop_timeout {
            config.settings.stop_timeout = self.value("stop_timeout", time, units::duration)?;
        }
        if let Some(age) = &file.records_max_age {
            config.settings.records_age = self.value("records_max_age", age, units::duration)?;
        }
        if let Some(size) = &file.records_max_bytes {
            let read = |text: &str| size_within(text, 1 << 20, 1 << 50);
            config.settings.records_bytes = self.value("records_max_bytes", size, read)?;
        }
        if let Some(address) = &file.metrics {
            config.metrics = Some(self.value("metrics", address, metrics)?);
        }
        self.apply_limits(&file, &mut config)?;
        Ok(config)
    }

    fn apply_limits(&self, file: &ServeFile, config: &mut ServeConfig) -> Result<(), ConfigError> {
        let settings = &mut config.settings;
        self.number(
            "max_clients",
            &file.max_clients,
            65_536,
            &mut settings.clients_max,
        )?;
        let in_flight = &mut settings.requests_max;
        self.number(
            "max_requests_in_flight",
            &file.max_requests_in_flight,
            65_536,
            in_flight,
        )?;
        self.number(
            "max_processes",
            &file.max_processes,
            1 << 20,
            &mut settings.processes_max,
        )?;
        if let Some(size) = &file.max_frame_bytes {
            let bytes = self.value("max_frame_bytes", size, |text| {
                size_within(text, 4 << 10, 64 << 20)
            })?;
            // At most 64 MiB, as was just seen.
            settings.frame_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if let Some(size) = &file.max_output_bytes {
            let read = |text: &str| size_within(text, 4 << 10, 1 << 40);
            settings.output_bytes = self.value("max_output_bytes", size, read)?;
        }
        if let Some(size) = &file.max_memory_bytes {
            let read = |text: &str| size_within(text, 1 << 20, 1 << 50);
            settings.memory_bytes = self.value("max_memory_bytes", size, read)?;
        }
        if let Some(size) = &file.max_session_bytes {
            let read = |text: &str| size_within(text, 8 << 10, settings.memory_bytes);
            settings.session_bytes = Some(self.value("max_session_bytes", size, read)?);
        }
        let (stream, all) = (settings.output_bytes, settings.memory_bytes);
        // Both streams of one process have room at least.
        if let Some(said) = file.max_output_bytes.as_ref().or(file.max_memory_bytes.as_ref())
            && stream > all / 2
        {
            let why = format!("{stream} bytes for each stream do not fit twice into {all} for all logs");
            let error = self.text.error(said.span(), "max_output_bytes", why);
            return Err(error.help("make max_memory_bytes at least twice as large"));
        }
        Ok(())
    }

    fn value<T>(
        &self,
        key: &str,
        value: &Spanned<String>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        read(value.get_ref()).map_err(|why| self.text.error(value.span(), key, why))
    }

    fn number(
        &self,
        key: &str,
        value: &Option<Spanned<u64>>,
        most: usize,
        into: &mut usize,
    ) -> Result<(), ConfigError> {
        let Some(value) = value else { return Ok(()) };
        match usize::try_from(*value.get_ref()) {
            Ok(number) if (1..=most).contains(&number) => {
                *into = number;
                Ok(())
            }
            _ => Err(self
                .text
                .error(value.span(), key, format!("{} is out of range", value.get_ref()))
                .help(format!("want a number from 1 to {most}"))),
        }
    }
}

fn not_empty(text: &str, what: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err(format!("is empty; want {what}")),
        text => Ok(text.to_owned()),
    }
}

fn confined_peers(text: &str) -> Result<ConfinedPeers, String> {
    Ok(match not_empty(text, "`refuse` or a policy")?.as_str() {
        "refuse" => ConfinedPeers::Refuse,
        // It would lift what confines them.
        "unconfined" => {
            return Err(
                "`unconfined` would let confined programs out; want `refuse` or a policy".to_owned(),
            );
        }
        policy => ConfinedPeers::Policy(policy.to_owned()),
    })
}

fn size_within(text: &str, least: u64, most: u64) -> Result<u64, String> {
    match units::bytes(text)? {
        bytes if (least..=most).contains(&bytes) => Ok(bytes),
        _ => Err(format!("out of range; want {least} to {most} bytes")),
    }
}

fn metrics(text: &str) -> Result<MetricsAddress, String> {
    if text.starts_with('/') {
        return socket_path(Path::new(text)).map(MetricsAddress::Unix);
    }
    let hint = "want the path of a socket, or a loopback address with a port like 127.0.0.1:9464";
    match text.parse::<std::net::SocketAddr>() {
        Ok(address) if address.port() == 0 => Err(format!("port 0 is none; {hint}")),
        Ok(address) if address.ip().is_loopback() => Ok(MetricsAddress::Loopback(address)),
        Ok(address) => Err(format!("{} can be reached from elsewhere; {hint}", address.ip())),
        Err(_) => Err(hint.to_owned()),
    }
}
