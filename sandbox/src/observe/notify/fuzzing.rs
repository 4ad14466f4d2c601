//! What must hold of what a hostile program hands over: names it asks for, addresses, arguments, paths.
//!
//! The program is this process itself: its own memory is read, its own links in `/proc` are followed. Calls that
//! would be performed on its behalf are only read, never performed.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::address::{self, SocketAddress, UnixName};
use super::dns::{Code, Question};
use super::paths::{Kind, View};
use super::{
    Answer, Call, Decider, DeciderSetup, Listener, Notification, Response, Tree, dns, metadata, receive,
    transfer, walk,
};
use crate::compile::access::AccessMap;
use crate::fuzzing::Source;
use crate::policy::{AskPolicy, FilePolicy, NamePolicy, NetMode, NetPolicy, PathRule};
use crate::syscalls::{self, Entry, Handling};

/// Any message to our resolver is answered by something that every client takes, or by nothing.
pub fn dns(message: &[u8]) {
    if let Some(error) = dns::unreadable(message) {
        assert_eq!(error[..2], message[..2]);
        assert_eq!(Question::parse(&error), None);
    }
    let Some(question) = Question::parse(message) else {
        return;
    };
    // It can be shown, and compared with rules.
    assert!(question.name.len() < 255);
    let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.' | '?');
    assert!(question.name.chars().all(plain), "{:?}", question.name);
    // An answer repeats the question byte for byte and is none itself.
    let none = question.answer(Code::NoSuchName, &[]);
    let end = none.len();
    assert_eq!((&none[..2], &none[12..]), (&message[..2], &message[12..end]));
    let addresses = [IpAddr::from([192, 0, 2, 7]), IpAddr::from([7; 16])].repeat(50);
    let full = question.answer(Code::NoError, &addresses);
    assert!(full.len() <= 512);
    assert_eq!(full[12..end], none[12..]);
    assert!(full.len() > end || !question.wants_addresses());
    for answer in [none, full] {
        assert_eq!(Question::parse(&answer), None);
    }
}

/// Any socket address, any notified call with any arguments, any path.
pub fn notification(bytes: &[u8]) {
    let mut source = Source { rest: bytes };
    match source.u8() % 3 {
        0 => socket_address(source.rest),
        1 => call(&mut source),
        _ => path(source.rest),
    }
}

fn me() -> i32 {
    std::process::id().cast_signed()
}

/// What is judged is what is performed: an address that is read is not the unspecified one afterwards.
pub(super) fn socket_address(bytes: &[u8]) {
    let Ok(length) = i32::try_from(bytes.len()) else {
        return;
    };
    let Ok(given) = SocketAddress::copy(me(), bytes.as_ptr() as u64, length) else {
        assert!(bytes.len() > 128);
        return;
    };
    assert_eq!(given.as_bytes(), bytes);
    let named = given.with_loopback_named();
    assert_eq!(named.as_bytes().len(), bytes.len());
    let _ = given.inet_or_unspecified();
    match (given.inet(), named.inet()) {
        (Ok((before, port)), Ok((after, same_port))) => {
            assert_eq!(port, same_port);
            assert!(!after.to_canonical().is_unspecified());
            assert_eq!(address::effective(before), after.to_canonical());
        }
        (before, after) => assert_eq!(before, after),
    }
    match given.unix() {
        Ok(UnixName::Path(path)) => {
            assert!(!path.contains(&0));
            if let Some(made) = SocketAddress::unix_path(&path) {
                assert_eq!(made.unix(), Ok(UnixName::Path(path)));
            }
        }
        Ok(name) => assert!(name.display().starts_with('@')),
        Err(_) => {}
    }
}

static LISTENER: LazyLock<Listener> = LazyLock::new(|| {
    // No call waits at it, so nothing counts as valid.
    let nobody = File::open("/dev/null").expect("/dev/null");
    Listener::new(nobody.into()).expect("a kernel with notifications")
});

static DECIDER: LazyLock<Mutex<Decider>> = LazyLock::new(|| {
    let rule = |path: &str| PathRule::explicit(PathBuf::from(path), path.to_owned());
    let files = FilePolicy {
        read: vec![rule("/usr"), rule("/proc")],
        write: vec![rule("/var/tmp")],
        deny: vec![rule("/usr/lib")],
        ..FilePolicy::default()
    };
    Mutex::new(Decider::new(DeciderSetup {
        net: NetPolicy {
            mode: NetMode::Off,
            source: "fuzzing".to_owned(),
            unix: Vec::new(),
            allow: Vec::new(),
            listen: Vec::new(),
            proxy: false,
            names: NamePolicy::default(),
        },
        access: Some(AccessMap::new(&files, &[])),
        metadata: AccessMap::new(&files, &[]),
        refused: BTreeMap::new(),
        masked: vec![PathBuf::from("/usr/share")],
        observe_reads: true,
        tree: Tree {
            init: me(),
            pid_namespace: None,
        },
        tcp_confined_by_landlock: false,
        ask: AskPolicy::default(),
        ready: None,
        grants: Vec::new(),
    }))
});

static NOTIFIED: LazyLock<Vec<u32>> = LazyLock::new(|| {
    (0..=syscalls::highest_known())
        .filter(|number| syscalls::entry(*number).is_some())
        .collect()
});

/// The memory that arguments point into.
const MEMORY_BYTES: usize = 8192;

