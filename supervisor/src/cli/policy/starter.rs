//! `provost policy new`: a file to begin with.

use super::{print, write_new};
use crate::cli::CliResult;
use crate::cli::config::policy_context;

const STARTER: &str = r#"# A policy for `provost run --policy`. What each key means, and what enforces it: docs/policy.md.
# Try it:    provost policy check FILE
#            provost policy explain --policy FILE PATH-OR-ADDRESS:PORT
version = 1

# What this begins with: workspace-write, read-only, another policy's name, or a file. Without it nothing is granted but what
# stands here.
extends = "workspace-write"

[files]
# Paths are absolute, begin with ~, or are relative to the command's working directory. * ? [ab] ** stand for what exists
# when the command starts.
# read = ["/srv/data"]
# write = ["~/.cache/pip"]
# deny = ["secrets/**"]
# execute = ["/usr/bin"]        # of what is readable, only this is executed
# protect = [".env"]             # readable, not writable, though below a writable directory
# private_tmp = true
# ask = false                    # ask before opening or creating a file is refused

[net]
mode = "off"                     # off, isolated (a private loopback), open, ask
# allow = ["127.0.0.1:5432", "10.0.0.0/8:443", "*.example.com:443", "192.0.2.1:123/udp"]
# listen = ["127.0.0.1:8080"]    # serve TCP there

[syscalls]
# refuse = ["ptrace"]            # beside those that always are

[env]
# pass = ["CI_*"]                # what looks like a secret is left out unless it is named in full
# set = { MODE = "test" }

[limits]
# memory = "2G"
# tasks = 500
# cpu_time = "10m"
# timeout = "1h"
# idle_timeout = "10m"
"#;

pub(super) fn run(name: Option<&str>) -> CliResult {
    let Some(name) = name else {
        return print(STARTER);
    };
    let plain = !name.is_empty()
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !plain || crate::PRESETS.contains(&name) {
        return Err(format!(
            "`{name}` cannot be the name of a policy: want letters, digits, -, _ and ., and no preset's name"
        ));
    }
    let context = policy_context(None)?;
    let directory = context
        .directories
        .first()
        .ok_or("there is no policy directory")?;
    let path = directory.join(format!("{name}.toml"));
    write_new(&path, STARTER)?;
    print(&format!("{}\n", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starter_is_a_policy_also_with_every_line_in_force() {
        let enabled = STARTER.replace("\n# ", "\n");
        let keys = enabled.lines().filter(|line| line.contains(" = ")).count();
        assert!(keys > 15, "{enabled}");
        let parsed: toml::Table = STARTER.parse().unwrap();
        assert_eq!(parsed["extends"].as_str(), Some("workspace-write"));
    }
}
