//! A number of attempts that a sandbox refuses: `denials connect|write|read COUNT [PATH]`.
//!
//! Prints how many were refused. Exits 3 if one got through.

use std::net::{SocketAddr, TcpStream};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let (Some(kind), Some(count)) = (words.get(1), words.get(2).and_then(|n| n.parse::<u32>().ok()))
    else {
        eprintln!("usage: denials connect|write|read COUNT [PATH]");
        std::process::exit(64)
    };
    let path = words.get(3).map_or("/etc/provost-tests-probe", String::as_str);
    let address = SocketAddr::from(([192, 0, 2, 1], 80));
    let mut refused = 0;
    for _ in 0..count {
        let outcome = match kind.as_str() {
            "connect" => TcpStream::connect(address).map(drop),
            "write" => std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map(drop),
            _ => std::fs::File::open(path).map(drop),
        };
        match outcome {
            Ok(()) => {
                println!("one got through");
                std::process::exit(3)
            }
            Err(_) => refused += 1,
        }
    }
    println!("refused: {refused}");
}
