//! From files to one policy: what a file extends comes first, then its own rules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::error::{PolicyFileError, Text};
use super::find::{Found, PolicyName, read};
use super::format::{self, NetModeName, PolicyFile};
use crate::{
    AskPolicy, Degrade, Destination, NameRule, NetMode, NetRule, PathRule, Policy, PresetContext,
    SyscallRule,
};

/// How many files may extend each other.
const DEPTH_MAX: usize = 8;
/// How many paths one pattern may stand for.
const MATCHES_MAX: usize = 10_000;

/// What a policy file is read for.
#[derive(Debug, Clone)]
pub struct PolicyFileContext {
    /// Working directory, home and user.
    pub preset: PresetContext,
    /// Where policies are looked up by name, the most important directory first.
    pub directories: Vec<PathBuf>,
    /// The user who reads them.
    pub uid: u32,
}

impl PolicyFileContext {
    /// The usual directories: `$XDG_CONFIG_HOME/provost/policies` (`~/.config` if that is not set), then
    /// `/etc/provost/policies`.
    pub fn new(preset: PresetContext, config_home: Option<PathBuf>) -> Self {
        let config = config_home
            .filter(|path| path.is_absolute())
            .or_else(|| Some(preset.home.as_ref()?.join(".config")));
        let own = config.map(|config| config.join("provost/policies"));
        Self {
            uid: preset.uid,
            directories: own
                .into_iter()
                .chain([PathBuf::from("/etc/provost/policies")])
                .collect(),
            preset,
        }
    }
}

/// Which variables a policy passes and sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvironmentPolicy {
    /// Begin with the five that every command gets.
    pub clean: bool,
    /// Names, and beginnings of names that end with `*`.
    pub pass: Vec<String>,
    /// Set to these values.
    pub set: BTreeMap<String, String>,
}

/// A policy, and what a file says about running a command under it.
#[derive(Debug, Clone)]
pub struct LoadedPolicy {
    /// The policy.
    pub policy: Policy,
    /// Which variables it gets.
    pub environment: EnvironmentPolicy,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// How long it may be silent.
    pub idle_timeout: Option<Duration>,
    /// What it was made of, the base first: presets and files.
    pub layers: Vec<String>,
    /// What is worth a look, though it is no error.
    pub warnings: Vec<String>,
}

