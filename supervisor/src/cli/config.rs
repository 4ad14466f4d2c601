//! Raw flags → resolved configuration, once. Nobody else reads flags or the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use provost_actors::ledger::{OnDenial, TreeRule};
use provost_actors::log::LogLimits;
use provost_actors::spec::{ProcessSpec, StdinSpec, StopRule};
use provost_sandbox::policy::{
    Degrade, Destination, FixedName, NameRule, NetMode, NetRule, PathRule, Policy, PresetContext,
    SyscallRule,
};

use super::args::{AskArg, ObserveArg, OnDenialArg, RunArgs, SpecArgs, StdinArg, TreeArg};
use super::ask::{Asked, Terminal};
use super::environment::{self, EnvironmentRules};
use super::tty::Attached;
use crate::decider::Decider;
use crate::policy_file::{self, LoadedPolicy, PolicyFileContext, PolicyName};

/// How a run reports.
#[derive(Debug)]
pub(super) struct Reporting {
    pub(super) json: bool,
    pub(super) events: Option<PathBuf>,
    pub(super) record: Option<PathBuf>,
    pub(super) quiet: bool,
}

/// Everything that `run` needs.
#[derive(Debug)]
pub(super) struct RunConfig {
    pub(super) spec: ProcessSpec,
    pub(super) reporting: Reporting,
    /// Who answers what the policy asks about.
    pub(super) asked: Option<Asked>,
    /// What the command's terminal is tied to, if it has one.
    pub(super) attached: Option<Attached>,
    /// Something worth a word to the user before it starts.
    pub(super) note: Option<String>,
}

/// Resolves the flags of `run`.
pub(super) fn resolve(args: RunArgs) -> Result<RunConfig, String> {
    let (stdin, note) = stdin(args.stdin)?;
    let mut spec = spec(&args.spec, args.command.clone())?;
    let (stdin, attached) = match args.tty {
        true => (StdinSpec::Null, Some(Attached::new(args.stdin, stdin)?)),
        false => (stdin, None),
    };
    spec.stdin = stdin;
    spec.terminal = attached.as_ref().map(Attached::size);
    spec.paced = true;
    let asked = asked(&args, &spec.policy)?;
    Ok(RunConfig {
        spec,
        reporting: reporting(args),
        asked,
        attached,
        note,
    })
}

/// Where the flags of `run` want its report.
pub(super) fn reporting(args: RunArgs) -> Reporting {
    Reporting {
        json: args.json,
        events: args.events,
        record: args.record,
        quiet: args.quiet,
    }
}

/// Resolves the flags of whatever starts a command. It has no standard input yet.
pub(super) fn spec(args: &SpecArgs, command: Vec<OsString>) -> Result<ProcessSpec, String> {
    let here = here()?;
    let cwd = match &args.cwd {
        Some(cwd) => cwd
            .canonicalize()
            .map_err(|error| format!("--cwd {}: {error}", cwd.display()))?,
        None => here
            .canonicalize()
            .map_err(|error| format!("the working directory: {error}"))?,
    };
    if !cwd.is_dir() {
        return Err(format!("--cwd {}: not a directory", cwd.display()));
    }
    let loaded = policy(args, &here, &cwd)?;
    let policy = loaded.policy;
    let rules = EnvironmentRules {
        everything: !policy.confined,
        clean: args.clean_env,
        policy: &loaded.environment,
        named: &args.env,
    };
    let env = environment::build(&rules, std::env::vars_os())?;
    let mut spec = ProcessSpec::new(command, cwd, policy);
    spec.ask_timeout = args.ask_timeout;
    spec.env = env;
    spec.timeout = args.timeout.or(loaded.timeout);
    spec.idle_timeout = args.idle_timeout.or(loaded.idle_timeout);
    spec.stop = StopRule {
        signal: args.stop_signal,
        grace: args.grace,
    };
    spec.tree = match args.tree {
        TreeArg::Kill => TreeRule::Kill,
        TreeArg::Wait => TreeRule::Wait,
    };
    spec.on_denial = match args.on_denial {
        OnDenialArg::Report => OnDenial::Report,
        OnDenialArg::Stop => OnDenial::Stop,
    };
    spec.observe_reads = args.observe == Some(ObserveArg::Reads);
    if let Some(bytes) = args.max_output {
        spec.retention = LogLimits::keeping(bytes);
    }
    spec.report = args.report;
    spec.labels = labels(&args.label)?;
    Ok(spec)
}

fn here() -> Result<PathBuf, String> {
    std::env::current_dir().map_err(|error| format!("the working directory: {error}"))
}

