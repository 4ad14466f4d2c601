//! Variables are taken out of an environment only while nobody else can read it. A program of its own, since the threads of
//! a test harness are what is refused.

#![allow(clippy::disallowed_methods, reason = "it starts itself")]

use std::process::Command;
use std::sync::mpsc;

use provost_sandbox::environment::take;

const NAME: &str = "PROVOST_TEST_TAKEN";
const OTHER: &str = "PROVOST_TEST_KEPT";

fn main() {
    // nextest asks for the list of tests.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("environment: test");
        }
        return;
    }
    if std::env::var_os(NAME).is_none() {
        let status = Command::new(std::env::current_exe().unwrap())
            .env(NAME, "value")
            .env(OTHER, "kept")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    with_a_second_thread_nothing_is_removed();
    alone_what_is_named_is_removed_and_nothing_else();
}

fn with_a_second_thread_nothing_is_removed() {
    let (end, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _ = ended.recv();
    });
    assert!(take([NAME]).is_err());
    assert_eq!(std::env::var(NAME).as_deref(), Ok("value"));
    drop(end);
    thread.join().unwrap();
}

fn alone_what_is_named_is_removed_and_nothing_else() {
    // A thread that was joined may be on its last steps in the kernel.
    let taken = loop {
        match take(["PROVOST_TEST_NEVER_SET", NAME]) {
            Ok(taken) => break taken,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(taken, [None, Some("value".into())]);
    assert_eq!(std::env::var_os(NAME), None);
    assert_eq!(std::env::var(OTHER).as_deref(), Ok("kept"));
    // What is started now does not inherit it.
    let inherited = Command::new("env").output().unwrap().stdout;
    let inherited = String::from_utf8(inherited).unwrap();
    assert!(
        inherited.contains(OTHER) && !inherited.contains(NAME),
        "{inherited}"
    );
}
