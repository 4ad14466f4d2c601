//! The file of `provost up`: a group as TOML.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::cli::args::SpecArgs;
use crate::cli::config;
use crate::policy_file::{PolicyFileError, Text, deserialize, read_file};
use crate::{
    Backoff, GroupSpec, Intensity, MemberSpec, NetMode, ProcessSpec, Readiness, Restart, StdinSpec,
    Strategy, units,
};

/// The longest name of a member, in bytes: it stands before each line.
const NAME_BYTES_MAX: usize = 32;

/// The keys. An unknown one is an error: what is silently ignored silently does not hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpFile {
    name: Option<String>,
    #[serde(default)]
    strategy: Strategy,
    intensity: Option<u32>,
    period: Option<Spanned<String>>,
    #[serde(default)]
    backoff: BackoffTable,
    #[serde(default)]
    process: Vec<ProcessTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackoffTable {
    first: Option<Spanned<String>>,
    max: Option<Spanned<String>>,
    factor: Option<u32>,
    jitter_percent: Option<Spanned<u8>>,
    healthy_after: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProcessTable {
    name: Spanned<String>,
    command: Spanned<Vec<String>>,
    #[serde(default)]
    restart: Restart,
    ready: Option<Spanned<ReadyKey>>,
    cwd: Option<String>,
    policy: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    options: Vec<String>,
}

/// `"fd"`, `"notify"`, or a table.
#[derive(Debug)]
enum ReadyKey {
    Word(String),
    Table(ReadyTable),
}

impl<'de> Deserialize<'de> for ReadyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrTable;

        impl<'de> Visitor<'de> for WordOrTable {
            type Value = ReadyKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"fd\", \"notify\" or a table")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<ReadyKey, E> {
                Ok(ReadyKey::Word(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ReadyKey, A::Error> {
                ReadyTable::deserialize(MapAccessDeserializer::new(map)).map(ReadyKey::Table)
            }
        }
        // Not untagged: that would lose the places of what is in the table.
        deserializer.deserialize_any(WordOrTable)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyTable {
    #[serde(default)]
    fd: bool,
    #[serde(default)]
    notify: bool,
    tcp: Option<Spanned<String>>,
    unix: Option<String>,
    within: Option<Spanned<String>>,
}

/// The flags of `provost run` that say what a command may touch, how it runs and how it ends.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, about = None, long_about = None)]
struct Options {
    #[command(flatten)]
    spec: SpecArgs,
}

/// Reads a group. Paths in it are seen from this process's directory, which is that of the file.
///
/// `may_ask`: somebody can answer what a policy asks.
pub(super) fn read(path: &Path, may_ask: bool) -> Result<GroupSpec, PolicyFileError> {
    // Whoever can write it decides what runs.
    let text = read_file(path, true, nix::unistd::geteuid().as_raw())?.text;
    let file: UpFile = deserialize(&text)?;
    let reader = Reader { text: &text, may_ask };
    let stem = || {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut group = GroupSpec::new(file.name.clone().unwrap_or_else(stem));
    group.strategy = file.strategy;
    let usual = Intensity::default();
    group.intensity = Intensity {
        restarts: file.intensity.unwrap_or(usual.restarts),
        period: reader.time("period", &file.period, usual.period)?,
    };
    group.backoff = reader.backoff(&file.backoff)?;
    for (index, process) in file.process.into_iter().enumerate() {
        let member = reader.member(&format!("process[{index}]"), process, &group.members)?;
        group.members.push(member);
    }
    if group.members.is_empty() {
        let error = PolicyFileError::file(path.display().to_string(), "names no process");
        return Err(error.help("add a table `[[process]]` with `name` and `command`"));
    }
    Ok(group)
}

/// Judges values; its errors name their places.
struct Reader<'a> {
    text: &'a Text,
    may_ask: bool,
}

impl Reader<'_> {
    fn error(&self, span: Range<usize>, key: &str, why: impl Into<String>) -> PolicyFileError {
        self.text.error(span, key, why.into())
    }

    fn time(
        &self,
        key: &str,
        given: &Option<Spanned<String>>,
        usual: Duration,
    ) -> Result<Duration, PolicyFileError> {
        let Some(given) = given else { return Ok(usual) };
        units::duration(given.get_ref()).map_err(|why| self.error(given.span(), key, why))
    }

    fn backoff(&self, table: &BackoffTable) -> Result<Backoff, PolicyFileError> {
        let usual = Backoff::default();
        let jitter_percent = match &table.jitter_percent {
            Some(percent) if *percent.get_ref() > 100 => {
                let why = "want a number from 0 to 100";
                return Err(self.error(percent.span(), "backoff.jitter_percent", why));
            }
            given => given
                .as_ref()
                .map_or(usual.jitter_percent, |given| *given.get_ref()),
        };
        Ok(Backoff {
            first: self.time("backoff.first", &table.first, usual.first)?,
            max: self.time("backoff.max", &table.max, usual.max)?,
            factor: table.factor.unwrap_or(usual.factor),
            jitter_percent,
            healthy_after: self.time(
                "backoff.healthy_after",
                &table.healthy_after,
                usual.healthy_after,
            )?,
        })
    }

    fn member(
        &self,
        key: &str,
        process: ProcessTable,
        before: &[MemberSpec],
    ) -> Result<MemberSpec, PolicyFileError> {
        let name = process.name.get_ref().clone();
        let bad_name = |why: &str| self.error(process.name.span(), &format!("{key}.name"), why);
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
            return Err(bad_name("want 1 to 32 letters, digits, `_`, `-` and `.`"));
        }
        if before.iter().any(|member| member.name == name) {
            return Err(bad_name("there is one of that name before"));
        }
        let at = process.command.span();
        let (restart, ready) = (process.restart, process.ready.as_ref());
        let ready = ready.map(|ready| self.ready(key, ready)).transpose()?;
        let spec = spec(&process).map_err(|why| self.error(at.clone(), key, why))?;
        if (spec.policy.ask.net || spec.policy.ask.files) && !self.may_ask {
            let error = self.error(at, key, "its policy asks, and here is nobody to answer");
            return Err(error.help("start the group with --daemon and answer with `provost approve`"));
        }
        let isolated = spec.policy.confined && spec.policy.net.mode == NetMode::Isolated;
        if isolated && matches!(ready, Some((Readiness::Tcp(_), _))) {
            let why = "with an isolated network nobody outside can connect, nor see that it is ready";
            let error = self.error(at, &format!("{key}.ready"), why);
            return Err(error.help("use `unix`, or `--listen` with another network mode"));
        }
        let mut member = MemberSpec::new(name, move || again(&spec));
        member.restart = restart;
        if let Some((ready, within)) = ready {
            (member.ready, member.ready_within) = (ready, within);
        }
        Ok(member)
    }

    fn ready(
        &self,
        key: &str,
        ready: &Spanned<ReadyKey>,
    ) -> Result<(Readiness, Duration), PolicyFileError> {
        let key = format!("{key}.ready");
        let usual = Duration::from_secs(30);
        let table = match ready.get_ref() {
            ReadyKey::Table(table) => table,
            ReadyKey::Word(word) if word == "fd" => return Ok((Readiness::Descriptor, usual)),
            ReadyKey::Word(word) if word == "notify" => return Ok((Readiness::Notify, usual)),
            ReadyKey::Word(_) => {
                let why = "want \"fd\", \"notify\", or a table with `fd`, `notify`, `tcp` or `unix`";
                return Err(self.error(ready.span(), &key, why));
            }
        };
        let within = self.time(&format!("{key}.within"), &table.within, usual)?;
        let how = match (&table.tcp, &table.unix, table.fd, table.notify) {
            (None, None, true, false) => Readiness::Descriptor,
            (None, None, false, true) => Readiness::Notify,
            (Some(tcp), None, false, false) => {
                let address = tcp.get_ref().parse::<SocketAddr>().map_err(|_| {
                    let why = "want an address and a port: 127.0.0.1:5432, [::1]:5432";
                    self.error(tcp.span(), &format!("{key}.tcp"), why)
                })?;
                Readiness::Tcp(address)
            }
            (None, Some(path), false, false) => {
                let absolute = std::path::absolute(path);
                Readiness::Unix(absolute.unwrap_or_else(|_| PathBuf::from(path)))
            }
            _ => {
                return Err(self.error(
                    ready.span(),
                    &key,
                    "want one of `fd`, `notify`, `tcp` and `unix`",
                ));
            }
        };
        Ok((how, within))
    }
}

/// What a process's keys mean: the same as the flags of `provost run`.
fn spec(process: &ProcessTable) -> Result<ProcessSpec, String> {
    let command = process.command.get_ref();
    if command.is_empty() {
        return Err("the command is empty".to_owned());
    }
    let mut words = process.options.clone();
    let keys = [("--policy", &process.policy), ("--cwd", &process.cwd)];
    for (flag, value) in keys {
        words.extend(value.as_ref().map(|value| format!("{flag}={value}")));
    }
    words.extend(
        process
            .env
            .iter()
            .map(|(key, value)| format!("--env={key}={value}")),
    );
    let options = Options::try_parse_from(words).map_err(|error| {
        let error = error.to_string();
        let line = error.lines().next().unwrap_or_default();
        format!("options: {}", line.trim_start_matches("error: "))
    })?;
    let mut spec = config::spec(&options.spec, command.iter().map(OsString::from).collect())?;
    // What it writes passes through whole.
    spec.paced = true;
    Ok(spec)
}

/// The same once more.
fn again(spec: &ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        argv: spec.argv.clone(),
        cwd: spec.cwd.clone(),
        env: spec.env.clone(),
        stdin: StdinSpec::Null,
        terminal: spec.terminal,
        policy: spec.policy.clone(),
        timeout: spec.timeout,
        idle_timeout: spec.idle_timeout,
        stop: spec.stop,
        tree: spec.tree,
        drain: spec.drain,
        on_denial: spec.on_denial,
        ask_timeout: spec.ask_timeout,
        observe_reads: spec.observe_reads,
        retention: spec.retention,
        paced: spec.paced,
        slot: spec.slot.clone(),
        report: spec.report,
        ready: spec.ready,
        labels: spec.labels.clone(),
    }
}
