//! The memory through which host and guest hand each other bytes.
//!
//! A guest names a block by its handle: the offset at which it begins, in an arena
//! that belongs to the host. Guests move their input and output eight bytes a
//! call, so those calls are one comparison and one copy. All that a guest passes
//! may be anything: what lies outside of the arena reads as zero and is not
//! written, and what must be a block is one only if it begins right there.
//!
//! A block that is given back serves the next of its size. The arena is emptied at
//! the end of a turn, and a large one goes on to whoever needs one next, so that an
//! idle engine holds next to nothing.

use std::ops::Range;

use parking_lot::Mutex;
use thiserror::Error;

/// Bytes before the first block, since no handle is 0.
const ORIGIN: usize = 16;

/// The smallest block.
const SMALLEST: usize = 16;

/// Sizes of blocks: four between a power of two and the next.
const SIZES: usize = 4 * usize::BITS as usize;

/// No block, in a list of free ones.
const NONE: u32 = u32::MAX;

/// Bytes of arena that an idle engine keeps: about a page of the allocator.
const KEPT: usize = 4 << 10;

/// Blocks for which an idle engine keeps room.
const KEPT_BLOCKS: usize = 64;

/// Large arenas that wait for someone to need them, and how large they may be.
const SPARE: usize = 4;
const SPARE_BYTES: usize = 1 << 20;

/// Those of all guests.
static SPARES: Spares = Spares::new();

/// Large arenas that nobody uses now.
struct Spares(Mutex<Vec<Vec<u8>>>);

/// The blocks of one guest.
pub(crate) struct Blocks {
    /// From the offset 0 on. Empty between two calls.
    arena: Vec<u8>,
    /// In the order of their offsets.
    blocks: Vec<Block>,
    /// For each size, the first free block, by its place in `blocks`.
    free: Box<[u32; SIZES]>,
    any_free: bool,
    input: Range<u64>,
    output: (u64, u64),
    error: u64,
    /// Bytes that the guest may have here, beside its input.
    limit: usize,
    /// Bytes that the input takes.
    given: usize,
}

/// The guest asks for more than its memory may be.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("out of memory: blocks of {asked} bytes more would go over `memory`")]
pub(crate) struct OutOfBlocks {
    asked: u64,
}

/// A guest has named a block that does not exist.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a host function was given {0}, which is no block of memory")]
pub(crate) struct NoBlock(u64);

struct Block {
    start: usize,
    capacity: usize,
    used: usize,
    live: bool,
    /// The next free block of this size.
    next: u32,
}

