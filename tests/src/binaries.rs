//! Where the tested binary and the helper programs are.
//!
//! The build directory may lie where an ordinary user cannot look (root's home). So everything is copied
//! once per build to a directory below `/var/tmp` that anybody may read and execute.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The helper programs of this package.
const PROGRAMS: [&str; 10] = [
    "escape",
    "listened",
    "connecting",
    "flood",
    "daemonise",
    "forkbomb",
    "orphans",
    "denials",
    "ignore_term",
    "teller",
];

/// The `provost` binary, where every user may execute it.
pub fn provost() -> PathBuf {
    stage().join("provost")
}

/// A helper program, where every user may execute it.
pub fn program(name: &str) -> String {
    assert!(PROGRAMS.contains(&name), "no helper program is called `{name}`");
    stage().join(name).display().to_string()
}

fn stage() -> &'static Path {
    static STAGE: OnceLock<PathBuf> = OnceLock::new();
    STAGE.get_or_init(|| make_stage().expect("cannot copy the binaries to /var/tmp"))
}

/// The directory that cargo put this test's helper programs into.
fn build_directory() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let above = test
        .ancestors()
        .skip(1)
        .find(|directory| !directory.ends_with("deps"));
    above.expect("a build directory").to_owned()
}

fn built_provost() -> PathBuf {
    let path = match std::env::var_os("PROVOST_BIN") {
        Some(path) => PathBuf::from(path),
        None => build_directory().join("provost"),
    };
    assert!(
        path.is_file(),
        "the binary under test is not at {}: build it first (`cargo build -p provost`, or test the whole \
         workspace with `cargo test --workspace`), or name it in PROVOST_BIN",
        path.display()
    );
    path
}

/// Copies into a directory named after what is copied, so that a new build gets a new one and tests that run
/// at the same time share it. The rename makes it appear whole.
fn make_stage() -> std::io::Result<PathBuf> {
    let mut sources = vec![built_provost()];
    sources.extend(PROGRAMS.iter().map(|name| build_directory().join(name)));
    let mut key = String::new();
    for source in &sources {
        let metadata = fs::metadata(source)?;
        key.push_str(&format!("{:x}{:x}", metadata.ino(), metadata.mtime_nsec()));
    }
    let uid = nix::unistd::geteuid().as_raw();
    let parent = PathBuf::from(format!("/var/tmp/provost-tests-bin-{uid}"));
    let stage = parent.join(hash(&key));
    if stage.is_dir() {
        return Ok(stage);
    }
    match fs::create_dir(&parent) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&parent)?;
    assert!(
        metadata.is_dir() && metadata.uid() == uid,
        "{} is not ours",
        parent.display()
    );
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
    remove_old_stages(&parent);
    let fresh = tempfile::Builder::new().prefix("new-").tempdir_in(&parent)?;
    fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755))?;
    for (source, name) in sources.iter().zip(std::iter::once(&"provost").chain(&PROGRAMS)) {
        let copy = fresh.path().join(name);
        fs::copy(source, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    // Where another test was quicker the rename fails, and ours is removed with its handle.
    if fs::rename(fresh.path(), &stage).is_ok() {
        let _ = fresh.keep();
    }
    Ok(stage)
}

/// Drops copies of builds that are a day old; younger ones may be in use by another checkout's tests.
fn remove_old_stages(parent: &Path) {
    let day = std::time::Duration::from_secs(24 * 3600);
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > day) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn hash(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
