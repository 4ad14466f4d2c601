//! Attempts that change their mind while they are looked at.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::Arguments;
use crate::network::{connect, inet, stream};
use crate::raw::{Outcome, sys};

/// The attempts of this file, by name.
pub(crate) fn attempt(name: &str, arguments: &Arguments) -> Option<Outcome> {
    Some(match name {
        "swap-address" => swap_address(arguments),
        "interrupted-connects" => interrupted_connects(arguments.number(0)),
        _ => return None,
    })
}

/// Connects to an allowed port while another thread turns the address in memory into a forbidden one and
/// back: `swap-address ALLOWED FORBIDDEN TIMES`. It cannot know where it arrived; the listeners do.
fn swap_address(arguments: &Arguments) -> Outcome {
    let ports: [u16; 2] = [arguments.number(0), arguments.number(1)];
    let times: u32 = arguments.number(2);
    let template = inet(SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0])));
    let shared: Vec<AtomicU8> = template.iter().map(|byte| AtomicU8::new(*byte)).collect();
    let done = AtomicBool::new(false);
    let mut refused = Ok(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let images = ports.map(u16::to_be_bytes);
            while !done.load(Ordering::Relaxed) {
                for image in images {
                    shared[2].store(image[0], Ordering::Relaxed);
                    shared[3].store(image[1], Ordering::Relaxed);
                }
            }
        });
        for _ in 0..times {
            let Ok(fd) = stream() else { break };
            // Closing forgets the connection at once: there are fewer local ports than tries.
            let linger = [1_i32, 0];
            let _ = sys!(
                libc::SYS_setsockopt,
                fd,
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                linger.as_ptr(),
                8
            );
            let outcome = sys!(libc::SYS_connect, fd, shared.as_ptr(), shared.len());
            if let Err(errno) = outcome {
                refused = Err(errno);
            }
            let _ = sys!(libc::SYS_close, fd);
        }
        done.store(true, Ordering::Relaxed);
    });
    refused
}

/// Refused connects under a timer that interrupts every few hundred microseconds. Prints how many calls came
/// back; none may be lost or doubled in the record.
fn interrupted_connects(times: u32) -> Outcome {
    extern "C" fn ignore(_: i32) {}
    let handler = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(ignore),
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    // WHY: installing a handler is unsafe in every library, because of what handlers may do.
    unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGALRM, &handler) }
        .map_err(|e| e as i32)?;
    let every = [0_i64, 300, 0, 300];
    sys!(libc::SYS_setitimer, 0, every.as_ptr(), 0)?;
    let address = inet(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80)));
    let mut last = Ok(0);
    let (mut refused, mut interrupted) = (0, 0);
    for _ in 0..times {
        let fd = stream()?;
        last = connect(fd, &address);
        match last {
            Err(libc::EINTR) => interrupted += 1,
            Err(_) => refused += 1,
            Ok(_) => return Ok(0),
        }
        let _ = sys!(libc::SYS_close, fd);
    }
    println!("refused: {refused}\ninterrupted: {interrupted}");
    last
}
