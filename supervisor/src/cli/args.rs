//! The flags, as clap reads them. What they mean is resolved once, in `config`.

mod spec;

pub(crate) use spec::{AskArg, ObserveArg, OnDenialArg, SpecArgs, TreeArg};

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::client::{ClientVerb, patience};
use super::db::DbArgs;
use super::records::RecordsArgs;
use super::up::UpArgs;
use crate::units::duration;
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Run commands that nobody fully trusts, and know what became of them.
#[derive(Debug, Parser)]
#[command(name = "provost", version, about, max_term_width = 100)]
#[command(after_help = "Examples:
  provost run -- make -j4
  provost run --allow-net 127.0.0.1:5432 -- pytest
  provost run --json -- sh -c 'curl http://192.0.2.1/'
  provost doctor

As a service:
  provost serve
  id=$(provost start -- make -j4)
  provost logs -f $id; provost wait $id")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The same with one verb alone: describing all of them takes as long as running a command does.
#[derive(Debug, Parser)]
enum RunAlone {
    #[command(name = "run")]
    Run(Box<RunArgs>),
}

impl Args {
    /// What this program was told.
    ///
    /// # Errors
    /// It makes no sense, or is a question that is answered by the error.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let is_run = std::env::args_os().nth(1).is_some_and(|verb| verb == "run");
        match is_run.then(RunAlone::try_parse) {
            Some(Ok(RunAlone::Run(run))) => Ok(Self { verb: Verb::Run(run) }),
            // Only all verbs together make for the right words.
            _ => Self::try_parse(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run one command in a sandbox and report its end
    Run(Box<RunArgs>),
    /// Start the processes of a file in order, keep them running, and stop them in reverse
    Up(Box<UpArgs>),
    #[command(flatten)]
    Client(ClientVerb),
    /// Supervise for many clients, over a Unix socket
    Serve(ServeArgs),
    /// Print records of processes that have ended
    Records(Box<RecordsArgs>),
    /// Look after the daemon's database
    Db(DbArgs),
    /// Look at policies, check them, ask them, begin new ones
    Policy(PolicyArgs),
    /// Say what the result of this process is: for programs that run under `--report` or `provost map`
    Report(ReportArgs),
    /// Say what this machine offers and which guarantees hold
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write the manual pages of all verbs
    Man(ManArgs),
}

/// Supervise for many clients, over a Unix socket
///
/// What a client starts goes on when the client goes away, and can be taken up again with the same ids and not a byte
/// missing. On TERM or INT everything is stopped by its own stop rule.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost serve
  provost serve --socket /tmp/p.sock
  provost serve --replace      # an upgrade: what runs goes on
  provost serve --stdio        # for a program that embeds it: the protocol on stdin and stdout")]
pub(crate) struct ServeArgs {
    /// Configuration [default: /etc/provost/provost.toml for root, else $XDG_CONFIG_HOME/provost/provost.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen [default: /run/provost/provost.sock for root, else $XDG_RUNTIME_DIR/provost/provost.sock; PROVOST_SOCKET]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Let the members of this group connect, too
    #[arg(long, value_name = "NAME", conflicts_with = "stdio")]
    pub(crate) group: Option<String>,
    /// Where everything is kept that survives the daemon [default: /var/lib/provost for root, else
    /// $XDG_STATE_HOME/provost; PROVOST_STATE_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Keep nothing: everything ends with the daemon
    #[arg(long, conflicts_with_all = ["state_dir", "replace"])]
    pub(crate) no_state: bool,
    /// Take over from the daemon that runs now, with its processes and sessions, which go on
    #[arg(long, conflicts_with = "stdio")]
    pub(crate) replace: bool,
    /// Only say whether it could serve, and take over from the daemon that runs now: nothing is changed
    #[arg(long)]
    pub(crate) check: bool,
    /// What is logged: off, error, warn, info, debug, trace, or directives like info,provost_actors=debug [default: info;
    /// PROVOST_LOG]
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// How: text, json (lines of it), journald, or auto: journald if stderr is connected to it, else text [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<crate::daemon::config::LogFormat>,
    /// Serve one client on stdin and stdout instead; everything stops when it goes
    #[arg(long, conflicts_with = "socket")]
    pub(crate) stdio: bool,
    /// Becomes this user and then an instance: what root's daemon starts.
    #[arg(long, hide = true, value_name = "UID")]
    pub(crate) instance_of: Option<u32>,
    /// In this group.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) instance_group: Option<PathBuf>,
    /// In this group, where one was before.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) instance_group_again: Option<PathBuf>,
    /// Only says whether that user needs one.
    #[arg(long, hide = true, requires = "instance_of", requires = "state_dir")]
    pub(crate) instance_needed: bool,
    /// Serves the connections that arrive on stdin.
    #[arg(long, hide = true)]
    pub(crate) instance: bool,
}

/// Run one command in a sandbox and report its end
///
/// The command may read everything but credentials, write its working directory and a private /tmp, and use no
/// network, unless flags say otherwise. Its output passes through as it comes. At the end, what the sandbox refused
/// is listed on stderr, with the flag that would allow it.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  the command's own; 128+N when signal N ended it; 124 timed out; 125 Provost failed or there is no
  record; 126 not executable; 127 not found; 130 interrupted

Examples:
  provost run -- git status
  provost run --write ~/.cache/pip -- pip install --no-index ./pkg.whl
  provost run --net isolated -- cargo test
  provost run --allow-net 10.0.0.0/8:443 --timeout 5m -- ./fetch.sh
  provost run --net ask --allow-net '*.example.com:443' -- ./job
  provost run --policy read-only --record result.json -- ./untrusted
  provost run --tty -- bash
  echo '{}' | provost run -- jq .")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Who is asked: this command (run here, also with --daemon) reads the request as JSON on stdin and writes `allow [once|process|session]` or `deny`
    /// [default: the terminal]
    #[arg(long, value_name = "COMMAND", help_heading = "Sandbox")]
    pub(crate) ask_command: Option<String>,
    /// Standard input: inherit, null, or auto (inherit a pipe or socket, else null)
    #[arg(long, value_enum, default_value_t = StdinArg::Auto, help_heading = "Command")]
    pub(crate) stdin: StdinArg,
    /// Give it a terminal of its own, with stdin, stdout and stderr on it, and tie yours to that: for shells and full-screen
    /// programs. Without a terminal on stdin it is 24 lines of 80 characters
    #[arg(long, short, help_heading = "Command")]
    pub(crate) tty: bool,
    /// Run it in the daemon that `provost serve` is; this client passes its output through, and it goes on without it
    #[arg(long, help_heading = "Daemon")]
    pub(crate) daemon: bool,
    /// The same, and end it when this client ends without having seen its end, however that happens
    #[arg(long, conflicts_with_all = ["session", "slot"], help_heading = "Daemon")]
    pub(crate) with_me: bool,
    /// Start it in the daemon, print its id, and do not wait: what `provost start` does
    #[arg(long, conflicts_with_all = ["with_me", "tty", "json", "events", "record", "stdin", "ask_command"], help_heading = "Daemon")]
    pub(crate) detach: bool,
    /// The same as --daemon, in this session of the daemon's
    #[arg(long, value_name = "SESSION", help_heading = "Daemon")]
    pub(crate) session: Option<String>,
    /// In the daemon, take this place in the session: what is there is replaced, and the command starts when nothing of that
    /// lives any more
    #[arg(long, value_name = "NAME", help_heading = "Daemon")]
    pub(crate) slot: Option<String>,
    /// How long what is replaced has to end before it is killed, if its own --grace is longer
    #[arg(long, value_name = "TIME", requires = "slot", value_parser = duration, help_heading = "Daemon")]
    pub(crate) slot_grace: Option<Duration>,
    /// The daemon's socket [default: that of `provost serve`]
    #[arg(long, value_name = "PATH", env = "PROVOST_SOCKET", help_heading = "Daemon")]
    pub(crate) socket: Option<PathBuf>,

    /// Go on where it was when the daemon is back within this time, after it has died or was replaced; 0 for never
    #[arg(long, value_name = "DURATION", value_parser = patience, default_value = "30s", help_heading = "Daemon")]
    pub(crate) reconnect: Duration,

    /// Write events as JSON lines to stdout instead of the command's output
    #[arg(long, help_heading = "Reporting")]
    pub(crate) json: bool,
    /// Write events as JSON lines to this file
    #[arg(long, value_name = "FILE", help_heading = "Reporting")]
    pub(crate) events: Option<PathBuf>,
    /// Write the terminal record as JSON to this file
    #[arg(long, value_name = "FILE", help_heading = "Reporting")]
    pub(crate) record: Option<PathBuf>,
    /// No summary on stderr
    #[arg(long, short, action = ArgAction::SetTrue, help_heading = "Reporting")]
    pub(crate) quiet: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StdinArg {
    Auto,
    Inherit,
    Null,
}

/// Say what this machine offers and which guarantees hold
///
/// Everything is found out by trying it, as this user. Exit code 0 when the default policy can be held, 1 when not.
#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Look at policies, check them, ask them, begin new ones
///
/// A policy is a preset, a file, or a name that is looked up as NAME.toml in ~/.config/provost/policies and
/// /etc/provost/policies. Everything is said for a command that is started in this directory by this user.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost policy new web > web.toml
  provost policy check web.toml
  provost policy explain -p web.toml ~/.ssh/id_ed25519 10.0.0.1:443
  provost policy diff workspace-write web.toml
  provost policy learn -o web.toml -- npm test
  provost run -p web.toml -- npm test")]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    pub(crate) verb: PolicyVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// List the presets and the policies that can be named
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a policy comes to, with the origin of each rule
    Show {
        /// A preset, a name or a file
        #[arg(default_value = "workspace-write")]
        policy: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check policy files; exit code 1 if one has a mistake
    Check {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether a path or an address is allowed, and by which rule
    Explain(ExplainArgs),
    /// Show the rules that only one of two policies has; exit code 1 if there are any
    Diff {
        /// A preset, a name or a file
        one: String,
        /// Another one
        other: String,
    },
    /// Begin a policy: print a commented file, or write it to the policy directory under a name
    New {
        /// The name; without it the file is printed
        name: Option<String>,
    },
    /// Run a command, allow what no rule speaks about, and write a policy that allows the same
    Learn(LearnArgs),
    /// Print the JSON schema of policy files
    Schema,
}

/// Say whether a path or an address is allowed, and by which rule
///
/// It asks what the sandbox will ask; plain file permissions are not looked at.
#[derive(Debug, ClapArgs)]
pub(crate) struct ExplainArgs {
    /// A preset, a name or a file
    #[arg(long, short = 'p', default_value = "workspace-write")]
    pub(crate) policy: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Paths, and addresses or names with a port (192.0.2.1:443, [::1]:80, example.com:443)
    #[arg(required = true, value_name = "PATH|DESTINATION:PORT")]
    pub(crate) what: Vec<String>,
}

/// Run a command, allow what no rule speaks about, and write a policy that allows the same
///
/// The command runs in the sandbox of the policy that it begins with: what that denies stays denied. Everything else that it
/// opens, creates or connects to is allowed and noted. Run it only on what you would run without a sandbox, and review what it
/// writes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  provost policy learn -o web.toml -- npm test")]
pub(crate) struct LearnArgs {
    /// The policy to begin with
    #[arg(long, short = 'p', default_value = "workspace-write")]
    pub(crate) policy: String,
    /// Write the policy here instead of to stdout
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Print a completion script for a shell
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  provost completions bash > /etc/bash_completion.d/provost")]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Say what the result of this process is: for programs that run under `--report` or `provost map`
///
/// It is one JSON value of at most 64 KiB, and becomes `result` in the record of the process. The first one stands: whoever
/// reports again gets an error. Without this program the same is done by writing to the descriptor whose number is in
/// PROVOST_REPORT_FD.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  0 reported; 125 not reported, which stderr explains

Examples:
  provost report '{\"lines\": 7}'
  jq '.summary' out.json | provost report -
  echo '{\"lines\": 7}' >&$PROVOST_REPORT_FD")]
pub(crate) struct ReportArgs {
    /// The value, or - to read it from standard input
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) value: String,
}

/// Write the manual pages of all verbs
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  provost man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The directory to write them to
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
