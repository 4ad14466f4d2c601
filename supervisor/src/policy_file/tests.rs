//! Errors have places and fixes, layers add up, and no bytes make it panic.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{Degrade, NetMode, PresetContext};

/// A directory with a home, a working directory and policies.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for name in ["home", "work", "policies"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn context(&self) -> PolicyFileContext {
        let uid = nix::unistd::geteuid().as_raw();
        PolicyFileContext {
            preset: PresetContext {
                cwd: self.path("work"),
                home: Some(self.path("home")),
                uid,
                runtime_dir: None,
            },
            directories: vec![self.path("policies")],
            uid,
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    fn load(&self, text: &str) -> Result<LoadedPolicy, PolicyFileError> {
        let file = self.write("policies/test.toml", text);
        load(&PolicyName::File(file), &self.context())
    }

    fn error(&self, text: &str) -> PolicyFileError {
        self.load(text).unwrap_err()
    }
}

fn paths(rules: &[crate::PathRule]) -> Vec<&Path> {
    rules
        .iter()
        .filter(|rule| rule.explicit)
        .map(|rule| rule.path.as_path())
        .collect()
}

#[test]
fn errors_name_line_key_and_fix() {
    let place = Place::new();
    for (text, line, column, key, words) in [
        (
            "version = 1\n[files]\nwirte = []\n",
            3,
            1,
            "files.wirte",
            "did you mean `write`?",
        ),
        ("version = 1\n[fils]\n", 2, 2, "fils", "did you mean `files`?"),
        ("version = 1\nzzz = 1\n", 2, 1, "zzz", "the keys here are version"),
        ("[files]\n", 1, 1, "version", "begin the file with `version = 1`"),
        ("version = 2\n", 1, 11, "version", "only 1 is known"),
        (
            "version = 1\n[files]\nread = [3]\n",
            3,
            9,
            "files.read[0]",
            "expected a string",
        ),
        ("version = 1\n[net]\nmode = \"of\"\n", 3, 8, "net.mode", "`off`"),
        (
            "version = 1\n[net]\nallow = [\"1.2.3.4:1\", \"1.2.3.4\"]\n",
            3,
            23,
            "net.allow[1]",
            "no port",
        ),
        (
            "version = 1\n[limits]\nmemory = \"lots\"\n",
            3,
            10,
            "limits.memory",
            "512M",
        ),
        (
            "version = 1\n[limits]\ntasks = 0\n",
            3,
            9,
            "limits.tasks",
            "at least 1",
        ),
        (
            "version = 1\n[limits]\ntimeout = \"soon\"\n",
            3,
            11,
            "limits.timeout",
            "1h30m",
        ),
        (
            "version = 1\n[files]\nread = [\"~other/x\"]\n",
            3,
            9,
            "files.read[0]",
            "homes of other users",
        ),
        (
            "version = 1\n[files]\nread = [\"[\"]\n",
            3,
            9,
            "files.read[0]",
            "no pattern",
        ),
        (
            "version = 1\n[env]\npass = [\"A=b\"]\n",
            3,
            9,
            "env.pass[0]",
            "BEGINNING*",
        ),
        (
            "version = 1\nextends = \"nobody\"\n",
            2,
            11,
            "extends",
            "no such preset",
        ),
        (
            "version = 1\nextends = \"./missing.toml\"\n",
            2,
            11,
            "extends",
            "no such file",
        ),
        (
            "version = 1\nextends = \"unconfined\"\n[files]\nread = [\"/\"]\n",
            4,
            9,
            "",
            "do nothing on top of `unconfined`",
        ),
        (
            "version = 1\n[net]\nmode = \"isolated\"\nallow = [\"127.0.0.1:1\"]\n",
            4,
            10,
            "net.allow[0]",
            "leads nowhere",
        ),
    ] {
        let error = place.error(text);
        let shown = error.to_string();
        assert_eq!(
            (error.place, error.key.as_str()),
            (Some((line, column)), key),
            "{shown}"
        );
        assert!(shown.contains(words), "{shown}");
        assert!(shown.contains(&format!("test.toml:{line}:{column}: ")), "{shown}");
    }
    let error = place.error("version = 1\n[net\n");
    assert_eq!(error.place.map(|(line, _)| line), Some(2), "{error}");
}

