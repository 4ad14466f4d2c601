//! Compiling itself: what is returned, what is refused, when it is out of date.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn i5_without_landlock_a_required_policy_is_an_error_and_best_effort_says_so() {
    let it = Fixture::new();
    let policy = it.policy(&["/"], &[], &["home/.ssh"]);
    let mut request = request(&policy);
    request.abi = 0;
    let error = compile_landlock(&request).unwrap_err().to_string();
    assert!(error.contains("no Landlock") && error.contains("5.13"), "{error}");
    request.degrade = Degrade::BestEffort;
    let layers = compile_landlock(&request).unwrap();
    assert!(layers.rulesets.is_empty() && layers.held.is_empty() && layers.abi == 0);
    assert_eq!(layers.degraded.len(), 2, "{:?}", layers.degraded);
    request.mounts = true;
    let layers = compile_landlock(&request).unwrap();
    assert_eq!(layers.masks.len(), 1, "mounts hide what Landlock cannot");
    assert_eq!(layers.degraded.len(), 1, "{:?}", layers.degraded);
}

#[test]
fn i5_every_older_version_compiles_and_what_it_lacks_is_told() {
    let it = Fixture::new();
    let policy = it.policy(&["/"], &["home/project"], &["home/.ssh"]);
    for abi in 1..=kernel_abi() {
        let mut request = request(&policy);
        request.abi = abi;
        request.audit = true;
        let required = compile_landlock(&request);
        assert_eq!(required.is_err(), abi < 3, "abi {abi}: {required:?}");
        request.degrade = Degrade::BestEffort;
        let layers = compile_landlock(&request).unwrap();
        assert_eq!(layers.rulesets.len(), 2);
        assert_eq!(layers.held.contains(&"tcp".to_owned()), abi >= 4);
        assert_eq!(layers.held.contains(&"signals".to_owned()), abi >= 6);
        assert_eq!(layers.restrict_flags, if abi >= 7 { 3 } else { 0 });
        assert_eq!(layers.degraded.len(), usize::from(abi < 3), "abi {abi}");
        restricted(&layers, || {
            assert_refused("secret", fs::read(it.path("home/.ssh/key")));
            assert_refused("write", open_write(&it.path("home/notes")));
            assert_allowed("write inside", fs::write(it.path("home/project/code"), "x"));
        });
    }
}

#[test]
fn a_version_that_the_kernel_does_not_have_is_an_error_and_nothing_weaker() {
    let it = Fixture::new();
    let policy = it.policy(&["/"], &[], &[]);
    let mut request = request(&policy);
    request.abi = 9;
    if kernel_abi() < 9 {
        let error = compile_landlock(&request).unwrap_err();
        assert!(matches!(error, LandlockError::Kernel { .. }), "{error}");
    }
}

#[test]
fn it_is_out_of_date_when_a_sibling_of_a_secret_appears_or_goes() {
    let it = Fixture::new();
    let policy = it.policy(&["home"], &["home/project"], &["home/.ssh"]);
    let layers = compile_landlock(&request(&policy)).unwrap();
    assert!(layers.is_current());
    it.write("home/project/new", "x");
    it.write("home/.ssh/new", "x");
    it.write("other/new", "x");
    assert!(layers.is_current(), "changes elsewhere do not matter");
    it.write("home/new", "x");
    assert!(!layers.is_current(), "a sibling appeared");
    let layers = compile_landlock(&request(&policy)).unwrap();
    fs::remove_file(it.path("home/new")).unwrap();
    assert!(!layers.is_current(), "a sibling went");
}

#[test]
fn it_is_out_of_date_when_a_writable_path_is_made_anew() {
    let it = Fixture::new();
    let policy = it.policy(&[], &["home/project/deep"], &[]);
    fs::create_dir(it.path("home/project/deep")).unwrap();
    let layers = compile_landlock(&request(&policy)).unwrap();
    assert!(layers.is_current());
    fs::remove_dir(it.path("home/project/deep")).unwrap();
    fs::create_dir(it.path("home/project/deep")).unwrap();
    assert!(!layers.is_current());
}

#[test]
fn a_mask_is_for_each_denied_path_that_is_there() {
    let it = Fixture::new();
    symlink(it.path("home/.ssh"), it.path("home/.gnupg")).unwrap();
    let denied = [
        "home/.ssh",
        "home/.ssh/key",
        "home/.netrc",
        "home/.aws",
        "home/.gnupg",
        "home/.config/gh",
    ];
    it.write("home/.config/gh/hosts", "x");
    let policy = it.policy(&["/"], &["home"], &denied);
    let mut request = request(&policy);
    request.mounts = true;
    let layers = compile_landlock(&request).unwrap();
    let masks: Vec<_> = layers
        .masks
        .iter()
        .map(|m| (m.path.clone(), m.directory))
        .collect();
    let expected = [
        (it.path("home/.config/gh"), true),
        (it.path("home/.netrc"), false),
        (it.path("home/.ssh"), true),
    ];
    assert_eq!(masks, expected);
    assert_eq!(layers.pins, [it.path("home/.config")]);
    assert!(layers.is_current());
    it.write("home/new", "x");
    assert!(layers.is_current(), "a writable directory changes all the time");
    it.write("home/.aws/credentials", "x");
    assert!(!layers.is_current(), "a denied path appeared");
}

