use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;

use super::*;

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

#[test]
fn i12_the_socket_is_for_its_user_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/provost.sock");
    let listening = opened(Some(&path), None).unwrap();
    assert_eq!(mode(&path), 0o600);
    let expected = if geteuid().is_root() { 0o755 } else { 0o700 };
    assert_eq!(mode(path.parent().unwrap()), expected);
    let client = UnixStream::connect(&path).unwrap();
    let (socket, made) = listening.split();
    let made = made.unwrap();
    assert_eq!(made.path(), path);
    socket.accept().unwrap();
    drop(client);
    // Nothing of it is left but the lock, which nobody holds.
    drop(socket);
    assert!(path.exists());
    drop(made);
    assert!(!path.exists());
    drop(opened(Some(&path), None).unwrap());
}

#[test]
fn a_group_can_be_let_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provost.sock");
    let own = Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let _listening = opened(Some(&path), Some(&own.name)).unwrap();
    assert_eq!(mode(&path), 0o660);
    assert_eq!(path.symlink_metadata().unwrap().gid(), own.gid.as_raw());
    let error = opened(Some(&path), Some("no-such-group")).unwrap_err();
    assert!(matches!(error, ListenError::Group { .. }), "{error}");
}

#[test]
fn the_second_daemon_is_told_who_the_first_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provost.sock");
    let first = opened(Some(&path), None).unwrap();
    let error = opened(Some(&path), None).unwrap_err().to_string();
    assert!(
        error.contains(&format!("(process {})", std::process::id())),
        "{error}"
    );
    // It changed nothing.
    UnixStream::connect(&path).unwrap();
    drop(first);
}

#[test]
fn what_a_killed_daemon_left_is_replaced_and_what_somebody_listens_on_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provost.sock");
    let other = UnixListener::bind(&path).unwrap();
    let error = opened(Some(&path), None).unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    UnixStream::connect(&path).unwrap();
    // Its name stays, as after a kill.
    drop(other);
    let listening = opened(Some(&path), None).unwrap();
    UnixStream::connect(&path).unwrap();
    // What somebody else has put there since is not ours to remove.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "theirs").unwrap();
    drop(listening);
    let error = opened(Some(&path), None).unwrap_err();
    assert!(matches!(error, ListenError::Foreign(_)), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
}

#[test]
fn a_directory_that_others_can_change_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    let path = inner.join("provost.sock");
    fs::create_dir(&inner).unwrap();
    let refused = |mode: u32, at: &Path| {
        fs::set_permissions(at, PermissionsExt::from_mode(mode)).unwrap();
        let error = opened(Some(&path), None).map(drop).unwrap_err();
        assert!(
            matches!(error, ListenError::Directory { .. }),
            "{mode:o}: {error}"
        );
        assert!(!path.exists());
        fs::set_permissions(at, PermissionsExt::from_mode(0o755)).unwrap();
    };
    refused(0o775, &inner);
    refused(0o757, &inner);
    refused(0o777, directory.path());
    // Like /tmp.
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    drop(opened(Some(&path), None).unwrap());

    let link = directory.path().join("link");
    symlink(&inner, &link).unwrap();
    let error = opened(Some(&link.join("provost.sock")), None).unwrap_err();
    assert!(matches!(error, ListenError::Directory { .. }), "{error}");
    let missing = directory.path().join("one/two/provost.sock");
    let error = opened(Some(&missing), None).unwrap_err();
    assert!(error.to_string().contains("cannot be made"), "{error}");
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if !geteuid().is_root() {
        println!("skipped: only root can make one");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    fs::create_dir(&inner).unwrap();
    std::os::unix::fs::chown(&inner, Some(12345), None).unwrap();
    let error = opened(Some(&inner.join("provost.sock")), None).unwrap_err();
    assert!(error.to_string().contains("belongs to another user"), "{error}");
}

#[test]
fn without_a_path_it_is_said_what_to_do() {
    let error = opened(None, None).unwrap_err().to_string();
    assert!(error.contains("--socket PATH"), "{error}");
}

fn opened(path: Option<&Path>, group: Option<&str>) -> Result<Listening, ListenError> {
    open(path, group, None, Duration::ZERO)
}

#[test]
fn the_socket_of_the_daemon_before_is_taken_with_who_waits_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provost.sock");
    let before = opened(Some(&path), None).unwrap();
    let held = before.socket.try_clone().unwrap();
    // It dies, and does not tidy up.
    let Listening { socket, made } = before;
    drop(socket);
    let Made {
        path: made, _lock, ..
    } = &*std::mem::ManuallyDrop::new(made.unwrap());
    assert_eq!(made, &path);
    _lock.give_up_for_tests();
    let waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let listening = open(Some(&path), None, Some(held), Duration::ZERO).unwrap();
    listening.socket.accept().unwrap();
    drop(waits);
    // Another path: it refuses from then on, and its file is gone.
    let held = listening.socket.try_clone().unwrap();
    let other = directory.path().join("other.sock");
    let moved = open(Some(&other), None, Some(held), Duration::ZERO).unwrap();
    assert!(!path.exists());
    assert_eq!(moved.made.as_ref().unwrap().path(), other);
}
