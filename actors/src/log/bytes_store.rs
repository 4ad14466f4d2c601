//! The bytes of one stream: kept as they came, found by offset, dropped from the middle.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

/// Pieces smaller than this are copied into blocks.
const SMALL_BYTES: usize = 4 << 10;

/// The size of a block. An idle process that has printed a line holds one.
const BLOCK_BYTES: usize = 8 << 10;

/// The bytes of one stream that are still held.
///
/// ```text
/// 0 ………… head ………… | (dropped) | … chunks … | block (open) | end
/// ```
#[derive(Debug, Default)]
pub(super) struct ByteStore {
    /// Never dropped.
    head: Vec<Chunk>,
    /// Dropped from the front.
    chunks: VecDeque<Chunk>,
    /// Small pieces since the last chunk; it becomes a chunk when somebody wants to see it.
    block: BytesMut,
    /// The offset of the end.
    end: u64,
}

#[derive(Debug)]
struct Chunk {
    offset: u64,
    bytes: Bytes,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl ByteStore {
    /// The offset of the end.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Appends bytes and says the place of the first one.
    pub(super) fn append(&mut self, bytes: Bytes) -> u64 {
        let offset = self.end;
        if bytes.is_empty() {
            return offset;
        }
        let length = bytes.len();
        if length < SMALL_BYTES {
            if self.block.capacity() - self.block.len() < length {
                self.close_block();
                self.block = BytesMut::with_capacity(BLOCK_BYTES);
            }
            self.block.put_slice(&bytes);
        } else {
            self.close_block();
            self.chunks.push_back(Chunk { offset, bytes });
        }
        self.end += length as u64;
        offset
    }

    /// The bytes of a range, without copying where they came (or were put) in one piece; `None` if not all
    /// of them are here.
    pub(super) fn slice(&mut self, offset: u64, length: u64) -> Option<Bytes> {
        let length = usize::try_from(length).ok()?;
        let end = offset.checked_add(length as u64)?;
        if length == 0 {
            return Some(Bytes::new());
        }
        if end > self.end {
            return None;
        }
        if end > self.end - self.block.len() as u64 {
            self.close_block();
        }
        let in_head = self.head.partition_point(|chunk| chunk.end() <= offset);
        if in_head < self.head.len() {
            return gather(self.head[in_head..].iter(), offset, length);
        }
        let in_chunks = self.chunks.partition_point(|chunk| chunk.end() <= offset);
        gather(self.chunks.range(in_chunks..), offset, length)
    }

    /// Makes everything below `end` the head. To be called once, before anything is dropped.
    pub(super) fn keep_head(&mut self, end: u64) {
        self.close_block();
        while let Some(mut chunk) = self.chunks.pop_front_if(|chunk| chunk.offset < end) {
            if chunk.end() > end {
                // Its memory is shared, not copied, by both parts.
                let bytes = chunk.bytes.split_to((end - chunk.offset) as usize);
                let offset = std::mem::replace(&mut chunk.offset, end);
                self.head.push(Chunk { offset, bytes });
                self.chunks.push_front(chunk);
                break;
            }
            self.head.push(chunk);
        }
        self.head.shrink_to_fit();
    }

    /// Drops the head's end from `end` on, as far as whole chunks go.
    pub(super) fn shorten_head(&mut self, end: u64) {
        while self.head.pop_if(|chunk| chunk.offset >= end).is_some() {}
    }

    /// Drops what lies between the head and `start`, as far as whole chunks go.
    pub(super) fn drop_below(&mut self, start: u64) {
        while self.chunks.pop_front_if(|chunk| chunk.end() <= start).is_some() {}
        if self.end <= start {
            self.block.clear();
        }
    }

    /// Drops what lies at or above `end`, as far as whole chunks go. Nothing is appended after that.
    pub(super) fn drop_above(&mut self, end: u64) {
        self.close_block();
        while self.chunks.pop_back_if(|chunk| chunk.offset >= end).is_some() {}
        self.block = BytesMut::new();
    }

    /// Makes a chunk of what the block holds; the block goes on with the rest of its memory.
    fn close_block(&mut self) {
        if !self.block.is_empty() {
            let bytes = self.block.split().freeze();
            let offset = self.end - bytes.len() as u64;
            self.chunks.push_back(Chunk { offset, bytes });
        }
    }

    /// How many bytes are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let chunks = self.head.iter().chain(&self.chunks);
        chunks.map(|chunk| chunk.bytes.len()).sum::<usize>() + self.block.len()
    }

    /// In how many chunks.
    #[cfg(test)]
    pub(super) fn chunks(&self) -> usize {
        self.head.len() + self.chunks.len()
    }
}

/// Cuts a range out of chunks of which the first contains its beginning.
fn gather<'a>(mut chunks: impl Iterator<Item = &'a Chunk>, offset: u64, length: usize) -> Option<Bytes> {
    let first = chunks.next().filter(|chunk| chunk.offset <= offset)?;
    let skip = (offset - first.offset) as usize;
    if first.bytes.len() - skip >= length {
        return Some(first.bytes.slice(skip..skip + length));
    }
    // Only for a fact that joins several pieces.
    let mut whole = BytesMut::with_capacity(length);
    whole.put_slice(&first.bytes[skip..]);
    while whole.len() < length {
        let next = chunks
            .next()
            .filter(|chunk| chunk.offset == offset + whole.len() as u64)?;
        let take = next.bytes.len().min(length - whole.len());
        whole.put_slice(&next.bytes[..take]);
    }
    Some(whole.freeze())
}