impl From<Policy> for LoadedPolicy {
    /// A policy that no file says anything about.
    fn from(policy: Policy) -> Self {
        Self {
            policy,
            environment: EnvironmentPolicy::default(),
            timeout: None,
            idle_timeout: None,
            layers: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// Loads a preset, a file, or a policy by its name, with all that it extends.
///
/// # Errors
/// The first mistake in any of the files, or a file that cannot be used.
pub fn load(name: &PolicyName, context: &PolicyFileContext) -> Result<LoadedPolicy, PolicyFileError> {
    if let PolicyName::Preset(preset) = name {
        return base(preset, context);
    }
    merge(chain(name.clone(), context)?, context)
}

fn merge(chain: Chain, context: &PolicyFileContext) -> Result<LoadedPolicy, PolicyFileError> {
    let preset = chain.preset.as_deref();
    let mut loaded = base(preset.unwrap_or("read-only"), context)?;
    if preset.is_none() {
        // Nothing but what the files grant; what presets deny stays denied.
        loaded.policy.files.read.clear();
        loaded.layers.clear();
        let built_in = || "built-in".to_owned();
        for rule in &mut loaded.policy.files.deny {
            rule.source = built_in();
        }
        loaded.policy.net.source = built_in();
    }
    // The base comes first, so the last one read is the first applied.
    for (text, file) in chain.files.iter().rev() {
        Layer { text, context }.apply(file, &mut loaded)?;
        loaded.layers.push(text.file.clone());
    }
    if let Some((text, _)) = chain.files.first() {
        loaded.policy.name = Path::new(&text.file)
            .file_stem()
            .map_or_else(|| text.file.clone(), |stem| stem.to_string_lossy().into_owned());
    }
    Ok(loaded)
}

/// The policy in a text that extends a preset or nothing; `None` where it extends another file.
#[cfg(all(feature = "cli", any(test, feature = "fuzzing")))]
pub(super) fn load_text(
    text: Text,
    context: &PolicyFileContext,
) -> Option<Result<LoadedPolicy, PolicyFileError>> {
    let file = match format::parse(&text) {
        Ok(file) => file,
        Err(error) => return Some(Err(error)),
    };
    let preset = match &file.extends {
        None => None,
        Some(extends) => match PolicyName::parse(extends.get_ref()) {
            PolicyName::Preset(preset) => Some(preset),
            _ => return None,
        },
    };
    // A pattern for all of the machine would take as long as all of the machine is large.
    let lists = [
        &file.files.read,
        &file.files.execute,
        &file.files.write,
        &file.files.deny,
        &file.files.protect,
        &file.net.unix,
    ];
    let searches = |path: &Spanned<String>| {
        let path = path.get_ref();
        path.starts_with('/') && path.contains(['*', '?', '['])
    };
    if lists.into_iter().flatten().any(searches) {
        return None;
    }
    let files = vec![(text, file)];
    Some(merge(Chain { files, preset }, context))
}

fn base(preset: &str, context: &PolicyFileContext) -> Result<LoadedPolicy, PolicyFileError> {
    let policy = Policy::preset(preset, &context.preset)
        .map_err(|error| PolicyFileError::file(preset, error.to_string()))?;
    Ok(LoadedPolicy {
        layers: vec![format!("preset {preset}")],
        ..LoadedPolicy::from(policy)
    })
}

/// Files that extend each other, the last one first, and the preset below them.
struct Chain {
    files: Vec<(Text, PolicyFile)>,
    preset: Option<String>,
}

fn chain(name: PolicyName, context: &PolicyFileContext) -> Result<Chain, PolicyFileError> {
    let mut chain = Chain {
        files: Vec::new(),
        preset: None,
    };
    let mut next = Some(name);
    let mut strict = false;
    // Who wants the next one: errors about it are his.
    let mut wanted: Option<(usize, std::ops::Range<usize>)> = None;
    while let Some(name) = next.take() {
        if let PolicyName::Preset(preset) = name {
            chain.preset = Some(preset);
            break;
        }
        let found = read(&name, context, strict).map_err(|error| match &wanted {
            Some((by, span)) => chain.files[*by]
                .0
                .error(span.clone(), "extends", error.to_string()),
            None => error,
        })?;
        let Found { text, path, .. } = found;
        strict = found.strict;
        let known = chain
            .files
            .iter()
            .any(|(known, _)| same_file(&known.file, &text.file));
        if let (Some((by, span)), true) = (&wanted, known || chain.files.len() >= DEPTH_MAX) {
            let why = if known {
                format!("{} extends itself by way of this", text.file)
            } else {
                format!("more than {DEPTH_MAX} files extend each other")
            };
            return Err(chain.files[*by].0.error(span.clone(), "extends", why));
        }
        let file = format::parse(&text)?;
        if let Some(extends) = &file.extends {
            next = Some(match PolicyName::parse(extends.get_ref()) {
                // Relative to the file that says so.
                PolicyName::File(file) => {
                    PolicyName::File(path.parent().unwrap_or(Path::new(".")).join(file))
                }
                name => name,
            });
            wanted = Some((chain.files.len(), extends.span()));
        }
        chain.files.push((text, file));
    }
    Ok(chain)
}

fn same_file(one: &str, other: &str) -> bool {
    let real = |path: &str| Path::new(path).canonicalize().unwrap_or_else(|_| path.into());
    real(one) == real(other)
}

/// One file, being applied.
struct Layer<'a> {
    text: &'a Text,
    context: &'a PolicyFileContext,
}

impl Layer<'_> {
    fn apply(&self, file: &PolicyFile, loaded: &mut LoadedPolicy) -> Result<(), PolicyFileError> {
        self.refuse_without_a_sandbox(file, &loaded.policy)?;
        let mut warnings = Vec::new();
        let policy = &mut loaded.policy;
        let lists = [
            ("files.read", &file.files.read, &mut policy.files.read),
            ("files.execute", &file.files.execute, &mut policy.files.execute),
            ("files.write", &file.files.write, &mut policy.files.write),
            ("files.deny", &file.files.deny, &mut policy.files.deny),
            ("files.protect", &file.files.protect, &mut policy.files.protect),
            ("net.unix", &file.net.unix, &mut policy.net.unix),
        ];
        for (key, given, rules) in lists {
            for (index, path) in given.iter().enumerate() {
                let found = self.paths(path, &format!("{key}[{index}]"), key)?;
                if found.is_empty() {
                    warnings.push(format!("{} matches nothing now", self.rule(path, key)));
                }
                rules.extend(found);
            }
        }
        policy.files.private_tmp = file.files.private_tmp.unwrap_or(policy.files.private_tmp);
        policy.ask.files = file.files.ask.unwrap_or(policy.ask.files);
        if let Some(mode) = &file.net.mode {
            (policy.net.mode, policy.ask.net) = match mode.get_ref() {
                NetModeName::Off => (NetMode::Off, false),
                NetModeName::Isolated => (NetMode::Isolated, false),
                NetModeName::Open => (NetMode::Open, false),
                NetModeName::Ask => (NetMode::Off, true),
            };
        }
        if let Some(mode) = &file.net.mode {
            let (line, _) = self.text.place(mode.span().start);
            policy.net.source = format!("{}:{line}: net.mode", self.text.file);
        }
        for (index, text) in file.net.allow.iter().enumerate() {
            let key = format!("net.allow[{index}]");
            let destination: Destination = self.value(text, &key)?;
            if policy.net.mode == NetMode::Isolated {
                let why = "nothing can be allowed where net.mode is isolated: a private loopback leads nowhere";
                return Err(self
                    .text
                    .error(text.span(), &key, why)
                    .help("use net.mode = \"off\""));
            }
            let source = self.rule(text, "net.allow");
            match destination {
                Destination::Address(rule) => policy.net.allow.push(NetRule { source, ..rule }),
                Destination::Name(rule) => policy.net.names.rules.push(NameRule { source, ..rule }),
            }
        }
        policy.net.proxy = file.net.proxy.unwrap_or(policy.net.proxy);
        for (index, text) in file.net.listen.iter().enumerate() {
            let rule: NetRule = self.value(text, &format!("net.listen[{index}]"))?;
            let source = self.rule(text, "net.listen");
            policy.net.listen.push(NetRule { source, ..rule });
        }
        for (index, name) in file.syscalls.refuse.iter().enumerate() {
            let key = format!("syscalls.refuse[{index}]");
            let source = self.rule(name, "syscalls.refuse");
            let rule = self.parsed(name, &key, |name| {
                SyscallRule::new(name, source.clone()).map_err(|error| error.to_string())
            })?;
            policy.refuse_syscalls.push(rule);
        }
        if let Some(best_effort) = file.best_effort {
            policy.degrade = if best_effort {
                Degrade::BestEffort
            } else {
                Degrade::Required
            };
        }
        self.limits(file, loaded)?;
        self.environment(file, loaded)?;
        loaded.warnings.extend(warnings);
        Ok(())
    }

    /// Rules on top of `unconfined` would hold nothing.
    fn refuse_without_a_sandbox(
        &self,
        file: &PolicyFile,
        policy: &Policy,
    ) -> Result<(), PolicyFileError> {
        if policy.confined {
            return Ok(());
        }
        let files = &file.files;
        let first = [
            &files.read,
            &files.execute,
            &files.write,
            &files.deny,
            &files.protect,
            &file.net.allow,
            &file.net.listen,
            &file.net.unix,
            &file.syscalls.refuse,
        ]
        .into_iter()
        .flatten()
        .map(Spanned::span)
        .chain(file.net.mode.as_ref().map(Spanned::span))
        .min_by_key(|span| span.start);
        let asks = files.ask == Some(true) || files.private_tmp == Some(true);
        let key = if first.is_some() { "" } else { "files" };
        match first.or(asks.then_some(0..0)) {
            None => Ok(()),
            Some(span) => Err(self
                .text
                .error(
                    span,
                    key,
                    "rules for files, network and system calls do nothing on top of `unconfined`",
                )
                .help("extend `workspace-write` or `read-only`, or leave the rules out")),
        }
    }

    fn limits(&self, file: &PolicyFile, loaded: &mut LoadedPolicy) -> Result<(), PolicyFileError> {
        let given = &file.limits;
        let limits = &mut loaded.policy.limits;
        if let Some(memory) = &given.memory {
            limits.memory_bytes = Some(self.parsed(memory, "limits.memory", crate::units::bytes)?);
        }
        if let Some(tasks) = &given.tasks {
            if *tasks.get_ref() == 0 {
                return Err(self
                    .text
                    .error(tasks.span(), "limits.tasks", "must be at least 1"));
            }
            limits.tasks = Some(*tasks.get_ref());
        }
        if let Some(files) = &given.open_files {
            if *files.get_ref() < 16 {
                return Err(self
                    .text
                    .error(files.span(), "limits.open_files", "must be at least 16"));
            }
            limits.open_files = Some(*files.get_ref());
        }
        if let Some(cpus) = &given.cpus {
            let millis = crate::units::cpu_millis(*cpus.get_ref());
            limits.cpu_millis =
                Some(millis.map_err(|why| self.text.error(cpus.span(), "limits.cpus", why))?);
        }
        if let Some(bytes) = &given.disk_written {
            limits.disk_bytes = Some(self.parsed(bytes, "limits.disk_written", crate::units::bytes)?);
        }
        if let Some(size) = &given.file_size {
            limits.file_bytes = Some(self.parsed(size, "limits.file_size", crate::units::bytes)?);
        }
        let time = |text: &Option<Spanned<String>>, key: &str| {
            text.as_ref()
                .map(|text| self.parsed(text, key, crate::units::duration))
                .transpose()
        };
        if let Some(cpu_time) = time(&given.cpu_time, "limits.cpu_time")? {
            limits.cpu_seconds = Some(cpu_time.as_secs().max(1));
        }
        loaded.timeout = time(&given.timeout, "limits.timeout")?.or(loaded.timeout);
        loaded.idle_timeout = time(&given.idle_timeout, "limits.idle_timeout")?.or(loaded.idle_timeout);
        Ok(())
    }

    fn environment(&self, file: &PolicyFile, loaded: &mut LoadedPolicy) -> Result<(), PolicyFileError> {
        let environment = &mut loaded.environment;
        environment.clean = file.env.clean.unwrap_or(environment.clean);
        for (index, name) in file.env.pass.iter().enumerate() {
            let plain = name.get_ref().strip_suffix('*').unwrap_or(name.get_ref());
            let bad = plain.contains(['=', '\0', '*']) || name.get_ref().is_empty();
            if bad {
                let why = format!("`{}` is not the name of a variable", name.get_ref());
                let key = format!("env.pass[{index}]");
                return Err(self
                    .text
                    .error(name.span(), &key, why)
                    .help("want NAME or BEGINNING*"));
            }
            environment.pass.push(name.get_ref().clone());
        }
        for (name, value) in &file.env.set {
            if name.get_ref().is_empty() || name.get_ref().contains(['=', '\0']) || value.contains('\0')
            {
                let why = format!("`{}` cannot be set", name.get_ref());
                return Err(self.text.error(name.span(), "env.set", why));
            }
            environment.set.insert(name.get_ref().clone(), value.clone());
        }
        Ok(())
    }

    /// The rules that one entry stands for.
    fn paths(
        &self,
        given: &Spanned<String>,
        key: &str,
        list: &str,
    ) -> Result<Vec<PathRule>, PolicyFileError> {
        let text = given.get_ref();
        let bad = |why: String| self.text.error(given.span(), key, why);
        if text.is_empty() || text.contains('\0') {
            return Err(bad(format!("`{text}` is not a path")));
        }
        let preset = &self.context.preset;
        let path = match text.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => match &preset.home {
                Some(home) => home.join(rest.trim_start_matches('/')),
                None => return Err(bad("there is no home here: HOME is not set".to_owned())),
            },
            Some(_) => {
                return Err(bad(format!("`{text}`: homes of other users are not looked up"))
                    .help("write the absolute path, or `./~…` for a name that begins with `~`"));
            }
            None => preset.cwd.join(text),
        };
        let rule = |path: PathBuf| {
            // A link is followed: what counts is what it leads to.
            let real = path.canonicalize().unwrap_or(path);
            PathRule::explicit(real, self.rule(given, list))
        };
        if !text.contains(['*', '?', '[']) {
            return Ok(vec![rule(path)]);
        }
        let pattern = path.to_str().ok_or_else(|| bad("is not UTF-8".to_owned()))?;
        let matches = glob::glob(pattern).map_err(|error| {
            bad(format!("`{text}` is no pattern: {}", error.msg)).help("`[[]` stands for a plain `[`")
        })?;
        let mut rules = Vec::new();
        for found in matches {
            // What cannot be looked into here might match all the same, and a denial must not miss it.
            let found = found.map_err(|error| {
                let why = error.error();
                bad(format!(
                    "`{text}` cannot be looked up in {}: {why}",
                    error.path().display()
                ))
            })?;
            if rules.len() == MATCHES_MAX {
                return Err(bad(format!("`{text}` matches more than {MATCHES_MAX} paths"))
                    .help("name the directory above them"));
            }
            rules.push(rule(found));
        }
        Ok(rules)
    }