#[test]
fn without_a_base_nothing_is_granted_but_what_the_file_grants() {
    let place = Place::new();
    let loaded = place
        .load("version = 1\n[files]\nread = [\"/usr\"]\nwrite = [\"out\", \"~\"]\n")
        .unwrap();
    let files = &loaded.policy.files;
    assert_eq!(files.read.len(), 1);
    assert_eq!(paths(&files.write), [place.path("work/out"), place.path("home")]);
    assert!(!files.deny.is_empty(), "what presets deny stays denied");
    assert!(loaded.policy.confined);
    assert_eq!(loaded.policy.net.mode, NetMode::Off);
    let rule = &files.write[0];
    assert!(
        rule.source.ends_with("test.toml:4: files.write `out`"),
        "{}",
        rule.source
    );
}

#[test]
fn layers_add_up_and_the_last_word_counts() {
    let place = Place::new();
    place.write(
        "policies/base.toml",
        "version = 1\nextends = \"workspace-write\"\nbest_effort = true\n\
         [net]\nallow = [\"127.0.0.1:1\"]\n[limits]\ntasks = 5\ntimeout = \"1m\"\n[env.set]\nA = \"1\"\nB = \"1\"\n",
    );
    let loaded = place
        .load(
            "version = 1\nextends = \"base\"\nbest_effort = false\n\
             [net]\nmode = \"ask\"\nallow = [\"127.0.0.1:2\"]\n[limits]\ntasks = 7\n[env.set]\nB = \"2\"\n",
        )
        .unwrap();
    let policy = &loaded.policy;
    assert_eq!(policy.name, "test");
    assert_eq!(policy.degrade, Degrade::Required);
    assert_eq!((policy.net.mode, policy.ask.net), (NetMode::Off, true));
    let ports: Vec<_> = policy.net.allow.iter().filter_map(|rule| rule.port).collect();
    assert_eq!(ports, [1, 2]);
    assert_eq!(policy.limits.tasks, Some(7));
    assert_eq!(loaded.timeout.map(|time| time.as_secs()), Some(60));
    let set: Vec<_> = loaded.environment.set.into_iter().collect();
    assert_eq!(set, [("A".into(), "1".into()), ("B".into(), "2".into())]);
    assert_eq!(loaded.layers.len(), 3);
    assert_eq!(loaded.layers[0], "preset workspace-write");
}