impl Blocks {
    /// No blocks, and room for `limit` bytes of them.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            arena: Vec::new(),
            blocks: Vec::new(),
            free: Box::new([NONE; SIZES]),
            any_free: false,
            input: 0..0,
            output: (0, 0),
            error: 0,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            given: 0,
        }
    }

    /// Begins a call whose input `write` appends to the arena; about `hint` bytes.
    pub(crate) fn begin(&mut self, hint: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.clear();
        self.make_room(ORIGIN + hint);
        self.arena.resize(ORIGIN, 0);
        write(&mut self.arena);
        let used = self.arena.len() - ORIGIN;
        self.given = self.arena.len();
        if used == 0 {
            return;
        }
        self.blocks.push(Block { start: ORIGIN, capacity: used, used, live: true, next: NONE });
        self.input = ORIGIN as u64..(ORIGIN + used) as u64;
    }

    /// Ends a call. Nothing is left of it.
    pub(crate) fn end(&mut self) {
        self.clear();
        if self.arena.capacity() > KEPT {
            SPARES.give(std::mem::take(&mut self.arena));
        }
        self.blocks.shrink_to(KEPT_BLOCKS);
    }

    /// Forgets every block: the guest may ask for that too.
    pub(crate) fn clear(&mut self) {
        self.arena.clear();
        self.blocks.clear();
        if self.any_free {
            self.free.fill(NONE);
            self.any_free = false;
        }
        (self.input, self.output, self.error, self.given) = (0..0, (0, 0), 0, 0);
    }

    /// The handle of a new block; 0 for one of no bytes.
    pub(crate) fn alloc(&mut self, asked: u64) -> Result<u64, OutOfBlocks> {
        if asked == 0 {
            return Ok(0);
        }
        let refused = OutOfBlocks { asked };
        let used = usize::try_from(asked).map_err(|_| OutOfBlocks { asked })?;
        if used > self.limit {
            return Err(refused);
        }
        let (size, capacity) = size_of_block(used);
        let first = self.free[size];
        if first != NONE {
            let block = &mut self.blocks[first as usize];
            self.free[size] = block.next;
            (block.used, block.live) = (used, true);
            return Ok(block.start as u64);
        }
        let start = self.arena.len().max(ORIGIN);
        let records = (self.blocks.len() + 1) * size_of::<Block>();
        let taken = (start - self.given).saturating_add(capacity).saturating_add(records);
        if taken > self.limit || self.blocks.len() >= NONE as usize {
            return Err(refused);
        }
        self.make_room(start + capacity);
        self.arena.resize(start + capacity, 0);
        self.blocks.push(Block { start, capacity, used, live: true, next: NONE });
        Ok(start as u64)
    }

    /// The handle of a new block with these bytes; 0 for none.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<u64, OutOfBlocks> {
        let handle = self.alloc(bytes.len() as u64)?;
        if handle != 0 {
            let start = offset(handle);
            self.arena[start..start + bytes.len()].copy_from_slice(bytes);
        }
        Ok(handle)
    }

    /// Gives a block back. What is no block is ignored.
    pub(crate) fn free(&mut self, handle: u64) {
        let Some(index) = self.find(handle) else { return };
        if handle == self.input.start {
            self.input.end = self.input.start;
        }
        let block = &mut self.blocks[index];
        block.live = false;
        let (size, capacity) = size_below(block.capacity);
        if capacity >= SMALLEST {
            block.next = self.free[size];
            self.free[size] = u32::try_from(index).expect("there are fewer blocks");
            self.any_free = true;
        }
    }

    /// The bytes of a block; none for the handle 0.
    pub(crate) fn get(&self, handle: u64) -> Result<&[u8], NoBlock> {
        if handle == 0 {
            return Ok(&[]);
        }
        let block = &self.blocks[self.find(handle).ok_or(NoBlock(handle))?];
        Ok(&self.arena[block.start..block.start + block.used])
    }

    /// Bytes of a block; 0 for what is none.
    pub(crate) fn length(&self, handle: u64) -> u64 {
        self.find(handle).map_or(0, |index| self.blocks[index].used as u64)
    }

    pub(crate) fn load_u8(&self, at: u64) -> u8 {
        self.arena.get(offset(at)).copied().unwrap_or(0)
    }

    pub(crate) fn load_u64(&self, at: u64) -> u64 {
        let bytes = self.arena.get(offset(at)..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    pub(crate) fn store_u8(&mut self, at: u64, value: u8) {
        if let Some(byte) = self.arena.get_mut(offset(at)) {
            *byte = value;
        }
    }

    pub(crate) fn store_u64(&mut self, at: u64, value: u64) {
        let bytes = self.arena.get_mut(offset(at)..).and_then(|rest| rest.first_chunk_mut());
        if let Some(bytes) = bytes {
            *bytes = value.to_le_bytes();
        }
    }

    pub(crate) fn input_load_u8(&self, at: u64) -> u8 {
        if at < self.input_length() { self.load_u8(self.input.start + at) } else { 0 }
    }

    pub(crate) fn input_load_u64(&self, at: u64) -> u64 {
        let fits = at.checked_add(8).is_some_and(|end| end <= self.input_length());
        if fits { self.load_u64(self.input.start + at) } else { 0 }
    }

    /// Names other bytes as the input. What lies outside of the arena is ignored.
    pub(crate) fn set_input(&mut self, at: u64, length: u64) {
        if let Some(range) = self.range(at, length) {
            self.input = range.start as u64..range.end as u64;
        }
    }

    pub(crate) fn input_offset(&self) -> u64 {
        self.input.start
    }

    pub(crate) fn input_length(&self) -> u64 {
        self.input.end - self.input.start
    }

    pub(crate) fn set_output(&mut self, at: u64, length: u64) {
        self.output = (at, length);
    }

    pub(crate) fn output_offset(&self) -> u64 {
        self.output.0
    }

    pub(crate) fn output_length(&self) -> u64 {
        self.output.1
    }

    /// What the guest has put out.
    ///
    /// # Errors
    /// It named bytes that do not exist: how many.
    pub(crate) fn output(&self) -> Result<&[u8], u64> {
        let (at, length) = self.output;
        match self.range(at, length) {
            Some(range) => Ok(&self.arena[range]),
            None if length == 0 => Ok(&[]),
            None => Err(length),
        }
    }

    /// Names a block as the error; 0 takes the error back.
    pub(crate) fn set_error(&mut self, handle: u64) {
        if handle == 0 || offset(handle) < self.arena.len() {
            self.error = handle;
        }
    }

    pub(crate) fn error_offset(&self) -> u64 {
        self.error
    }

    /// The guest's error, if it has set one. What is no block is no error.
    pub(crate) fn error(&self) -> Option<&[u8]> {
        self.get(self.error).ok().filter(|error| !error.is_empty())
    }

    /// Bytes that all blocks take.
    pub(crate) fn size(&self) -> u64 {
        self.arena.len() as u64
    }

    fn range(&self, at: u64, length: u64) -> Option<Range<usize>> {
        let end = offset(at.checked_add(length)?);
        (end <= self.arena.len()).then(|| offset(at)..end)
    }

    fn find(&self, handle: u64) -> Option<usize> {
        let start = offset(handle);
        let index = match self.blocks.last() {
            Some(last) if last.start == start => self.blocks.len() - 1,
            _ => self.blocks.binary_search_by_key(&start, |block| block.start).ok()?,
        };
        self.blocks[index].live.then_some(index)
    }

    fn make_room(&mut self, needed: usize) {
        if needed <= self.arena.capacity() {
            return;
        }
        if needed > KEPT
            && let Some(mut spare) = SPARES.take(needed)
        {
            spare.extend_from_slice(&self.arena);
            self.arena = spare;
            return;
        }
        self.arena.reserve(needed - self.arena.len());
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if self.arena.capacity() > KEPT {
            SPARES.give(std::mem::take(&mut self.arena));
        }
    }
}

/// An offset that a guest has named, as a place in the arena or beyond its end.
fn offset(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// The size that holds `bytes`, and its bytes.
fn size_of_block(bytes: usize) -> (usize, usize) {
    let last = bytes.max(SMALLEST) - 1;
    let power = last.ilog2() as usize;
    let quarter = last >> (power - 2);
    (4 * power + quarter - 4, (quarter + 1) << (power - 2))
}

/// The largest size that `bytes` hold, and its bytes; nothing under the smallest.
fn size_below(bytes: usize) -> (usize, usize) {
    if bytes < SMALLEST {
        return (0, 0);
    }
    let power = bytes.ilog2() as usize;
    let size = (bytes >> (power - 2)) << (power - 2);
    size_of_block(size)
}

impl Spares {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn give(&self, mut arena: Vec<u8>) {
        if arena.capacity() > SPARE_BYTES {
            return;
        }
        arena.clear();
        let mut spares = self.0.lock();
        if spares.len() < SPARE {
            spares.push(arena);
        }
    }

    fn take(&self, needed: usize) -> Option<Vec<u8>> {
        let mut spares = self.0.lock();
        let fits = spares.iter().position(|spare| spare.capacity() >= needed)?;
        Some(spares.swap_remove(fits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(input: &[u8]) -> Blocks {
        let mut blocks = Blocks::new(1 << 20);
        blocks.begin(input.len(), |arena| arena.extend_from_slice(input));
        blocks
    }

    #[test]
    fn a_block_holds_what_was_put_there() {
        let mut blocks = blocks(b"input");
        let one = blocks.put(b"one").unwrap();
        let two = blocks.put(b"twotwotwo").unwrap();
        assert_eq!(blocks.get(one), Ok(&b"one"[..]));
        assert_eq!(blocks.load_u64(two), u64::from_le_bytes(*b"twotwotw"));
        blocks.store_u8(two + 8, b'!');
        blocks.store_u64(one, 0);
        assert_eq!(blocks.get(two), Ok(&b"twotwotw!"[..]));
        assert_eq!((blocks.length(one), blocks.length(two)), (3, 9));
        assert_eq!(blocks.get(one), Ok(&[0; 3][..]));
        assert_eq!(blocks.get(0), Ok(&[][..]));
        assert_eq!(blocks.alloc(0), Ok(0));
        assert_eq!(blocks.input_load_u8(4), b't');
        assert_eq!(blocks.get(blocks.input_offset()), Ok(&b"input"[..]));
    }

    #[test]
    fn what_is_no_block_is_none_and_harms_nobody() {
        let mut blocks = blocks(b"12345678");
        let one = blocks.put(b"12345678").unwrap();
        let last = blocks.alloc(16).unwrap();
        let far =
            [1, one + 1, one - 1, one + 1000, 1 << 31, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 7];
        for at in far {
            assert_eq!(blocks.get(at), Err(NoBlock(at)));
            assert_eq!(blocks.length(at), 0);
            blocks.free(at);
            blocks.set_error(0);
            blocks.set_error(at);
            blocks.set_input(at, u64::MAX);
            if at > one + 100 {
                assert_eq!(blocks.error_offset(), 0, "{at} is no error");
                blocks.store_u8(at, 1);
                blocks.store_u64(at, 1);
                assert_eq!((blocks.load_u8(at), blocks.load_u64(at)), (0, 0));
            }
            assert_eq!((blocks.input_load_u8(at.max(8)), blocks.input_load_u64(at)), (0, 0));
            for length in [1 << 20, u64::MAX, u64::MAX - at] {
                blocks.set_output(at, length);
                assert!(blocks.output().is_err() || length == 0, "{at} {length}");
            }
        }
        // The last block ends where the arena does: what reaches beyond is not written.
        for at in last + 9..last + 16 {
            blocks.store_u64(at, u64::MAX);
            assert_eq!(blocks.load_u64(at), 0);
        }
        assert_eq!(blocks.get(last), Ok(&[0; 16][..]));
        assert_eq!(blocks.get(one), Ok(&b"12345678"[..]));
        assert_eq!(blocks.input_load_u64(0), u64::from_le_bytes(*b"12345678"));
    }

    #[test]
    fn a_block_that_is_given_back_serves_again() {
        let mut blocks = blocks(b"");
        let mut last = 0;
        for _ in 0..100_000 {
            for length in [1, 16, 17, 100, 1000, 5000] {
                last = blocks.alloc(length).unwrap();
                blocks.free(last);
                blocks.free(last);
            }
        }
        assert!(blocks.size() < 10_000, "{}", blocks.size());
        assert_eq!(blocks.length(last), 0);
        let (a, b) = (blocks.alloc(100).unwrap(), blocks.alloc(100).unwrap());
        assert_ne!(a, b, "a block that was given back twice is there once");
        blocks.free(a);
        blocks.clear();
        let first = blocks.alloc(100).unwrap();
        assert_eq!(blocks.get(first).map(<[u8]>::len), Ok(100), "no free block outlives its arena");
    }

    #[test]
    fn an_input_that_is_given_back_is_gone() {
        let mut blocks = blocks(b"input");
        blocks.free(blocks.input_offset());
        assert_eq!((blocks.input_length(), blocks.input_load_u8(0)), (0, 0));
    }

    #[test]
    fn every_size_holds_its_bytes_and_is_found_again() {
        for bytes in 1..100_000 {
            let (size, capacity) = size_of_block(bytes);
            assert!(capacity >= bytes && capacity <= bytes.max(SMALLEST) * 5 / 4 + 1, "{bytes}");
            assert_eq!(size_below(capacity), (size, capacity), "{bytes}");
            assert!(size < SIZES);
            let (_, below) = size_below(bytes);
            assert!(below <= bytes, "{bytes}");
        }
    }

    #[test]
    fn blocks_have_a_bound_whatever_their_size() {
        for length in [1, 100, 1 << 16, 1 << 20, 1 << 40, u64::MAX] {
            let mut blocks = blocks(&[7; 100]);
            if length > 1 << 20 {
                assert_eq!(blocks.alloc(length), Err(OutOfBlocks { asked: length }));
            }
            let count = (0..100_000).take_while(|_| blocks.alloc(length).is_ok()).count();
            assert!(count < 50_000, "{length}");
            assert!(blocks.size() <= (1 << 20) + 200);
        }
        let mut many = Blocks::new(200);
        many.begin(1000, |arena| arena.resize(arena.len() + 1000, 1));
        assert_eq!(many.input_length(), 1000);
        assert!(many.alloc(16).is_ok(), "the input does not count");
    }

    #[test]
    fn nothing_is_left_of_a_call() {
        let mut blocks = blocks(b"input");
        let handle = blocks.put(&[7; 100_000]).unwrap();
        blocks.set_output(handle, 10);
        blocks.set_error(handle);
        blocks.end();
        assert!(blocks.arena.capacity() <= KEPT);
        assert_eq!(
            (blocks.output(), blocks.error(), blocks.input_length()),
            (Ok(&[][..]), None, 0)
        );
        blocks.begin(0, |_| {});
        let handle = blocks.alloc(100_000).unwrap();
        assert_eq!(blocks.get(handle), Ok(&[0; 100_000][..]), "not what another guest has left");
    }
    #[test]
    fn a_large_arena_serves_the_next() {
        let spares = Spares::new();
        let arena = vec![7; SPARE_BYTES / 2];
        let place = arena.as_ptr();
        spares.give(arena);
        assert_eq!(spares.take(SPARE_BYTES), None, "it is smaller");
        let again = spares.take(SPARE_BYTES / 4).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert_eq!(spares.take(1), None, "it is in use");
    }

    #[test]
    fn few_arenas_wait_and_none_that_is_huge() {
        let spares = Spares::new();
        spares.give(Vec::with_capacity(SPARE_BYTES * 2));
        assert_eq!(spares.take(1), None);
        (0..=SPARE).for_each(|_| spares.give(Vec::with_capacity(KEPT * 2)));
        assert_eq!(std::iter::from_fn(|| spares.take(1)).count(), SPARE);
    }

    #[test]
    fn a_used_arena_shows_nothing() {
        let mut blocks = Blocks::new(1 << 20);
        for _ in 0..3 {
            blocks.begin(0, |_| {});
            let handle = blocks.alloc(KEPT as u64 * 2).unwrap();
            assert_eq!((handle, blocks.load_u8(handle)), (ORIGIN as u64, 0));
            blocks.store_u8(handle, 7);
            blocks.end();
        }
    }
}
