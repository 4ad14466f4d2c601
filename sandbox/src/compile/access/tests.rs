//! The map against single cases, and against a model that is too simple to be wrong.

use super::*;
use proptest::prelude::*;

fn policy(read: &[&str], write: &[&str], deny: &[&str]) -> FilePolicy {
    let rules = |paths: &[&str]| {
        paths
            .iter()
            .map(|p| PathRule::preset(*p, "preset test"))
            .collect()
    };
    FilePolicy {
        read: rules(read),
        write: rules(write),
        deny: rules(deny),
        ..FilePolicy::default()
    }
}

#[track_caller]
fn expect(map: &AccessMap, path: &str, access: FileAccess, allowed: bool) {
    let verdict = map.decide(Path::new(path), access);
    assert_eq!(verdict.allowed, allowed, "{access:?} {path}: {}", verdict.rule);
}

use FileAccess::{Create, Execute, Read, Remove, Write};

#[test]
fn the_longest_rule_wins_whatever_its_kind() {
    let map = AccessMap::new(&policy(&["/", "/a/b/c"], &["/w"], &["/a/b", "/w/s"]), &[]);
    expect(&map, "/a/x", Read, true);
    expect(&map, "/a/b", Read, false);
    expect(&map, "/a/b/x", Execute, false);
    expect(&map, "/a/b/c/x", Read, true);
    expect(&map, "/a/b/c/x", Write, false);
    expect(&map, "/a/bc", Read, true);
    expect(&map, "/w/x", Create, true);
    expect(&map, "/w/s", Remove, false);
    expect(&map, "/w/s/x", Read, false);
}

#[test]
fn a_list_of_executables_takes_from_what_is_readable_and_gives_nothing() {
    let rule = |path: &str| PathRule::explicit(path, format!("--execute {path}"));
    let files = FilePolicy {
        execute: vec![rule("/usr/bin"), rule("/secret")],
        ..policy(&["/usr"], &["/w"], &["/secret"])
    };
    let map = AccessMap::new(&files, &[]);
    expect(&map, "/usr/bin/git", Execute, true);
    expect(&map, "/usr/lib/git", Execute, false);
    expect(&map, "/usr/lib/git", Read, true);
    expect(&map, "/w/tool", Execute, false);
    expect(&map, "/w/tool", Write, true);
    expect(&map, "/secret/tool", Execute, false);
    assert_eq!(map.decide(Path::new("/w/tool"), Execute).rule, NOT_EXECUTABLE);
}

#[test]
fn a_root_is_not_made_or_removed_by_its_own_rule() {
    let map = AccessMap::new(&policy(&["/"], &["/data/w", "/data/file"], &[]), &[]);
    expect(&map, "/data/w", Remove, false);
    expect(&map, "/data/w", Create, false);
    expect(&map, "/data/w/x", Remove, true);
    expect(&map, "/data/file", Write, true);
    expect(&map, "/data/file", Remove, false);
}

#[test]
fn names_directly_below_the_root_stay_even_when_everything_is_writable() {
    let map = AccessMap::new(&policy(&[], &["/"], &[]), &[]);
    expect(&map, "/new", Create, false);
    expect(&map, "/etc", Remove, false);
    expect(&map, "/etc/new", Create, true);
    expect(&map, "/", Remove, false);
}

#[test]
fn for_one_path_explicit_rules_beat_presets_and_denials_beat_grants() {
    let deny = |explicit| if explicit { "--deny /p" } else { "preset t" };
    for (grant_explicit, deny_explicit, allowed) in [
        (false, false, false),
        (true, false, true),
        (false, true, false),
        (true, true, false),
    ] {
        let mut files = FilePolicy::default();
        files.read.push(PathRule {
            path: "/p".into(),
            source: "--read /p".into(),
            explicit: grant_explicit,
        });
        files.deny.push(PathRule {
            path: "/p".into(),
            source: deny(deny_explicit).into(),
            explicit: deny_explicit,
        });
        let map = AccessMap::new(&files, &[]);
        expect(&map, "/p/x", Read, allowed);
    }
}

#[test]
fn reading_a_path_below_a_writable_one_takes_nothing_away() {
    let map = AccessMap::new(&policy(&["/w/r"], &["/w"], &[]), &[]);
    expect(&map, "/w/r/x", Write, true);
}