/// The policy that `--policy` names, and the flags on top of it.
fn policy(args: &SpecArgs, here: &Path, cwd: &Path) -> Result<LoadedPolicy, String> {
    let context = policy_context(Some(cwd))?;
    let mut loaded = policy_file::load(&PolicyName::parse(&args.policy), &context)
        .map_err(|error| format!("--policy {}: {error}", args.policy))?;
    let policy = &mut loaded.policy;
    let paths = [
        &args.read,
        &args.execute,
        &args.write,
        &args.deny,
        &args.allow_unix,
    ];
    let texts = [&args.allow_net, &args.listen, &args.refuse_syscall];
    let rules =
        paths.iter().any(|rules| !rules.is_empty()) || texts.iter().any(|rules| !rules.is_empty());
    let asks = !args.ask.is_empty();
    if !policy.confined && (rules || asks || args.proxy || args.net.is_some()) {
        return Err(
            "--policy unconfined has no sandbox: --read, --write, --execute, --deny, --net, --allow-net, --allow-unix, --listen, --proxy, --refuse-syscall and --ask do nothing there; leave them out or choose another policy"
                .to_owned(),
        );
    }
    let explicit = |flag: &str, path: &PathBuf| {
        let absolute = here.join(path);
        // A link is followed: what counts is what it leads to.
        let real = absolute.canonicalize().unwrap_or(absolute);
        PathRule::explicit(real, format!("--{flag} {}", path.display()))
    };
    let files = &mut policy.files;
    files
        .read
        .extend(args.read.iter().map(|path| explicit("read", path)));
    files
        .execute
        .extend(args.execute.iter().map(|path| explicit("execute", path)));
    files
        .write
        .extend(args.write.iter().map(|path| explicit("write", path)));
    files
        .deny
        .extend(args.deny.iter().map(|path| explicit("deny", path)));
    if args.net.as_deref() == Some("ask") {
        policy.net.mode = NetMode::Off;
        policy.net.source = "--net ask".to_owned();
        policy.ask.net = true;
    } else if let Some(mode) = &args.net {
        policy.net.mode = mode
            .parse::<NetMode>()
            .map_err(|error| format!("--net: {error}"))?;
        policy.net.source = format!("--net {mode}");
        policy.ask.net = false;
    }
    for what in &args.ask {
        match what {
            AskArg::Net => policy.ask.net = true,
            AskArg::Files => policy.ask.files = true,
        }
    }
    for text in &args.allow_net {
        let source = format!("--allow-net {text}");
        match text.parse::<Destination>() {
            Ok(Destination::Address(rule)) => policy.net.allow.push(NetRule { source, ..rule }),
            Ok(Destination::Name(rule)) => policy.net.names.rules.push(NameRule { source, ..rule }),
            Err(error) => return Err(format!("--allow-net: {error}")),
        }
    }
    policy.net.proxy |= args.proxy;
    for text in &args.listen {
        let rule: NetRule = text.parse().map_err(|error| format!("--listen: {error}"))?;
        let source = format!("--listen {text}");
        policy.net.listen.push(NetRule { source, ..rule });
    }
    for name in &args.refuse_syscall {
        let rule = SyscallRule::new(name, format!("--refuse-syscall {name}"));
        policy
            .refuse_syscalls
            .push(rule.map_err(|error| format!("--refuse-syscall: {error}"))?);
    }
    for path in &args.allow_unix {
        policy.net.unix.push(explicit("allow-unix", path));
    }
    for text in &args.resolve {
        let fixed = text
            .parse::<FixedName>()
            .map_err(|error| format!("--resolve: {error}"))?;
        let names = &mut policy.net.names;
        if !policy.ask.net && !names.rules.iter().any(|rule| rule.covers_name(&fixed.name)) {
            return Err(format!(
                "--resolve {text}: nothing allows that name; add --allow-net {}:PORT",
                fixed.name
            ));
        }
        names.fixed.push(fixed);
    }
    let limits = &mut policy.limits;
    limits.memory_bytes = args.memory.or(limits.memory_bytes);
    limits.tasks = args.tasks.or(limits.tasks);
    let cpu_seconds = args.cpu_time.map(|time| time.as_secs().max(1));
    limits.cpu_seconds = cpu_seconds.or(limits.cpu_seconds);
    limits.open_files = args.open_files.or(limits.open_files);
    limits.file_bytes = args.file_size.or(limits.file_bytes);
    limits.cpu_millis = args.cpus.or(limits.cpu_millis);
    limits.disk_bytes = args.disk_written.or(limits.disk_bytes);
    if args.best_effort {
        policy.degrade = Degrade::BestEffort;
    }
    loaded.settle()?;
    Ok(loaded)
}

