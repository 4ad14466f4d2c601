//! A policy as TOML, with the origin of each rule.

use std::path::Path;

use crate::policy_file::LoadedPolicy;
use crate::{Degrade, NetRule, PathRule, Protocol};

/// The effective policy as a file that could be used in its place: nothing is left to a preset.
pub(super) fn toml(loaded: &LoadedPolicy) -> String {
    let policy = &loaded.policy;
    let mut text = format!(
        "# {}, made of: {}\n",
        policy.name.replace(char::is_control, "?"),
        loaded.layers.join(", ").replace(char::is_control, "?")
    );
    text += "version = 1\n";
    if !policy.confined {
        text += "extends = \"unconfined\"\n";
    }
    if policy.degrade == Degrade::BestEffort {
        text += "best_effort = true\n";
    }
    if !policy.confined {
        environment(&mut text, loaded);
        limits(&mut text, loaded);
        return text;
    }
    text += "\n[files]\n";
    let files = &policy.files;
    for (key, rules) in [
        ("read", &files.read),
        ("execute", &files.execute),
        ("write", &files.write),
        ("deny", &files.deny),
        ("protect", &files.protect),
    ] {
        paths(&mut text, key, rules);
    }
    text += &format!("private_tmp = {}\n", files.private_tmp);
    if policy.ask.files {
        text += "ask = true\n";
    }
    let mode = if policy.ask.net {
        "ask"
    } else {
        policy.net.mode.as_str()
    };
    text += &format!("\n[net]\nmode = {}\n", quoted(mode));
    if !policy.net.allow.is_empty() || !policy.net.names.rules.is_empty() {
        text += "allow = [\n";
        for rule in &policy.net.allow {
            line(&mut text, &address(rule), &rule.source);
        }
        for rule in &policy.net.names.rules {
            let port = rule.port.map_or_else(|| "*".to_owned(), |port| port.to_string());
            let wildcard = if rule.wildcard { "*." } else { "" };
            line(
                &mut text,
                &format!("{wildcard}{}:{port}{}", rule.name, protocol(rule.protocol)),
                &rule.source,
            );
        }
        text += "]\n";
    }
    if !policy.net.listen.is_empty() {
        text += "listen = [\n";
        for rule in &policy.net.listen {
            line(&mut text, &address(rule), &rule.source);
        }
        text += "]\n";
    }
    if policy.net.proxy {
        text += "proxy = true\n";
    }
    paths(&mut text, "unix", &policy.net.unix);
    if !policy.refuse_syscalls.is_empty() {
        text += "\n[syscalls]\nrefuse = [\n";
        for rule in &policy.refuse_syscalls {
            line(&mut text, &rule.name, &rule.source);
        }
        text += "]\n";
    }
    environment(&mut text, loaded);
    limits(&mut text, loaded);
    text
}

fn address(rule: &NetRule) -> String {
    let port = rule.port.map_or_else(|| "*".to_owned(), |port| port.to_string());
    let host = match rule.net {
        ipnet::IpNet::V6(net) => format!("[{net}]"),
        net @ ipnet::IpNet::V4(_) => net.to_string(),
    };
    format!("{host}:{port}{}", protocol(rule.protocol))
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    }
}

/// The rules without their origins, each with the table that it is in, for comparing.
pub(super) fn lines(loaded: &LoadedPolicy) -> Vec<String> {
    let (mut section, mut list) = (String::new(), String::new());
    let mut lines = Vec::new();
    for line in toml(loaded).lines().filter(|line| !line.starts_with('#')) {
        let line = line.split("  # ").next().unwrap_or(line).trim();
        if line.starts_with('[') && line.ends_with(']') && list.is_empty() {
            section = line.trim_matches(['[', ']']).to_owned() + ".";
        } else if let Some(key) = line.strip_suffix(" = [") {
            list = key.to_owned();
        } else if line == "]" {
            list.clear();
        } else if !line.is_empty() && line != "version = 1" {
            let list = if list.is_empty() {
                String::new()
            } else {
                format!("{list} ")
            };
            lines.push(format!("{section}{list}{}", line.trim_end_matches(',')));
        }
    }
    lines
}

fn paths(text: &mut String, key: &str, rules: &[PathRule]) {
    if rules.is_empty() {
        return;
    }
    *text += &format!("{key} = [\n");
    for rule in rules {
        line(text, &path(&rule.path), &rule.source);
    }
    *text += "]\n";
}

/// A path as a file's entry: what would be a pattern is taken literally.
pub(super) fn path(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars()
        .map(|c| match c {
            '*' | '?' | '[' => format!("[{c}]"),
            c => c.to_string(),
        })
        .collect()
}

fn line(text: &mut String, value: &str, source: &str) {
    *text += &format!(
        "  {},  # {}\n",
        quoted(value),
        source.replace(char::is_control, "?")
    );
}

/// A TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn environment(text: &mut String, loaded: &LoadedPolicy) {
    let environment = &loaded.environment;
    if *environment == crate::policy_file::EnvironmentPolicy::default() {
        return;
    }
    *text += "\n[env]\n";
    if environment.clean {
        *text += "clean = true\n";
    }
    if !environment.pass.is_empty() {
        let names: Vec<String> = environment.pass.iter().map(|name| quoted(name)).collect();
        *text += &format!("pass = [{}]\n", names.join(", "));
    }
    if !environment.set.is_empty() {
        *text += "\n[env.set]\n";
        for (name, value) in &environment.set {
            *text += &format!("{} = {}\n", quoted(name), quoted(value));
        }
    }
}

fn limits(text: &mut String, loaded: &LoadedPolicy) {
    let limits = &loaded.policy.limits;
    let time = |time: std::time::Duration| quoted(&humantime::format_duration(time).to_string());
    let lines = [
        limits.memory_bytes.map(|bytes| format!("memory = \"{bytes}\"\n")),
        limits.tasks.map(|tasks| format!("tasks = {tasks}\n")),
        limits
            .cpu_seconds
            .map(|seconds| format!("cpu_time = \"{seconds}s\"\n")),
        limits
            .cpu_millis
            .map(|millis| format!("cpus = {}.{:03}\n", millis / 1000, millis % 1000)),
        limits
            .disk_bytes
            .map(|bytes| format!("disk_written = \"{bytes}\"\n")),
        limits.open_files.map(|files| format!("open_files = {files}\n")),
        limits
            .file_bytes
            .map(|bytes| format!("file_size = \"{bytes}\"\n")),
        loaded
            .timeout
            .map(|timeout| format!("timeout = {}\n", time(timeout))),
        loaded
            .idle_timeout
            .map(|timeout| format!("idle_timeout = {}\n", time(timeout))),
    ];
    let lines: String = lines.into_iter().flatten().collect();
    if !lines.is_empty() {
        *text += &format!("\n[limits]\n{lines}");
    }
}