#[test]
fn protected_paths_are_read_and_not_written_unless_a_longer_rule_says_so() {
    let mut files = policy(&["/"], &["/w"], &[]);
    files
        .protect
        .push(PathRule::preset("/w/.git/hooks", "preset test"));
    files
        .write
        .push(PathRule::explicit("/w/.git/hooks/mine", "--write mine"));
    let map = AccessMap::new(&files, &[]);
    expect(&map, "/w/.git/hooks/pre-commit", Read, true);
    expect(&map, "/w/.git/hooks/pre-commit", Write, false);
    expect(&map, "/w/.git/hooks", Remove, false);
    expect(&map, "/w/.git/hooks/new", Create, false);
    expect(&map, "/w/.git/index", Create, true);
    expect(&map, "/w/.git/hooks/mine", Write, true);
    let verdict = map.decide(Path::new("/w/.git/hooks/x"), Write);
    assert_eq!(verdict.rule, "preset test: /w/.git/hooks is read-only");
}

#[test]
fn devices_are_closed_except_the_harmless_and_the_named() {
    let mut files = policy(&["/"], &["/dev"], &[]);
    let map = AccessMap::new(&files, &[]);
    for access in [Read, Write] {
        expect(&map, "/dev/null", access, true);
        expect(&map, "/dev/pts/3", access, true);
        expect(&map, "/dev/vda", access, false);
        expect(&map, "/dev/input/event0", access, false);
    }
    expect(&map, "/dev/pts/9", Create, false);
    expect(&map, "/dev/null", Remove, false);
    expect(&map, "/dev/shm/x", Read, true);
    expect(&map, "/dev/shm/x", Write, false);
    files
        .write
        .push(PathRule::explicit("/dev/kvm", "--write /dev/kvm"));
    files.deny.push(PathRule::explicit("/dev/tty", "--deny /dev/tty"));
    let map = AccessMap::new(&files, &[]);
    expect(&map, "/dev/kvm", Write, true);
    expect(&map, "/dev/tty", Write, false);
    assert_eq!(map.decide(Path::new("/dev/tty"), Read).rule, "--deny /dev/tty");
}

#[test]
fn a_policy_that_reads_little_still_has_its_null_device() {
    let map = AccessMap::new(&policy(&["/usr"], &[], &[]), &[]);
    expect(&map, "/dev/null", Write, true);
    expect(&map, "/dev/shm/x", Read, false);
    let map = AccessMap::new(&policy(&["/usr"], &[], &["/dev"]), &[]);
    expect(&map, "/dev/null", Write, false);
}

#[test]
fn a_private_directory_is_writable_and_hides_nothing() {
    let mut files = policy(
        &["/", "/tmp/in"],
        &["/tmp/work"],
        &["/tmp/secret", "/tmp/work/.env"],
    );
    let private = [PathBuf::from("/tmp"), PathBuf::from("/dev/shm")];
    let map = AccessMap::new(&files, &private);
    expect(&map, "/tmp/x", Create, true);
    expect(&map, "/tmp/secret", Create, true);
    expect(&map, "/dev/shm/x", Create, true);
    expect(&map, "/tmp/work/x", Write, true);
    expect(&map, "/tmp/work/.env", Read, false);
    expect(&map, "/tmp/in/x", Read, true);
    expect(&map, "/tmp/in/x", Write, false);
    files.deny.push(PathRule::explicit("/tmp", "--deny /tmp"));
    let map = AccessMap::new(&files, &private);
    expect(&map, "/tmp/x", Read, false);
}

#[test]
fn verdicts_quote_the_rule() {
    let mut files = policy(&["/r"], &[], &["/r/s"]);
    files.deny.push(PathRule::explicit("/r/t", "--deny t"));
    let map = AccessMap::new(&files, &[]);
    let rule = |path: &str, access| map.decide(Path::new(path), access).rule;
    assert_eq!(rule("/r/x", Read), "preset test: /r is readable");
    assert_eq!(rule("/r/s/x", Read), "preset test: /r/s is denied");
    assert_eq!(rule("/r/t/x", Read), "--deny t");
    assert_eq!(rule("/x", Read), "not under any readable path (preset test)");
    assert_eq!(rule("/r/x", Write), "not under any writable path (preset test)");
}

