use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::daemon::ConfinedPeers;

/// The configuration of this user with a file of this text, and variables and flags as they are set.
struct Case {
    directory: tempfile::TempDir,
    surroundings: Surroundings,
    flags: Flags,
}

impl Case {
    fn new(toml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("provost/provost.toml");
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        std::fs::write(&file, toml).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        let surroundings = Surroundings {
            uid: geteuid().as_raw(),
            home: Some("/home/somebody".into()),
            config_home: Some(directory.path().into()),
            runtime_dir: Some("/run/user/7".into()),
            // What root would read.
            system_file: file,
            ..Surroundings::default()
        };
        Self {
            directory,
            surroundings,
            flags: Flags::default(),
        }
    }

    fn resolve(&self) -> Result<ServeConfig, ConfigError> {
        ServeConfig::resolve(&self.flags, &self.surroundings)
    }

    fn error(&self) -> String {
        self.resolve().unwrap_err().to_string()
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let mut case = Case::new(
        "socket = '/file.sock'\nstate_dir = '/file'\nlog = 'warn'\nlog_format = 'json'\ngroup = 'file'\n",
    );
    let config = case.resolve().unwrap();
    assert_eq!(config.socket, Some("/file.sock".into()));
    assert_eq!(config.state_dir, Some("/file".into()));
    assert_eq!(
        (config.log.as_str(), config.log_format),
        ("warn", LogFormat::Json)
    );
    assert_eq!(config.group.as_deref(), Some("file"));
    assert!(config.file.is_some());

    case.surroundings.socket = Some("/variable.sock".into());
    case.surroundings.state_dir = Some("/variable".into());
    case.surroundings.log = Some("debug".into());
    let config = case.resolve().unwrap();
    assert_eq!(config.socket, Some("/variable.sock".into()));
    assert_eq!(config.state_dir, Some("/variable".into()));
    assert_eq!(config.log, "debug");

    case.flags = Flags {
        no_state: false,
        config: None,
        socket: Some("/flag.sock".into()),
        group: Some("flag".into()),
        state_dir: Some("/flag".into()),
        log: Some("error".into()),
        log_format: Some(LogFormat::Text),
    };
    let config = case.resolve().unwrap();
    assert_eq!(config.socket, Some("/flag.sock".into()));
    assert_eq!(config.state_dir, Some("/flag".into()));
    assert_eq!(
        (config.log.as_str(), config.log_format),
        ("error", LogFormat::Text)
    );
    assert_eq!(config.group.as_deref(), Some("flag"));
}

#[test]
fn every_key_is_read() {
    let toml = "confined_peers = 'read-only'\nmax_clients = 1\nmax_requests_in_flight = 2\nmax_frame_bytes = '64K'\n\
                max_processes = 3\nmax_output_bytes = '1M'\nmax_memory_bytes = '64M'\nstop_timeout = '1m30s'\n\
                max_session_bytes = '8M'\n\
                records_max_age = '2days'\nrecords_max_bytes = '3M'\n\
                metrics = '127.0.0.1:9464'\n";
    let config = Case::new(toml).resolve().unwrap();
    let settings = Settings {
        clients_max: 1,
        requests_max: 2,
        frame_bytes_max: 64 << 10,
        processes_max: 3,
        output_bytes: 1 << 20,
        memory_bytes: 64 << 20,
        session_bytes: Some(8 << 20),
        records_age: std::time::Duration::from_secs(2 * 24 * 3600),
        records_bytes: 3 << 20,
        stop_timeout: std::time::Duration::from_secs(90),
        confined_peers: ConfinedPeers::Policy("read-only".into()),
        ..Settings::default()
    };
    assert_eq!(config.settings, settings);
    let address = "127.0.0.1:9464".parse().unwrap();
    assert_eq!(config.metrics, Some(MetricsAddress::Loopback(address)));
    let unix = Case::new("metrics = '/run/m.sock'").resolve().unwrap().metrics;
    assert_eq!(unix, Some(MetricsAddress::Unix("/run/m.sock".into())));
}

#[test]
fn errors_name_the_line_the_key_and_what_to_do() {
    for (toml, expected) in [
        (
            "\nsockte = '/x'",
            "2:1: sockte: unknown key `sockte`; did you mean `socket`?",
        ),
        ("max_clients = 1\nmax_clients = 2", "2:1: duplicate key"),
        (
            "socket = 'x.sock'",
            "1:10: socket: `x.sock` is no absolute path; begin it with /",
        ),
        (
            "socket = '/run/provost/'",
            "1:10: socket: `/run/provost/` is a directory; name the socket in it",
        ),
        ("log = 'loud!'", "1:7: log: "),
        (
            "log_format = 'xml'",
            "1:14: log_format: unknown variant `xml`, expected one of `auto`, `text`",
        ),
        (
            "max_clients = 0",
            "1:15: max_clients: 0 is out of range; want a number from 1 to 65536",
        ),
        (
            "max_processes = 4294967297",
            "1:17: max_processes: 4294967297 is out of range",
        ),
        ("max_clients = -1", "1:15: max_clients: "),
        (
            "max_frame_bytes = '1K'",
            "1:19: max_frame_bytes: out of range; want 4096 to 67108864 bytes",
        ),
        ("max_frame_bytes = '65M'", "1:19: max_frame_bytes: out of range"),
        (
            "max_memory_bytes = '1M'\nmax_output_bytes = '1M'",
            "2:20: max_output_bytes: 1048576 bytes for each stream do not fit twice into 1048576 for all logs; make",
        ),
        (
            "max_session_bytes = '129M'",
            "1:21: max_session_bytes: out of range; want 8192 to 134217728 bytes",
        ),
        ("stop_timeout = 'soon'", "1:16: stop_timeout: "),
        ("group = ' '", "1:9: group: is empty; want the name of a group"),
        (
            "confined_peers = 'unconfined'",
            "1:18: confined_peers: `unconfined` would let",
        ),
        (
            "metrics = '0.0.0.0:1'",
            "1:11: metrics: 0.0.0.0 can be reached from elsewhere; want",
        ),
        ("metrics = '127.0.0.1:0'", "1:11: metrics: port 0 is none; want"),
        (
            "metrics = 'x'",
            "1:11: metrics: want the path of a socket, or a loopback address",
        ),
    ] {
        let error = Case::new(toml).error();
        let (_, rest) = error.split_once("provost.toml:").unwrap();
        assert!(rest.starts_with(expected), "{toml}: {error}");
    }
    let long = format!("socket = '/{}'", "x".repeat(107));
    let error = Case::new(&long).error();
    assert!(
        error.contains("108 bytes, and a socket's may have 107"),
        "{error}"
    );
}

#[test]
fn errors_of_variables_and_flags_name_them() {
    let mut case = Case::new("");
    let starts_with = |case: &Case, start: &str| {
        let error = case.error();
        assert!(error.starts_with(start), "{error}");
    };
    case.surroundings.log = Some("loud!".into());
    starts_with(&case, "PROVOST_LOG: ");
    case.flags.log = Some("quiet!".into());
    starts_with(&case, "--log: ");
    case.surroundings.state_dir = Some("here".into());
    starts_with(&case, "PROVOST_STATE_DIR: `here` is no absolute path");
    case.flags.socket = Some("there".into());
    starts_with(&case, "--socket: `there` is no absolute path");
}

#[test]
fn a_file_that_was_named_must_exist_and_another_need_not() {
    let mut case = Case::new("log = 'warn'");
    std::fs::remove_file(case.directory.path().join("provost/provost.toml")).unwrap();
    let config = case.resolve().unwrap();
    assert_eq!(config, ServeConfig::default_for(&case.surroundings));
    case.flags.config = Some(case.directory.path().join("none.toml"));
    assert!(
        case.error().ends_with("none.toml: no such file"),
        "{}",
        case.error()
    );
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let case = Case::new("");
    let file = case.directory.path().join("provost/provost.toml");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o664)).unwrap();
    assert!(
        case.error()
            .ends_with("can be written by other users; chmod go-w it")
    );
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(case.resolve().is_ok());
}