    /// A rule as denials and explanations quote it.
    fn rule(&self, given: &Spanned<String>, list: &str) -> String {
        let (line, _) = self.text.place(given.span().start);
        format!("{}:{line}: {list} `{}`", self.text.file, given.get_ref())
    }

    fn value<T>(&self, given: &Spanned<String>, key: &str) -> Result<T, PolicyFileError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        self.parsed(given, key, |text| {
            text.parse::<T>().map_err(|error| error.to_string())
        })
    }

    fn parsed<T>(
        &self,
        given: &Spanned<String>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, PolicyFileError> {
        parse(given.get_ref()).map_err(|why| self.text.error(given.span(), key, why))
    }
}

impl LoadedPolicy {
    /// Settles what the rules of different origins mean together, once all of them are there.
    ///
    /// # Errors
    /// Two of them contradict each other.
    pub fn settle(&mut self) -> Result<(), String> {
        let policy = &mut self.policy;
        // Named outright, a protected path of a preset's is meant to be written.
        let files = &mut policy.files;
        let named = |rule: &PathRule| {
            files
                .write
                .iter()
                .any(|named| named.explicit && named.path == rule.path)
        };
        files.protect.retain(|rule| rule.explicit || !named(rule));
        let destinations = !policy.net.allow.is_empty() || !policy.net.names.rules.is_empty();
        if policy.net.mode == NetMode::Isolated && destinations {
            return Err(
                "nothing can be allowed with the network isolated: a private loopback has no way to that address; use off"
                    .to_owned(),
            );
        }
        if policy.net.proxy && (policy.net.mode != NetMode::Off || policy.ask.net) {
            return Err(
                "the proxy is for what a closed network allows by name: it goes with the network off, and nobody is asked there"
                    .to_owned(),
            );
        }
        if policy.ask.net && policy.net.mode != NetMode::Off {
            return Err(format!(
                "there is nothing to ask about with the network {}: only where it is off is anything refused",
                policy.net.mode.as_str()
            ));
        }
        if !policy.confined {
            policy.ask = AskPolicy::default();
        }
        Ok(())
    }
}
