//! What must hold of a policy file, whatever stands in it.
//!
//! Public behind a feature: the fuzz target gives it texts that a fuzzer chose, the tests what they think of.

use std::collections::BTreeSet;

use super::error::{PolicyFileError, Text};
use super::merge::load_text;
use super::{LoadedPolicy, PolicyFileContext};
use crate::PresetContext;
use crate::cli::rendered;

/// Any text is a policy or an error with a place; and a policy that is written out is read as the same.
pub fn policy_file(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let Some(Ok(loaded)) = checked(text) else {
        return;
    };
    let (written, lines) = rendered(&loaded);
    // What presets deny stays denied in every file, so it is there twice when it was written out.
    let rules = |lines: Vec<String>| lines.into_iter().collect::<BTreeSet<_>>();
    // Its own paths are absolute: what is a pattern in it stands for one file that exists.
    let Some(again) = checked(&written) else {
        return;
    };
    let again = again.unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(rules(rendered(&again).1), rules(lines), "{written}");
    assert_eq!(again.environment, loaded.environment, "{written}");
    assert_eq!(again.timeout, loaded.timeout, "{written}");
    assert_eq!(again.idle_timeout, loaded.idle_timeout, "{written}");
    let (again, loaded) = (&again.policy, &loaded.policy);
    assert_eq!(again.limits, loaded.limits, "{written}");
    assert_eq!(again.confined, loaded.confined, "{written}");
    assert_eq!(again.degrade, loaded.degrade, "{written}");
    assert_eq!(
        (again.net.mode, again.ask),
        (loaded.net.mode, loaded.ask),
        "{written}"
    );
    assert_eq!(again.files.private_tmp, loaded.files.private_tmp, "{written}");
}

fn checked(text: &str) -> Option<Result<LoadedPolicy, PolicyFileError>> {
    // Directories that do not exist, so that nothing depends on the machine.
    let context = PolicyFileContext::new(
        PresetContext {
            cwd: "/nonexistent/work".into(),
            home: Some("/nonexistent/home".into()),
            uid: 1000,
            runtime_dir: None,
        },
        None,
    );
    let file = "fuzz.toml".to_owned();
    let loaded = load_text(
        Text {
            file,
            text: text.to_owned(),
        },
        &context,
    )?;
    if let Err(error) = &loaded {
        has_a_place(error, text);
    }
    Some(loaded)
}

/// An error says where it is, in words of ours.
pub(super) fn has_a_place(error: &PolicyFileError, text: &str) {
    let (line, column) = error.place.unwrap_or_else(|| panic!("{error} is nowhere"));
    assert!((1..=text.lines().count() + 1).contains(&line), "{error}");
    assert!(column >= 1, "{error}");
    assert!(!error.to_string().contains("__serde"), "{error}");
}
