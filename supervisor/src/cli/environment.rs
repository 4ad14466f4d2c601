//! Which of our environment variables a confined command gets.
//!
//! An allow list: tokens and passwords live in variables of any name. `--env KEY` passes another one through.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::policy_file::EnvironmentPolicy;

/// Always passed: who and where the user is.
const BASE: [&str; 5] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL"];

/// Passed by default: how programs find their parts and talk to people. None of these is meant for secrets.
const USUAL: [&str; 47] = [
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "FORCE_COLOR",
    "COLUMNS",
    "LINES",
    "PAGER",
    "EDITOR",
    "VISUAL",
    "CI",
    "DEBIAN_FRONTEND",
    "SOURCE_DATE_EPOCH",
    "MAKEFLAGS",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "PKG_CONFIG_PATH",
    "RUSTFLAGS",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "CARGO_TERM_COLOR",
    "GOPATH",
    "GOROOT",
    "GOCACHE",
    "GOMODCACHE",
    "JAVA_HOME",
    "NODE_ENV",
    "NODE_PATH",
    "NVM_DIR",
    "PYENV_ROOT",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "PYTHONDONTWRITEBYTECODE",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
];

/// What decides on the environment.
#[derive(Debug)]
pub(super) struct EnvironmentRules<'a> {
    /// Everything is passed (no sandbox).
    pub(super) everything: bool,
    /// Nothing but the base is passed.
    pub(super) clean: bool,
    /// What the policy passes and sets.
    pub(super) policy: &'a EnvironmentPolicy,
    /// `KEY` or `KEY=VALUE`.
    pub(super) named: &'a [OsString],
}

/// Parts of names, between underscores, that say that the value is a secret.
const SECRET: [&str; 16] = [
    "TOKEN",
    "TOKENS",
    "SECRET",
    "SECRETS",
    "KEY",
    "KEYS",
    "APIKEY",
    "PASSWORD",
    "PASSWD",
    "PASS",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "AUTH",
    "COOKIE",
    "PAT",
];

/// Whether a variable's name looks like that of a secret.
fn looks_secret(key: &OsStr) -> bool {
    let key = key.to_string_lossy().to_ascii_uppercase();
    key.split('_').any(|part| SECRET.contains(&part))
}

impl EnvironmentPolicy {
    fn passes(&self, key: &OsStr) -> bool {
        self.pass.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => {
                key.as_encoded_bytes().starts_with(beginning.as_bytes()) && !looks_secret(key)
            }
            None => key == pattern.as_str(),
        })
    }
}

/// The command's environment.
pub(super) fn build(
    rules: &EnvironmentRules<'_>,
    ours: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(OsString, OsString)>, String> {
    let ours: BTreeMap<OsString, OsString> = ours.into_iter().collect();
    let passes = |key: &OsStr| {
        let base = BASE.iter().any(|name| key == *name);
        let usual =
            || USUAL.iter().any(|name| key == *name) || key.as_encoded_bytes().starts_with(b"LC_");
        let clean = rules.clean || rules.policy.clean;
        base || rules.policy.passes(key) || (!clean && (rules.everything || usual()))
    };
    let mut result: BTreeMap<OsString, OsString> = ours
        .iter()
        .filter(|(key, _)| passes(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in &rules.policy.set {
        result.insert(key.into(), value.into());
    }
    for named in rules.named {
        match split(named) {
            Some((key, value)) if !key.is_empty() => drop(result.insert(key, value)),
            Some(_) => return Err(format!("--env {named:?}: the name is empty")),
            None => match ours.get(named) {
                Some(value) => drop(result.insert(named.clone(), value.clone())),
                None => {
                    return Err(format!(
                        "--env {}: no such variable here; give a value with KEY=VALUE",
                        named.display()
                    ));
                }
            },
        }
    }
    Ok(result.into_iter().collect())
}

fn split(named: &OsStr) -> Option<(OsString, OsString)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = named.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    Some((
        OsStr::from_bytes(&bytes[..at]).to_owned(),
        OsStr::from_bytes(&bytes[at + 1..]).to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(rules: &EnvironmentRules<'_>) -> Vec<String> {
        let ours = [
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("GITHUB_TOKEN", "s3cret"),
            ("CARGO_HOME", "/c"),
        ];
        build(rules, ours.map(|(k, v)| (k.into(), v.into())))
            .unwrap()
            .into_iter()
            .map(|(k, v)| format!("{}={}", k.display(), v.display()))
            .collect()
    }

    #[test]
    fn escape_59_secrets_in_the_environment_are_not_passed_unless_named() {
        let mut rules = EnvironmentRules {
            everything: false,
            clean: false,
            policy: &EnvironmentPolicy::default(),
            named: &[],
        };
        assert_eq!(names(&rules), ["CARGO_HOME=/c", "LC_ALL=C", "PATH=/bin"]);
        rules.clean = true;
        assert_eq!(names(&rules), ["PATH=/bin"]);
        let named = ["GITHUB_TOKEN".into(), "A=b=c".into()];
        rules.named = &named;
        assert_eq!(names(&rules), ["A=b=c", "GITHUB_TOKEN=s3cret", "PATH=/bin"]);
        let policy = EnvironmentPolicy {
            clean: true,
            pass: vec!["GITHUB_*".to_owned(), "C*".to_owned(), "UNSET".to_owned()],
            set: [("MODE".to_owned(), "test".to_owned())].into(),
        };
        let rules_of_a_file = EnvironmentRules {
            everything: false,
            clean: false,
            policy: &policy,
            named: &[],
        };
        assert_eq!(
            names(&rules_of_a_file),
            ["CARGO_HOME=/c", "MODE=test", "PATH=/bin"]
        );
        let exact = EnvironmentPolicy {
            pass: vec!["GITHUB_TOKEN".to_owned()],
            ..policy.clone()
        };
        let rules_of_a_file = EnvironmentRules {
            policy: &exact,
            ..rules_of_a_file
        };
        assert_eq!(
            names(&rules_of_a_file),
            ["GITHUB_TOKEN=s3cret", "MODE=test", "PATH=/bin"]
        );
        let missing = ["NO_SUCH".into()];
        rules.named = &missing;
        assert!(build(&rules, []).is_err());
    }
}
