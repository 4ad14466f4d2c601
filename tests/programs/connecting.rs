//! Threads that connect, all at the same time: `connecting ADDRESS PORT THREADS`.
//!
//! Each prints `connecting` and then what came of it.

use std::net::TcpStream;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let [_, address, port, threads] = &words[..] else {
        eprintln!("usage: connecting ADDRESS PORT THREADS");
        std::process::exit(64)
    };
    let target = format!("{address}:{port}");
    let threads: Vec<_> = (0..threads.parse().unwrap_or(1))
        .map(|_| {
            let target = target.clone();
            std::thread::spawn(move || {
                println!("connecting");
                match TcpStream::connect(target) {
                    Ok(_) => println!("connected"),
                    Err(error) => println!("failed: {error}"),
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}
