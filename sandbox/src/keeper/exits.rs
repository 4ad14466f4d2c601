//! The file in which a keeper writes down how processes ended, for the case that it is killed before anybody asked.
//!
//! One record for each process that ended (and one before it where the command ended earlier than its tree), appended
//! with one `write`. It is in the page cache then, so it survives every process; a power failure may take it. Nothing
//! waits for a disk.
//!
//! ```text
//! "PvX1"  length of the body, 2 bytes  CRC-32 of length and body, 4 bytes  body (postcard)
//! ```
//! all numbers little-endian. What is no record is skipped: a write that a full disk cut off spoils only itself.

use std::fs::File;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::held::TreeEnd;

const MAGIC: &[u8; 4] = b"PvX1";
const HEADER_BYTES: usize = MAGIC.len() + 2 + 4;
/// A file that is read is no longer than this: some hundred thousand records.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Which.
    pub process: Uuid,
    /// The raw wait status of its command; nothing where nobody could say it.
    pub status: Option<i32>,
    /// How its tree ended; nothing where that had not ended when this was written.
    pub end: Option<TreeEnd>,
}

/// Reads what a keeper wrote: for each process its last record, in the order in which they were written.
///
/// # Errors
/// The file cannot be read. What is in it is never an error: what is no record, or none that is whole, is skipped.
pub fn read(file: &mut impl Read) -> io::Result<Vec<ExitRecord>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let mut records: Vec<ExitRecord> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for record in decode(&bytes) {
        // A command's end and then its tree's, or the same once more.
        match places.get(&record.process) {
            Some(&place) => records[place] = record,
            None => {
                places.insert(record.process, records.len());
                records.push(record);
            }
        }
    }
    Ok(records)
}

fn decode(mut bytes: &[u8]) -> Vec<ExitRecord> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        match first(bytes) {
            Some((record, length)) => {
                records.push(record);
                bytes = &bytes[length..];
            }
            None => bytes = &bytes[1..],
        }
    }
    records
}

/// The record that these bytes begin with, and its length.
fn first(bytes: &[u8]) -> Option<(ExitRecord, usize)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..usize::from(u16::from_le_bytes(*length)))?;
    if u32::from_le_bytes(*sum) != crc32(&[length, body]) {
        return None;
    }
    let record = postcard::from_bytes(body).ok()?;
    Some((record, HEADER_BYTES + body.len()))
}

fn encode(record: &ExitRecord) -> io::Result<Vec<u8>> {
    let body = postcard::to_allocvec(record).map_err(io::Error::other)?;
    let length = u16::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    let sum = crc32(&[&length, &body]).to_le_bytes();
    Ok([&MAGIC[..], &length, &sum, &body].concat())
}

/// The file, as the keeper writes it.
pub(super) struct ExitsFile(File);

impl ExitsFile {
    /// `file` is open for appending.
    pub(super) fn new(file: File) -> Self {
        Self(file)
    }

    /// Appends a record. What was cut off by a full disk is taken away again.
    pub(super) fn append(&mut self, record: &ExitRecord) -> io::Result<()> {
        let bytes = encode(record)?;
        let before = self.0.metadata()?.len();
        match self.0.write(&bytes) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => {
                self.0.set_len(before)?;
                Err(io::ErrorKind::WriteZero.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Nothing that is in there is needed any more.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        self.0.set_len(0)
    }
}

/// CRC-32 (IEEE 802.3) of these pieces, one after the other.
fn crc32(pieces: &[&[u8]]) -> u32 {
    let bytes = pieces.iter().flat_map(|piece| piece.iter());
    !bytes.fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 * (sum & 1))
        })
    })
}

/// Any bytes are read, and the records in them are found again in what is written of them.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn any_file_is_read(bytes: &[u8]) {
    let records = read(&mut &*bytes).expect("memory");
    let written: Vec<u8> = records
        .iter()
        .flat_map(|record| encode(record).expect("a record"))
        .collect();
    assert_eq!(read(&mut written.as_slice()).expect("memory"), records);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{LimitHits, Usage};
    use super::*;

    fn record(number: u64) -> ExitRecord {
        let end = TreeEnd {
            killed: number,
            usage: (!number.is_multiple_of(3)).then_some(Usage {
                user_us: number * 1_000_003,
                system_us: u64::MAX - number,
                max_rss_bytes: number << 20,
            }),
            hits: LimitHits {
                out_of_memory: number % 2,
                tasks: number,
                unknown: number.is_multiple_of(2),
            },
        };
        ExitRecord {
            process: Uuid::from_u128(u128::from(number) << 64),
            status: (!number.is_multiple_of(4)).then_some(number as i32),
            end: (!number.is_multiple_of(5)).then_some(end),
        }
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(&[b"12345", b"6789"]), 0xcbf4_3926);
    }

    #[test]
    fn the_last_word_on_a_process_counts() {
        let (early, late) = (
            ExitRecord {
                end: None,
                ..record(7)
            },
            record(7),
        );
        let bytes: Vec<u8> = [early, record(8), late]
            .iter()
            .flat_map(|record| encode(record).unwrap())
            .collect();
        assert_eq!(read(&mut bytes.as_slice()).unwrap(), [late, record(8)]);
    }

    #[test]
    fn a_torn_record_spoils_only_itself() {
        let whole: Vec<Vec<u8>> = (1..5).map(|number| encode(&record(number)).unwrap()).collect();
        for cut in 1..whole[1].len() {
            let torn = [&whole[0], &whole[1][..cut], &whole[2], &whole[3][..cut.min(20)]].concat();
            assert_eq!(read(&mut torn.as_slice()).unwrap(), [record(1), record(3)]);
        }
    }

    #[test]
    fn what_is_appended_is_read_and_an_emptied_file_starts_afresh() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exits");
        let file = File::options().append(true).create(true).open(&path).unwrap();
        let mut exits = ExitsFile::new(file);
        let read_back = || read(&mut File::open(&path).unwrap()).unwrap();
        exits.append(&record(1)).unwrap();
        exits.append(&record(2)).unwrap();
        assert_eq!(read_back(), [record(1), record(2)]);
        exits.empty().unwrap();
        exits.append(&record(3)).unwrap();
        assert_eq!(read_back(), [record(3)]);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300), number in 0u64..50, cut in 0usize..80) {
            let whole = encode(&record(number)).unwrap();
            any_file_is_read(&bytes);
            any_file_is_read(&[&bytes, &whole[..cut.min(whole.len())], &whole].concat());
        }

        #[test]
        fn a_changed_byte_is_noticed(number in 0u64..50, place in 0usize..200, change in 1u8..) {
            let mut bytes = encode(&record(number)).unwrap();
            let place = place % bytes.len();
            bytes[place] ^= change;
            prop_assert_eq!(read(&mut bytes.as_slice()).unwrap(), []);
        }
    }
}
