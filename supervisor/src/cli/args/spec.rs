//! The flags of every verb that starts a command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};

use crate::units::{bytes, cpus, duration};

/// What a command may touch, how it runs and how it ends: for every verb that starts one.
#[derive(Debug, ClapArgs)]
pub(crate) struct SpecArgs {
    /// What the command may touch: workspace-write, read-only, unconfined, or a policy by its name or file
    #[arg(
        long,
        short = 'p',
        value_name = "POLICY",
        default_value = "workspace-write",
        help_heading = "Sandbox"
    )]
    pub(crate) policy: String,
    /// Also allow reading this file or directory
    #[arg(long, value_name = "PATH", help_heading = "Sandbox")]
    pub(crate) read: Vec<PathBuf>,
    /// Of what is readable, allow only this file or directory to be executed; repeatable
    #[arg(long, value_name = "PATH", help_heading = "Sandbox")]
    pub(crate) execute: Vec<PathBuf>,
    /// Also allow writing this file or directory, which must exist
    #[arg(long, value_name = "PATH", help_heading = "Sandbox")]
    pub(crate) write: Vec<PathBuf>,
    /// Refuse reading and writing this file or directory
    #[arg(long, value_name = "PATH", help_heading = "Sandbox")]
    pub(crate) deny: Vec<PathBuf>,
    /// The network: off (none), isolated (a private loopback), open (the machine's own), ask (off, but --ask net)
    #[arg(long, value_name = "MODE", help_heading = "Sandbox")]
    pub(crate) net: Option<String>,
    /// Allow connections to ADDRESS:PORT, CIDR:PORT ([IPv6]:PORT, * for any port), HOST:PORT or *.HOST:PORT, /udp for UDP; repeatable
    #[arg(long, value_name = "DESTINATION:PORT", help_heading = "Sandbox")]
    pub(crate) allow_net: Vec<String>,
    /// Allow serving TCP at this address of the machine (ADDRESS:PORT, * for any port from 1024 on); repeatable
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Sandbox")]
    pub(crate) listen: Vec<String>,
    /// Also refuse this system call; repeatable
    #[arg(long, value_name = "NAME", help_heading = "Sandbox")]
    pub(crate) refuse_syscall: Vec<String>,
    /// Ask before refusing what no rule speaks about: net (TCP and unix connections), files (opening and creating)
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        value_delimiter = ',',
        help_heading = "Sandbox"
    )]
    pub(crate) ask: Vec<AskArg>,
    /// How long a request waits before it is denied
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration, help_heading = "Sandbox")]
    pub(crate) ask_timeout: Duration,
    /// Reach allowed host names through a proxy only, which tells hosts apart that share an address (HTTP, HTTPS)
    #[arg(long, help_heading = "Sandbox")]
    pub(crate) proxy: bool,
    /// Allow connections to the unix socket of another program at this path; repeatable
    #[arg(long, value_name = "PATH", help_heading = "Sandbox")]
    pub(crate) allow_unix: Vec<PathBuf>,
    /// Do not look this allowed name up but give it these addresses (HOST=ADDRESS[,ADDRESS]); repeatable
    #[arg(long, value_name = "HOST=ADDRESS", help_heading = "Sandbox")]
    pub(crate) resolve: Vec<String>,
    /// Start with less where this machine cannot hold the policy; the record says what is missing
    #[arg(long, help_heading = "Sandbox")]
    pub(crate) best_effort: bool,
    /// What a refusal does: report (the command runs on) or stop (it is ended)
    #[arg(long, value_enum, default_value_t = OnDenialArg::Report, help_heading = "Sandbox")]
    pub(crate) on_denial: OnDenialArg,
    /// What to watch in addition where the kernel does not report refused file accesses (not root): reads costs speed
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Sandbox")]
    pub(crate) observe: Option<ObserveArg>,

    /// Set a variable (KEY=VALUE) or pass one through (KEY); repeatable
    #[arg(long, value_name = "KEY[=VALUE]", help_heading = "Command")]
    pub(crate) env: Vec<OsString>,
    /// Begin with an empty environment (PATH, HOME, USER, LOGNAME, SHELL and what --env names stay)
    #[arg(long, help_heading = "Command")]
    pub(crate) clean_env: bool,
    /// Run in this directory, which is the writable one
    #[arg(long, value_name = "DIR", help_heading = "Command")]
    pub(crate) cwd: Option<PathBuf>,
    /// Ask it for a result: one JSON value, by `provost report JSON` or through the descriptor in PROVOST_REPORT_FD
    #[arg(long, help_heading = "Command")]
    pub(crate) report: bool,
    /// Attach KEY=VALUE to the record; repeatable
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Command")]
    pub(crate) label: Vec<String>,

    /// End it after this time: 90, 90s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Ending")]
    pub(crate) timeout: Option<Duration>,
    /// End it when it has written nothing for this time
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Ending")]
    pub(crate) idle_timeout: Option<Duration>,
    /// The signal that asks it to end
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = signal, help_heading = "Ending")]
    pub(crate) stop_signal: nix::sys::signal::Signal,
    /// How long it has to follow that signal before it is killed
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, help_heading = "Ending")]
    pub(crate) grace: Duration,
    /// When the command ends first, what happens to what it left running
    #[arg(long, value_enum, default_value_t = TreeArg::Kill, help_heading = "Ending")]
    pub(crate) tree: TreeArg,

    /// Limit memory: 512M, 2G
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Limits")]
    pub(crate) memory: Option<u64>,
    /// Limit processes and threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub(crate) tasks: Option<u64>,
    /// Limit CPU time of each process
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Limits")]
    pub(crate) cpu_time: Option<Duration>,
    /// Limit the CPUs that it may keep busy: 1, 0.5
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = "Limits")]
    pub(crate) cpus: Option<u64>,
    /// Limit what it may write to disks in all: 10G (looked at 20 times a second)
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Limits")]
    pub(crate) disk_written: Option<u64>,
    /// Limit the descriptors that each process may have open
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(16..), help_heading = "Limits")]
    pub(crate) open_files: Option<u64>,
    /// Limit the size of a file that is written: 512M, 2G
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Limits")]
    pub(crate) file_size: Option<u64>,
    /// How much output of each stream the log keeps (what passes through is never cut)
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Limits")]
    pub(crate) max_output: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnDenialArg {
    Report,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AskArg {
    Net,
    Files,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObserveArg {
    Reads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TreeArg {
    /// Kill it, after the output it holds was drained for half a second
    Kill,
    /// Wait until all of it has ended
    Wait,
}

fn signal(text: &str) -> Result<nix::sys::signal::Signal, String> {
    use nix::sys::signal::Signal;
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| "no such signal".to_owned());
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse()
        .map_err(|_| "no such signal; want a name like TERM or INT, or a number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number() {
        assert!(signal("int").is_ok() && signal("SIGUSR1").is_ok() && signal("99").is_err());
    }
}