#[test]
fn defaults_are_below_the_directories_of_the_user() {
    let path = |path: &str| Some(PathBuf::from(path));
    let user = Surroundings {
        uid: 7,
        home: path("/home/somebody"),
        runtime_dir: path("/run/user/7"),
        ..Surroundings::default()
    };
    assert_eq!(user.default_socket(), path("/run/user/7/provost/provost.sock"));
    assert_eq!(
        user.default_state_dir(),
        path("/home/somebody/.local/state/provost")
    );
    assert_eq!(
        user.default_file(),
        path("/home/somebody/.config/provost/provost.toml")
    );
    let none = Surroundings {
        uid: 7,
        ..Surroundings::default()
    };
    assert_eq!((none.default_socket(), none.default_state_dir()), (None, None));
    // Root's own home and runtime directory are not the system's.
    let root = Surroundings { uid: 0, ..user };
    assert_eq!(root.default_socket(), path("/run/provost/provost.sock"));
    assert_eq!(root.default_state_dir(), path("/var/lib/provost"));
}

#[test]
fn a_reload_names_what_needs_a_restart_and_nothing_else() {
    let config = Case::new("").resolve().unwrap();
    let mut next = config.clone();
    next.log = "trace".into();
    next.settings.clients_max = 1;
    assert!(config.needs_restart(&next).is_empty());
    next.group = Some("staff".into());
    next.socket = Some("/elsewhere".into());
    assert_eq!(config.needs_restart(&next), ["socket", "group"]);
}
