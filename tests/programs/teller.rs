//! Tells what is known beforehand: `teller WORD LINES PAUSE_MS CODE DENIED [leave] [read]`.
//!
//! Writes numbered lines with checksums, attempts connections between them that must be refused, leaves a process behind that does the
//! same on stderr (in a session of its own, forked twice), reads its standard input to the end and says what it was, and
//! exits with its code; with 99 if a connection was not refused.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use nix::poll::{PollTimeout, poll};
use nix::unistd::{ForkResult, fork, setsid};
use provost_tests::truth::{left_behind, line, read};

/// Lines between two pauses.
const LINES_AT_ONCE: u64 = 10;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok());
    let (Some(word), Some(lines), Some(pause_ms), Some(code), Some(denied)) =
        (words.first(), number(1), number(2), number(3), number(4))
    else {
        eprintln!("usage: teller WORD LINES PAUSE_MS CODE DENIED [leave] [read]");
        std::process::exit(64)
    };
    let is = |what: &str| words[5..].iter().any(|word| word == what);
    if is("leave") && child() {
        setsid().expect("a new session");
        if child() {
            tell(&mut std::io::stderr(), &left_behind(word), lines, pause_ms, 0);
        }
        std::process::exit(0)
    }
    tell(&mut std::io::stdout(), word, lines, pause_ms, denied);
    if is("read") {
        let mut input = Vec::new();
        std::io::stdin().read_to_end(&mut input).expect("a pipe");
        let said = read(word, &input);
        std::io::stdout().write_all(said.as_bytes()).expect("a reader");
    }
    std::process::exit(code as i32)
}

fn tell(to: &mut impl Write, word: &str, lines: u64, pause_ms: u64, mut denied: u64) {
    for first in (0..lines).step_by(LINES_AT_ONCE as usize) {
        if denied > 0 {
            denied -= 1;
            attempt();
        }
        let some = first..lines.min(first + LINES_AT_ONCE);
        let text: String = some.map(|number| line(word, number)).collect();
        to.write_all(text.as_bytes()).expect("a reader");
        to.flush().expect("a reader");
        let pause = PollTimeout::try_from(pause_ms as i32).expect("a short pause");
        poll(&mut [], pause).expect("nothing to wait for");
    }
    for _ in 0..denied {
        attempt();
    }
}

fn attempt() {
    if TcpStream::connect(SocketAddr::from(([192, 0, 2, 1], 80))).is_ok() {
        std::process::exit(99)
    }
}

/// Forks; true in the child.
fn child() -> bool {
    // SAFETY: this program has one thread.
    // WHY: the point is a process that nobody waits for, which no safe wrapper makes.
    matches!(unsafe { fork() }.expect("fork"), ForkResult::Child)
}
