//! One attempt to get out of the sandbox per run: `escape NAME [ARGUMENT…]`.
//!
//! Prints one line, `result: ok` or `result: ERRNO`, and exits 0 if the kernel refused and 3 if the attempt
//! got through. Run outside a sandbox it shows that the attempt is a real one.

mod abi;
mod files;
mod kernel;
mod network;
mod privileges;
mod processes;
mod races;
mod raw;

use raw::Outcome;

/// The words after the attempt's name.
struct Arguments(Vec<String>);

impl Arguments {
    fn text(&self, index: usize) -> &str {
        match self.0.get(index) {
            Some(text) => text,
            None => usage(&format!("argument {} is missing", index + 1)),
        }
    }

    fn number<T: std::str::FromStr>(&self, index: usize) -> T {
        let text = self.text(index);
        match text.parse() {
            Ok(number) => number,
            Err(_) => usage(&format!("`{text}` is not a number that fits")),
        }
    }
}

fn usage(problem: &str) -> ! {
    eprintln!("escape: {problem}\nusage: escape NAME [ARGUMENT…]");
    std::process::exit(64)
}

fn main() {
    let mut words = std::env::args().skip(1);
    let Some(name) = words.next() else {
        usage("no attempt named")
    };
    let arguments = Arguments(words.collect());
    let outcome: Option<Outcome> = None
        .or_else(|| network::attempt(&name, &arguments))
        .or_else(|| abi::attempt(&name, &arguments))
        .or_else(|| files::attempt(&name, &arguments))
        .or_else(|| kernel::attempt(&name, &arguments))
        .or_else(|| privileges::attempt(&name, &arguments))
        .or_else(|| processes::attempt(&name, &arguments))
        .or_else(|| races::attempt(&name, &arguments));
    match outcome {
        None => usage(&format!("no attempt is called `{name}`")),
        Some(Ok(_)) => {
            println!("result: ok");
            std::process::exit(3)
        }
        Some(Err(errno)) => println!("result: {:?}", nix::errno::Errno::from_raw(errno)),
    }
}