#[test]
fn paths_that_were_not_resolved_are_refused() {
    let map = AccessMap::new(&policy(&["/"], &["/w"], &[]), &[]);
    expect(&map, "w/x", Write, false);
    expect(&map, "/w/../etc/passwd", Write, false);
    expect(&map, "", Read, false);
    expect(&map, "/w//x/./y/", Write, true);
}

/// A rule as the model sees it: words of the path, kind, explicit.
type ModelRule = (Vec<u8>, u8, bool);

fn render(words: &[u8]) -> PathBuf {
    let mut path = PathBuf::from("/m");
    path.extend(words.iter().map(|w| format!("n{w}")));
    path
}

fn rules() -> impl Strategy<Value = Vec<ModelRule>> {
    let path = prop::collection::vec(0u8..3, 0..4);
    prop::collection::vec((path, 0u8..4, any::<bool>()), 0..12)
}

fn to_policy(rules: &[ModelRule]) -> FilePolicy {
    let mut files = FilePolicy::default();
    for (words, kind, explicit) in rules {
        let rule = PathRule {
            path: render(words),
            source: "s".into(),
            explicit: *explicit,
        };
        match kind {
            0 => files.read.push(rule),
            1 => files.write.push(rule),
            2 => files.deny.push(rule),
            _ => files.protect.push(rule),
        }
    }
    files
}

/// Walks up from the path and takes the first directory that has any rule for the question.
fn model(rules: &[ModelRule], words: &[u8], writing: bool) -> bool {
    for length in (0..=words.len()).rev() {
        let here: Vec<_> = rules
            .iter()
            .filter(|(path, kind, _)| {
                path[..] == words[..length] && *kind != if writing { 0 } else { 3 }
            })
            .collect();
        if here.is_empty() {
            continue;
        }
        let has =
            |explicit: bool, grant: bool| here.iter().any(|r| r.2 == explicit && (r.1 < 2) == grant);
        return !has(true, false) && (has(true, true) || !has(false, false));
    }
    false
}

proptest! {
    #[test]
    fn the_map_agrees_with_a_naive_model(rules in rules(), words in prop::collection::vec(0u8..3, 0..5)) {
        let map = AccessMap::new(&to_policy(&rules), &[]);
        let path = render(&words);
        let writable = model(&rules, &words, true);
        prop_assert_eq!(map.decide(&path, Read).allowed, model(&rules, &words, false));
        prop_assert_eq!(map.decide(&path, Execute).allowed, model(&rules, &words, false));
        prop_assert_eq!(map.decide(&path, Write).allowed, writable);
        let parent = !words.is_empty() && model(&rules, &words[..words.len() - 1], true);
        prop_assert_eq!(map.decide(&path, Create).allowed, writable && parent);
        prop_assert_eq!(map.decide(&path, Remove).allowed, writable && parent);
    }

    #[test]
    fn writable_paths_are_always_readable(
        rules in rules(), words in prop::collection::vec(0u8..3, 0..5),
    ) {
        let map = AccessMap::new(&to_policy(&rules), &[]);
        let path = render(&words);
        if map.decide(&path, Write).allowed {
            prop_assert!(map.decide(&path, Read).allowed);
        }
    }

    #[test]
    fn no_path_makes_the_map_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        use std::os::unix::ffi::OsStrExt;
        let map = AccessMap::new(&to_policy(&[(vec![], 0, false)]), &[]);
        let path = Path::new(std::ffi::OsStr::from_bytes(&bytes));
        for access in [Read, Execute, Write, Create, Remove] {
            let _ = map.decide(path, access);
        }
    }
}

proptest! {
    #[test]
    fn comparing_bytes_is_comparing_components(path in "/?[ab./]{0,10}", root in "/?[ab./]{0,6}") {
        let (path, root) = (Path::new(&path), lexically_plain(Path::new(&root)));
        if let Some(bytes) = plain_bytes(path) {
            let entry = Entry::built_in(root.clone(), Kind::Read);
            prop_assert_eq!(entry.covers(bytes), is_at_or_below(path, &root));
        }
    }
}
