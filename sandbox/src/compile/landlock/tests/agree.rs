//! The map and the kernel say the same, over trees that nobody chose.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::compile::access::FileAccess;

/// Every directory of the tree: each name is one of three, to a depth of three; each holds one file.
fn directories() -> Vec<String> {
    let mut all = vec![String::from("t")];
    let mut last = all.clone();
    for _ in 0..3 {
        last = last
            .iter()
            .flat_map(|dir| ["a", "b", "c"].map(|name| format!("{dir}/{name}")))
            .collect();
        all.extend(last.iter().cloned());
    }
    all
}

fn rules() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, bool, bool)>> {
    let rule = (any::<prop::sample::Index>(), 0u8..3, any::<bool>(), any::<bool>());
    prop::collection::vec(rule, 1..9)
}

/// What was tried, on what, what the map says and what the kernel said.
type Attempt = (FileAccess, PathBuf, bool, std::io::Result<()>);

fn attempts(map: &AccessMap, it: &Fixture, denied: &[PathBuf]) -> Vec<Attempt> {
    let mut all = Vec::new();
    let mut tried = |access, path: &Path, result: std::io::Result<()>| {
        let allowed = map.decide(path, access).allowed;
        all.push((access, path.to_owned(), allowed, result));
    };
    for dir in directories() {
        let dir = it.path(&dir);
        let file = dir.join("file");
        tried(FileAccess::Read, &file, fs::File::open(&file).map(drop));
        tried(FileAccess::Write, &file, open_write(&file).map(drop));
        // In a directory above a denied one names are not made without mounts; `degraded` says so.
        if denied.iter().any(|path| path.starts_with(&dir) && *path != dir) {
            continue;
        }
        let new = dir.join("new");
        tried(FileAccess::Create, &new, fs::create_dir(&new));
        tried(FileAccess::Remove, &file, fs::remove_file(&file));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_map_and_the_kernel_agree(rules in rules()) {
        let it = Fixture::new();
        let directories = directories();
        for dir in &directories {
            it.write(&format!("{dir}/file"), "x");
        }
        let mut files = FilePolicy::default();
        for (place, kind, explicit, on_file) in &rules {
            let mut path = it.path(place.get(&directories).as_str());
            if *on_file {
                path.push("file");
            }
            let rule = PathRule { path, source: "rule".into(), explicit: *explicit };
            [&mut files.read, &mut files.write, &mut files.deny][usize::from(*kind)].push(rule);
        }
        let mut request = request(&files);
        request.degrade = Degrade::BestEffort;
        let layers = compile_landlock(&request).unwrap();
        let denied: Vec<PathBuf> = files.deny.iter().map(|rule| rule.path.clone()).collect();
        let attempts = restricted(&layers, || attempts(&layers.access, &it, &denied));
        for (access, path, allowed, result) in attempts {
            let agreed = match &result {
                Ok(()) => allowed,
                Err(error) => !allowed && error.raw_os_error() == Some(libc::EACCES),
            };
            prop_assert!(agreed, "{:?} {}: map {}, kernel {:?}", access, path.display(), allowed, result);
        }
    }
}
