//! The units of systemd say what the daemon relies on, and nothing that every command would inherit.

use std::collections::BTreeMap;
use std::path::Path;

/// The keys of a unit, as `Section.Key`, with their values.
fn unit(name: &str) -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut section = "";
    let mut keys = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
        let known = keys.insert(format!("{section}.{key}"), value.to_owned());
        assert!(known.is_none(), "{name}: {key} stands there twice");
    }
    keys
}

fn assert_says(name: &str, expected: &[(&str, &str)]) {
    let keys = unit(name);
    for (key, value) in expected {
        assert_eq!(keys.get(*key).map(String::as_str), Some(*value), "{name}: {key}");
    }
}

#[test]
fn the_services_say_what_the_daemon_relies_on() {
    for name in ["provost.service", "provost-user.service"] {
        assert_says(
            name,
            &[
                ("Service.Type", "notify-reload"),
                ("Service.NotifyAccess", "main"),
                ("Service.ExecStart", "/usr/bin/provost serve"),
                ("Service.WatchdogSec", "30s"),
                // The keeper must outlive a daemon that dies.
                ("Service.KillMode", "process"),
                ("Service.Delegate", "yes"),
                // The leaf that the daemon would move itself to.
                ("Service.DelegateSubgroup", "provost-supervisor"),
                ("Service.OOMPolicy", "continue"),
                // The socket's unit has its socket in it.
                ("Service.RuntimeDirectory", "provost"),
                ("Service.RuntimeDirectoryPreserve", "yes"),
            ],
        );
    }
    // Users' own state lies below the system's, and is theirs.
    assert_says("provost.service", &[("Service.StateDirectoryMode", "0711")]);
    assert_says("provost-user.service", &[("Service.StateDirectoryMode", "0700")]);
    assert_says("provost.service", &[("Service.LimitNOFILE", "1024:65536")]);
}

#[test]
fn i12_the_sockets_let_in_whom_the_daemon_would() {
    assert_says(
        "provost.socket",
        &[
            ("Socket.ListenStream", "/run/provost/provost.sock"),
            ("Socket.SocketMode", "0660"),
            ("Socket.SocketUser", "root"),
            ("Socket.SocketGroup", "provost"),
            ("Socket.Accept", "no"),
        ],
    );
    assert_says(
        "provost-user.socket",
        &[
            ("Socket.ListenStream", "%t/provost/provost.sock"),
            ("Socket.SocketMode", "0600"),
            ("Socket.DirectoryMode", "0700"),
            ("Socket.Accept", "no"),
        ],
    );
}

#[test]
fn nothing_in_the_services_is_inherited_by_commands() {
    // Everything that may stand there; whatever is added has to be thought about first.
    const HARMLESS: [&str; 21] = [
        "Type",
        "NotifyAccess",
        "ExecStart",
        "WatchdogSec",
        "Restart",
        "RestartSec",
        "KillMode",
        "TimeoutStopSec",
        "Delegate",
        "DelegateSubgroup",
        // The soft limit is what programs expect.
        "LimitNOFILE",
        "TasksMax",
        "OOMPolicy",
        "RuntimeDirectory",
        "RuntimeDirectoryMode",
        "RuntimeDirectoryPreserve",
        "StateDirectory",
        "StateDirectoryMode",
        "ConfigurationDirectory",
        "Environment",
        "EnvironmentFile",
    ];
    for name in ["provost.service", "provost-user.service"] {
        let keys = unit(name);
        let service = keys.keys().filter_map(|key| key.strip_prefix("Service."));
        let mut count = 0;
        for key in service {
            assert!(HARMLESS.contains(&key), "{name}: do commands inherit {key}?");
            count += 1;
        }
        assert!(count > 10, "{name}: {count} keys");
    }
}