/// Arguments of any value, with memory of any content behind them.
fn call(source: &mut Source<'_>) {
    // Mostly a call that the filter asks about.
    let number = match source.u8() {
        255 => source.u32(),
        _ => *source.pick(&NOTIFIED),
    };
    let foreign = source.u8() == 255;
    let mut memory = vec![0; MEMORY_BYTES];
    let kinds = source.u16();
    let values = [(); 6].map(|()| source.u64());
    let filled = source.rest.len().min(MEMORY_BYTES);
    memory[..filled].copy_from_slice(&source.rest[..filled]);
    let base = memory.as_ptr() as u64;
    // Numbers of every size, and pointers into the memory and into nothing.
    let arg = |at: usize| match kinds >> (2 * at) & 3 {
        0 => base + values[at] % MEMORY_BYTES as u64,
        1 => i64::from(values[at] as i8).cast_unsigned(),
        2 => u64::from(values[at] as u32),
        _ => values[at],
    };
    // Pointers within structures cannot be guessed: those that say so are made right.
    if let Some(header) = memory.get_mut(..24)
        && header[0] == b'@'
    {
        header[..8].copy_from_slice(&(base + 64).to_ne_bytes());
        header[16..].copy_from_slice(&(base + 256).to_ne_bytes());
    }
    let notification = Notification {
        id: 1,
        pid: me(),
        number,
        arch: syscalls::NATIVE_ARCH ^ u32::from(foreign),
        args: [0, 1, 2, 3, 4, 5].map(arg),
    };
    read_or_decide(&notification);
}

fn read_or_decide(notification: &Notification) {
    let native =
        (notification.arch == syscalls::NATIVE_ARCH).then(|| syscalls::entry(notification.number));
    let entry = native.flatten();
    if let Some(entry) = entry {
        let call = Call {
            listener: &LISTENER,
            notification,
            name: entry.name,
        };
        match entry.handling {
            // These are performed: here they are only read.
            Handling::Metadata => {
                metadata::can_be_read(call);
            }
            Handling::Send => {
                let _ = transfer::destination(call);
            }
            Handling::Receive => {
                let _ = receive::Place::of(call);
            }
            Handling::Connect | Handling::Bind => {
                let _ = SocketAddress::copy(me(), call.arg(1), call.int(2));
            }
            Handling::Listen | Handling::SetSockOpt | Handling::Watch => {}
            _ => return decide(notification, Some(entry)),
        }
        return;
    }
    decide(notification, None);
}

fn decide(notification: &Notification, entry: Option<&Entry>) {
    let mut decider = DECIDER.lock().expect("no panic so far");
    let decided = decider.decide(&LISTENER, notification);
    let Answer::Now(answer) = decided.answer else {
        panic!("{notification:?} is not answered at once");
    };
    let may_continue = entry.is_some_and(|entry| {
        matches!(
            entry.handling,
            Handling::Open
                | Handling::DirectoryChange
                | Handling::PidArgument { .. }
                // What a socket is called is the kernel's to say, unless it is one of ours.
                | Handling::SocketName
        )
    });
    assert!(
        may_continue || matches!(answer, Response::Errno(_)),
        "{notification:?} is let through"
    );
}

/// Parts of paths that have links of every kind in them.
const PARTS: [&str; 32] = [
    "",
    ".",
    "..",
    "proc",
    "self",
    "root",
    "cwd",
    "exe",
    "fd",
    "0",
    "1",
    "2",
    "task",
    "dev",
    "stdin",
    "stdout",
    "etc",
    "mtab",
    "os-release",
    "bin",
    "usr",
    "lib",
    "lib64",
    "var",
    "run",
    "lock",
    "mounts",
    "net",
    "nothing",
    "passwd",
    "sh",
    "thread-self",
];

/// A path made of parts leads us where the kernel leads the program.
fn path(choices: &[u8]) {
    let view = View::open(me()).expect("our own view");
    if choices.first().is_some_and(|first| first & 0x80 != 0) {
        // Any bytes: an answer is all that can be asked for.
        let _ = view.resolve(libc::AT_FDCWD, &choices[1..], choices[0] & 1 != 0);
        let _ = view.plain(libc::AT_FDCWD, &choices[1..]);
        return;
    }
    let mut text = String::new();
    for choice in choices.iter().take(64) {
        text.push('/');
        text.push_str(PARTS[usize::from(choice % 32)]);
    }
    if choices.first().is_some_and(|first| first & 0x40 != 0) {
        text.remove(0);
    }
    let resolved = view.resolve(libc::AT_FDCWD, text.as_bytes(), true);
    let absolute = view.absolute(libc::AT_FDCWD, text.as_bytes());
    let looked_up = absolute.map(|path| {
        if let Ok(walked) = view.walk(&path, true) {
            assert!(walked.is_absolute() && !walked.components().any(|part| part.as_os_str() == ".."));
        }
        view.lookup_thoroughly(&path)
    });
    // A thread is shown as `/proc/TID`, which is another name of the kernel's for `/proc/PID/task/TID`.
    if text.contains("thread-self") {
        return;
    }
    let Some(real) = where_the_kernel_goes(&text) else {
        return;
    };
    let resolved = resolved.unwrap_or_else(|_| panic!("{text} leads to {real:?}"));
    assert_ne!(resolved.kind, Kind::Absent, "{text} leads to {real:?}");
    if resolved.kind != Kind::Unknown {
        assert_eq!(resolved.path, real, "{text}");
    }
    if let Ok(Ok(found)) = looked_up {
        assert_eq!(found.path, real, "{text}");
    }
}

/// The file that the kernel opens for us; none where it is in no file system or is no longer there.
fn where_the_kernel_goes(path: &str) -> Option<PathBuf> {
    let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let is_there = real.is_absolute()
        && !walk::is_memory(&real)
        && !real.as_os_str().as_bytes().ends_with(b" (deleted)")
        && real.symlink_metadata().is_ok();
    is_there.then_some(real)
}
