//! Writes a given number of bytes whose content tells their place: `flood BYTES [stderr]`.
//!
//! Each group of eight bytes is its own index, little endian, so a reader who knows the offset can check any
//! piece without the rest.

use std::io::Write;

/// Bytes per write.
const BLOCK: usize = 256 * 1024;

fn main() -> std::io::Result<()> {
    let mut words = std::env::args().skip(1);
    let Some(total) = words.next().and_then(|text| text.parse::<u64>().ok()) else {
        eprintln!("usage: flood BYTES [stderr]");
        std::process::exit(64)
    };
    // Unbuffered: one write call per block, into whichever stream was asked for.
    let mut out: Box<dyn Write> = match words.next().as_deref() {
        Some("stderr") => Box::new(std::io::stderr()),
        _ => Box::new(std::fs::File::from(
            std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned()?,
        )),
    };
    let mut block = vec![0_u8; BLOCK];
    let mut written = 0_u64;
    while written < total {
        for (index, group) in (written / 8..).zip(block.chunks_exact_mut(8)) {
            group.copy_from_slice(&index.to_le_bytes());
        }
        let length = usize::try_from(total - written).unwrap_or(BLOCK).min(BLOCK);
        out.write_all(&block[..length])?;
        written += length as u64;
    }
    Ok(())
}
