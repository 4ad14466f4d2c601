//! Every target with its seeds and with changes of them, blindly but always the same: for the stable toolchain.
//!
//! usage: replay [CHANGES_PER_TARGET]

use std::path::Path;

fn main() {
    let changes: u32 = std::env::args()
        .nth(1)
        .map_or(10_000, |count| count.parse().expect("a number of changes"));
    for (name, target) in provost_fuzz::TARGETS {
        let seeds = seeds(name);
        for seed in &seeds {
            target(seed);
        }
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
        for change in 0..changes {
            let bytes = changed(&seeds, &mut chance);
            let tried = std::panic::catch_unwind(|| target(&bytes));
            if tried.is_err() {
                eprintln!("{name}: change {change} fails: {bytes:?}");
                std::process::exit(1);
            }
        }
        println!("{name}: {} seeds and {changes} changes of them", seeds.len());
    }
}

/// What is in a target's directory, in the order of names.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .expect("seeds")
        .map(|entry| entry.expect("a seed").path())
        .collect();
    assert!(!files.is_empty(), "{} has none", directory.display());
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).expect("a seed"))
        .collect()
}

/// A seed with a few bytes changed, put in, left out, or with the end of another.
fn changed(seeds: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(8) {
        let at = chance.below(bytes.len() + 1);
        let byte = chance.below(256) as u8;
        match chance.below(6) {
            0 => bytes.insert(at, byte),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at.max(1)),
            3 => {
                let other = &seeds[chance.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend(&other[chance.below(other.len() + 1)..]);
            }
            4 if at < bytes.len() => bytes[at] ^= 1 << (byte & 7),
            _ if at < bytes.len() => bytes[at] = byte,
            _ => bytes.push(byte),
        }
    }
    bytes
}

/// The same numbers each time (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}