#[test]
fn patterns_stand_for_what_exists() {
    let place = Place::new();
    for name in ["a.pem", "b.pem", "c.txt", "sub"] {
        place.write(&format!("work/{name}"), "");
    }
    fs::create_dir_all(place.path("work/deep/er")).unwrap();
    place.write("work/deep/er/d.pem", "");
    let loaded = place
        .load("version = 1\n[files]\ndeny = [\"*.pem\", \"**/d.pem\"]\nread = [\"nothing-*\"]\n")
        .unwrap();
    let denied = paths(&loaded.policy.files.deny);
    assert_eq!(
        denied,
        [
            place.path("work/a.pem"),
            place.path("work/b.pem"),
            place.path("work/deep/er/d.pem")
        ]
    );
    assert_eq!(loaded.warnings.len(), 1);
    assert!(
        loaded.warnings[0].contains("matches nothing now"),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn a_circle_and_a_tower_end() {
    let place = Place::new();
    place.write("policies/other.toml", "version = 1\nextends = \"./test.toml\"\n");
    let error = place.error("version = 1\nextends = \"other\"\n");
    assert!(error.to_string().contains("extends itself"), "{error}");
    for n in 0..20 {
        let text = format!("version = 1\nextends = \"tower{}\"\n", n + 1);
        place.write(&format!("policies/tower{n}.toml"), &text);
    }
    let error = place.error("version = 1\nextends = \"tower0\"\n");
    assert!(error.to_string().contains("more than 8"), "{error}");
}

#[test]
fn a_file_that_others_can_write_decides_nothing() {
    let place = Place::new();
    let file = place.write("policies/open.toml", "version = 1\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let named = PolicyName::Named("open".to_owned());
    let error = load(&named, &place.context()).unwrap_err();
    assert!(
        error.to_string().contains("can be written by other users"),
        "{error}"
    );
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(load(&named, &place.context()).is_ok());
    // What it extends decides as much, and the way by which it was named does not matter.
    let base = place.write("policies/base.toml", "version = 1\n");
    let beside = place.write("work/beside.toml", "version = 1\n");
    for (extended, path) in [("./base.toml", &base), ("../work/beside.toml", &beside)] {
        fs::write(&file, format!("version = 1\nextends = \"{extended}\"\n")).unwrap();
        assert!(load(&named, &place.context()).is_ok(), "{extended}");
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        let error = load(&named, &place.context()).unwrap_err();
        assert!(
            error.to_string().contains("can be written by other users"),
            "{error}"
        );
    }
    let error = load(&PolicyName::File(base), &place.context()).unwrap_err();
    assert!(
        error.to_string().contains("can be written by other users"),
        "{error}"
    );
    fs::write(&file, "version = 1\n").unwrap();
    // Somebody else's.
    let context = PolicyFileContext {
        uid: nix::unistd::geteuid().as_raw() + 1,
        ..place.context()
    };
    let refused = load(&named, &context);
    assert_eq!(
        refused.is_err(),
        !nix::unistd::geteuid().is_root(),
        "root's file is anybody's"
    );
    for bad in ["/dev/null", "/dev/zero", "/tmp"] {
        let error = load(&PolicyName::File(bad.into()), &place.context()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
    fs::write(&file, b"version = 1\n\xff\n").unwrap();
    let error = load(&named, &place.context()).unwrap_err();
    assert_eq!((error.why.as_str(), error.place), ("is not UTF-8", Some((2, 1))));
}

#[test]
fn names_are_presets_files_or_looked_up() {
    let named = |text| PolicyName::parse(text);
    assert_eq!(named("read-only"), PolicyName::Preset("read-only".into()));
    assert_eq!(named("./x"), PolicyName::File("./x".into()));
    assert_eq!(named("x.toml"), PolicyName::File("x.toml".into()));
    assert_eq!(named("web"), PolicyName::Named("web".into()));
}

#[cfg(feature = "cli")]
#[test]
fn what_is_written_out_is_read_as_the_same() {
    for text in [
        "version = 1\nextends = \"unconfined\"\nbest_effort = true\n\
         [env]\nclean = true\npass = [\"A*\"]\n[env.set]\nB = \"1\"\n[limits]\ntasks = 1\n",
        "version = 1\nextends = \"workspace-write\"\nbest_effort = true\n[files]\nread = [\"~/x\"]\nask = true\n\
         [net]\nmode = \"ask\"\nallow = [\"[::1]:80\", \"*.example.org:*\"]\nunix = [\"/run/x\"]\n\
         [env]\nclean = true\n[limits]\ntimeout = \"1h30m\"\n",
    ] {
        assert!(Place::new().load(text).is_ok(), "{text}");
        fuzzing::policy_file(text.as_bytes());
    }
}

/// Pieces of policy files, right and wrong.
#[cfg(feature = "cli")]
fn lines() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("version = 1".to_owned()),
        Just("extends = \"workspace-write\"".to_owned()),
        "(\\[(files|net|env|limits|env.set)\\])",
        "(read|write|deny|protect|allow|pass) = \\[(\"[a-z~*/\\[\\].:0-9]{0,12}\"(, )?){0,3}\\]?",
        "(mode|memory|tasks|timeout|clean|ask|best_effort) = (\"[a-z0-9]{0,6}\"|[0-9]{1,4}|true|false)",
        "\\PC{0,20}",
    ];
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

#[cfg(feature = "cli")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4000 }))]

    #[test]
    fn whatever_stands_in_a_file_it_is_a_policy_or_an_error_with_a_place(text in lines()) {
        let place = Place::new();
        match place.load(&text) {
            Ok(loaded) => prop_assert!(loaded.policy.confined),
            Err(error) => fuzzing::has_a_place(&error, &text),
        }
        fuzzing::policy_file(text.as_bytes());
    }
}