#[test]
fn a_grant_that_a_mask_would_hide_is_an_error() {
    let it = Fixture::new();
    let policy = it.policy(&["/", "home/.ssh/known_hosts"], &["home"], &["home/.ssh"]);
    let mut request = request(&policy);
    request.mounts = true;
    let error = compile_landlock(&request).unwrap_err().to_string();
    assert!(
        error.contains("known_hosts") && error.contains("narrower"),
        "{error}"
    );
    request.degrade = Degrade::BestEffort;
    let layers = compile_landlock(&request).unwrap();
    assert_eq!(layers.masks.len(), 1);
    assert!(
        layers.degraded[0].what.contains("known_hosts"),
        "{:?}",
        layers.degraded
    );
}

#[test]
fn a_users_grant_for_a_presets_denied_path_is_not_masked() {
    let it = Fixture::new();
    let mut policy = it.policy(&["/"], &["home"], &["home/.netrc", "home/.ssh", "home/.ssh/key"]);
    let explicit = |path: &str| PathRule::explicit(it.path(path), format!("--grant {path}"));
    policy.read.push(explicit("home/.netrc"));
    policy.read.push(explicit("home/.ssh"));
    let mut request = request(&policy);
    request.mounts = true;
    let layers = compile_landlock(&request).unwrap();
    assert_eq!(layers.read_only, [it.path("home/.netrc"), it.path("home/.ssh")]);
    let masks: Vec<_> = layers.masks.iter().map(|mask| mask.path.clone()).collect();
    assert_eq!(
        masks,
        [it.path("home/.ssh/key")],
        "below the grant the longer denial holds"
    );
    restricted(&layers, || {
        assert_allowed("granted again", fs::read(it.path("home/.netrc")));
    });
    let mut policy = policy.clone();
    policy.write.push(explicit("home/.netrc"));
    request.files = &policy;
    assert_eq!(
        compile_landlock(&request).unwrap().read_only,
        [it.path("home/.ssh")]
    );
}

#[test]
fn a_grant_of_the_users_that_is_not_there_is_an_error_and_a_presets_is_not() {
    let it = Fixture::new();
    let mut policy = it.policy(&["/", "missing"], &[], &[]);
    compile_landlock(&request(&policy)).unwrap();
    policy
        .write
        .push(PathRule::explicit(it.path("gone/deep"), "--write gone/deep"));
    let error = compile_landlock(&request(&policy)).unwrap_err().to_string();
    assert!(
        error.contains("gone/deep") && error.contains("create it"),
        "{error}"
    );
}

#[test]
fn a_directory_with_too_many_entries_is_an_error_that_names_it() {
    let it = Fixture::new();
    for n in 0..50 {
        it.write(&format!("home/many/{n}"), "x");
    }
    let policy = it.policy(&["home"], &[], &["home/many/7"]);
    let (files, _) = resolve::resolve_policy(&policy);
    let map = AccessMap::new(&files, &[]);
    let mut builder = Builder::new(Rights::of(kernel_abi()), false, 40).unwrap();
    let error = builder.add_tree(&tree::tree(&map, &[])).unwrap_err();
    assert!(error.to_string().contains("home/many"), "{error}");
    assert!(matches!(error, LandlockError::TooManyRules { .. }));
}

#[test]
fn a_link_planted_at_a_denied_path_does_not_close_the_machine() {
    let it = Fixture::new();
    symlink("/", it.path("home/.aws")).unwrap();
    let layers = compile_landlock(&request(&it.policy(&["/"], &[], &["home/.aws"]))).unwrap();
    restricted(&layers, || {
        assert_allowed("read", fs::read(it.path("home/notes")))
    });
}

#[test]
fn links_are_followed_as_the_kernel_does_and_loops_end() {
    let it = Fixture::new();
    symlink("../other", it.path("home/up")).unwrap();
    symlink("loop", it.path("loop")).unwrap();
    symlink("nowhere/at/all", it.path("dangling")).unwrap();
    let real = |below: &str| resolve::resolve(&it.path(below)).path;
    assert_eq!(real("home/up/file"), it.path("other/file"));
    assert_eq!(real("home/up/../home/notes"), it.path("home/notes"));
    assert_eq!(real("dangling"), it.path("nowhere/at/all"));
    assert_eq!(real("./home/./x//y"), it.path("home/x/y"));
    assert!(resolve::resolve(&it.path("loop")).links.len() <= 40);
}