/// What policies are looked up and read for.
pub(super) fn policy_context(cwd: Option<&Path>) -> Result<PolicyFileContext, String> {
    let mut preset = PresetContext::here().map_err(|error| format!("the working directory: {error}"))?;
    if let Some(cwd) = cwd {
        preset.cwd = cwd.to_path_buf();
    }
    let config_home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    Ok(PolicyFileContext::new(preset, config_home))
}

/// The words of `--ask-command`.
pub(super) fn ask_command(
    command: Option<&str>,
    policy: &Policy,
) -> Result<Option<Vec<String>>, String> {
    let Some(command) = command else {
        return Ok(None);
    };
    if !(policy.ask.net || policy.ask.files) {
        return Err("--ask-command answers nothing here: add --ask net, --ask files or both".to_owned());
    }
    let argv =
        shell_words::split(command).map_err(|error| format!("--ask-command {command}: {error}"))?;
    if argv.is_empty() {
        return Err("--ask-command: no command".to_owned());
    }
    Ok(Some(argv))
}

/// Who answers. That nobody can is an error before anything runs; but not where others may, who ask the daemon what waits.
pub(super) fn asked(args: &RunArgs, policy: &Policy) -> Result<Option<Asked>, String> {
    let asks = policy.ask.net || policy.ask.files;
    let others = args.daemon || args.session.is_some();
    match (ask_command(args.ask_command.as_deref(), policy)?, asks) {
        (None, false) => Ok(None),
        (Some(argv), _) => {
            let here = here()?;
            Ok(Some(Asked::Command(Decider {
                argv,
                cwd: here,
                env: std::env::vars_os().collect(),
                timeout: args.spec.ask_timeout,
            })))
        }
        (None, true) if args.tty && others => Ok(None),
        (None, true) if args.tty => Err(
            "--tty gives the terminal to the command, so nobody can be asked there; use --ask-command"
                .to_owned(),
        ),
        (None, true) if args.stdin == StdinArg::Inherit && std::io::stdin().is_terminal() && others => {
            Ok(None)
        }
        (None, true) if args.stdin == StdinArg::Inherit && std::io::stdin().is_terminal() => Err(
            "--stdin inherit gives the terminal to the command, so it cannot answer; use --ask-command"
                .to_owned(),
        ),
        (None, true) if others => Ok(Terminal::open().map(Asked::Terminal)),
        (None, true) => Terminal::open()
            .map(|terminal| Some(Asked::Terminal(terminal)))
            .ok_or_else(|| {
                "the policy asks, and there is no terminal to ask at; use --ask-command".to_owned()
            }),
    }
}

/// Standard input is given only where it was asked for or piped: a loop around `provost run` keeps its own.
pub(super) fn stdin(asked: StdinArg) -> Result<(StdinSpec, Option<String>), String> {
    use std::os::unix::fs::FileTypeExt;
    let stdin = std::io::stdin();
    let duplicate = || -> Result<OwnedFd, String> {
        stdin
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| format!("standard input: {error}"))
    };
    let kind = || {
        let file = std::fs::File::from(duplicate()?);
        let meta = file
            .metadata()
            .map_err(|error| format!("standard input: {error}"))?;
        Ok::<_, String>(meta)
    };
    match asked {
        StdinArg::Null => Ok((StdinSpec::Null, None)),
        StdinArg::Inherit => Ok((StdinSpec::Given(duplicate()?), None)),
        StdinArg::Auto if stdin.is_terminal() => Ok((StdinSpec::Null, None)),
        StdinArg::Auto => {
            let Ok(meta) = kind() else {
                return Ok((StdinSpec::Null, None)); // closed
            };
            if meta.file_type().is_fifo() || is_stream_socket(&stdin) {
                return Ok((StdinSpec::Given(duplicate()?), None));
            }
            let untouched = nix::unistd::lseek(stdin.as_fd(), 0, nix::unistd::Whence::SeekCur) == Ok(0);
            let note = (meta.is_file() && meta.len() > 0 && untouched).then(|| {
                "standard input is a file and is not given to the command; use --stdin inherit to give it"
                    .to_owned()
            });
            Ok((StdinSpec::Null, note))
        }
    }
}

/// A datagram socket could send to anybody: it is given only where that was asked for.
fn is_stream_socket(stdin: &impl AsFd) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    getsockopt(stdin, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
}

pub(super) fn labels(given: &[String]) -> Result<BTreeMap<String, String>, String> {
    given
        .iter()
        .map(|label| match label.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("--label {label}: want KEY=VALUE")),
        })
        .collect()
}
