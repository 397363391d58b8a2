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
//!
//! The arena ends after a few MiB, so that making it longer takes no time that anybody
//! would notice. What is beyond lies in segments, and a large block in one of its own,
//! which the system fills with zeros as it is touched: asking for one costs nothing.
//! Whatever is allocated here is asked for at the actor's [`Account`] before.

use std::{cell::Cell, mem, ops::Range};

use bytes::Bytes;

use parking_lot::Mutex;
use thiserror::Error;

use crate::account::{Account, OverHostMemory};

/// Bytes before the first block, since no handle is 0.
const ORIGIN: usize = 16;

/// The smallest block.
const SMALLEST: usize = 16;

/// Sizes of blocks: four between a power of two and the next.
const SIZES: usize = 4 * usize::BITS as usize;

/// No block, in a list of free ones.
const NONE: u32 = u32::MAX;

/// Bytes of the arena, and of a segment for several blocks, at most.
const SEGMENT: usize = 4 << 20;

/// The longest block: what 32 bits can address.
const MAX_BLOCK: u64 = 1 << 32;

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
    /// What does not fit there, in the order of their offsets. None between two calls.
    segments: Vec<Segment>,
    /// The segment that was looked at last.
    near: Cell<usize>,
    /// In the order of their offsets.
    blocks: Vec<Block>,
    /// For each size, the first free block, by its place in `blocks`.
    free: Box<[u32; SIZES]>,
    any_free: bool,
    input: Range<u64>,
    output: (u64, u64),
    error: u64,
}

/// Bytes behind the arena.
struct Segment {
    start: usize,
    bytes: Vec<u8>,
    /// Bytes that it may come to have.
    room: usize,
}

/// There is no room for a block.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum OutOfBlocks {
    /// No memory of a guest would hold it.
    #[error("out of memory: a block of {0} bytes, where 4 GiB can be addressed")]
    TooLong(u64),
    /// The host holds as much for the actor as it may.
    #[error("out of memory: {0}")]
    Over(#[from] OverHostMemory),
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
    /// No blocks.
    pub(crate) fn new() -> Self {
        Self {
            arena: Vec::new(),
            segments: Vec::new(),
            near: Cell::new(0),
            blocks: Vec::new(),
            free: Box::new([NONE; SIZES]),
            any_free: false,
            input: 0..0,
            output: (0, 0),
            error: 0,
        }
    }

    /// Begins a call whose input `write` appends; about `hint` bytes.
    ///
    /// # Errors
    /// The host holds too much for the actor already.
    pub(crate) fn begin(
        &mut self,
        hint: usize,
        account: &mut Account,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), OverHostMemory> {
        self.clear(account);
        account.take(self.arena.capacity() as u64)?;
        let (start, used) = if ORIGIN + hint <= SEGMENT {
            self.grow_arena(ORIGIN + hint, account)?;
            let room = self.arena.capacity();
            self.arena.resize(ORIGIN, 0);
            write(&mut self.arena);
            account.take((self.arena.capacity() - room) as u64)?;
            (ORIGIN, self.arena.len() - ORIGIN)
        } else {
            account.take(hint as u64)?;
            let mut bytes = Vec::with_capacity(hint);
            write(&mut bytes);
            account.take((bytes.capacity() - hint) as u64)?;
            let used = bytes.len();
            self.segments.push(Segment { start: SEGMENT, room: used, bytes });
            (SEGMENT, used)
        };
        if used > 0 {
            self.blocks.push(Block { start, capacity: used, used, live: true, next: NONE });
            self.input = start as u64..(start + used) as u64;
        }
        Ok(())
    }

    /// Ends a call. Nothing is left of it.
    pub(crate) fn end(&mut self, account: &mut Account) {
        self.clear(account);
        if self.arena.capacity() > KEPT {
            account.give_back(self.arena.capacity() as u64);
            SPARES.give(mem::take(&mut self.arena));
        }
        self.segments.shrink_to_fit();
        self.blocks.shrink_to(KEPT_BLOCKS);
    }

    /// Forgets every block: the guest may ask for that too.
    pub(crate) fn clear(&mut self, account: &mut Account) {
        self.arena.clear();
        self.blocks.clear();
        for segment in self.segments.drain(..) {
            account.give_back(segment.bytes.capacity() as u64);
        }
        if self.any_free {
            self.free.fill(NONE);
            self.any_free = false;
        }
        (self.input, self.output, self.error) = (0..0, (0, 0), 0);
    }

    /// The handle of a new block; 0 for one of no bytes.
    pub(crate) fn alloc(&mut self, asked: u64, account: &mut Account) -> Result<u64, OutOfBlocks> {
        if asked == 0 {
            return Ok(0);
        }
        let used = match usize::try_from(asked) {
            Ok(used) if asked <= MAX_BLOCK => used,
            _ => return Err(OutOfBlocks::TooLong(asked)),
        };
        let (size, capacity) = size_of_block(used);
        let first = self.free[size];
        if first != NONE {
            let block = &mut self.blocks[first as usize];
            self.free[size] = block.next;
            (block.used, block.live) = (used, true);
            return Ok(block.start as u64);
        }
        // A large block is as long as it must be, since rounding it up would waste much.
        let capacity = if capacity > SEGMENT { used.next_multiple_of(ORIGIN) } else { capacity };
        self.remember_another(account)?;
        let start = self.room_for(capacity, account)?;
        self.blocks.push(Block { start, capacity, used, live: true, next: NONE });
        Ok(start as u64)
    }

    /// Makes room for the record of another block.
    fn remember_another(&mut self, account: &mut Account) -> Result<(), OverHostMemory> {
        let there = self.blocks.capacity();
        if self.blocks.len() == there && there >= KEPT_BLOCKS {
            account.take((there * size_of::<Block>()) as u64)?;
            self.blocks.reserve_exact(there);
        }
        Ok(())
    }

    /// Where so many more bytes begin, which are zero.
    fn room_for(
        &mut self,
        capacity: usize,
        account: &mut Account,
    ) -> Result<usize, OverHostMemory> {
        let start = self.arena.len().max(ORIGIN);
        if self.segments.is_empty() && start + capacity <= SEGMENT {
            self.grow_arena(start + capacity, account)?;
            self.arena.resize(start + capacity, 0);
            return Ok(start);
        }
        if let Some(Segment { start, bytes, room }) = self.segments.last_mut()
            && bytes.len() + capacity <= *room
        {
            let at = *start + bytes.len();
            grow(bytes, bytes.len() + capacity, account)?;
            bytes.resize(bytes.len() + capacity, 0);
            return Ok(at);
        }
        let behind = SEGMENT.max(self.arena.len());
        let start = self.segments.last().map_or(behind, |last| last.start + last.room);
        let start = start.next_multiple_of(ORIGIN);
        let (bytes, room) = if capacity > SEGMENT / 2 {
            account.take(capacity as u64)?;
            (vec![0; capacity], capacity)
        } else {
            let mut bytes = Vec::new();
            grow(&mut bytes, capacity, account)?;
            bytes.resize(capacity, 0);
            (bytes, SEGMENT)
        };
        self.segments.push(Segment { start, bytes, room });
        Ok(start)
    }

    fn grow_arena(&mut self, needed: usize, account: &mut Account) -> Result<(), OverHostMemory> {
        if needed <= self.arena.capacity() {
            return Ok(());
        }
        if needed > KEPT
            && let Some(mut spare) = SPARES.take(needed)
        {
            let more = (spare.capacity() - self.arena.capacity()) as u64;
            if account.has_room(more) {
                account.take(more)?;
                spare.extend_from_slice(&self.arena);
                self.arena = spare;
                return Ok(());
            }
            SPARES.give(spare);
        }
        grow(&mut self.arena, needed, account)
    }

    /// The handle of a new block with these bytes; 0 for none.
    pub(crate) fn put(&mut self, bytes: &[u8], account: &mut Account) -> Result<u64, OutOfBlocks> {
        let handle = self.alloc(bytes.len() as u64, account)?;
        if handle != 0 {
            let start = offset(handle);
            let place = self.bytes_mut(start, bytes.len()).expect("the block was just made");
            place.copy_from_slice(bytes);
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
        self.bytes(block.start, block.used).ok_or(NoBlock(handle))
    }

    /// Bytes of a block; 0 for what is none.
    pub(crate) fn length(&self, handle: u64) -> u64 {
        self.find(handle).map_or(0, |index| self.blocks[index].used as u64)
    }

    pub(crate) fn load_u8(&self, at: u64) -> u8 {
        let byte = self.arena.get(offset(at)).copied();
        byte.or_else(|| self.bytes(offset(at), 1).map(|bytes| bytes[0])).unwrap_or(0)
    }

    pub(crate) fn load_u64(&self, at: u64) -> u64 {
        let bytes = self.arena.get(offset(at)..).and_then(|rest| rest.first_chunk());
        let bytes = bytes.or_else(|| self.bytes(offset(at), 8)?.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    pub(crate) fn store_u8(&mut self, at: u64, value: u8) {
        if let Some(byte) = self.arena.get_mut(offset(at)) {
            *byte = value;
        } else if let Some(bytes) = self.bytes_mut(offset(at), 1) {
            bytes[0] = value;
        }
    }

    pub(crate) fn store_u64(&mut self, at: u64, value: u64) {
        let bytes = self.arena.get_mut(offset(at)..).and_then(|rest| rest.first_chunk_mut());
        if let Some(bytes) = bytes {
            *bytes = value.to_le_bytes();
        } else if let Some(bytes) = self.bytes_mut(offset(at), 8) {
            bytes.copy_from_slice(&value.to_le_bytes());
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
        if let Some(end) = at.checked_add(length)
            && self.named(at, length).is_some()
        {
            self.input = at..end;
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

    /// What the guest has put out. A large output is not copied.
    ///
    /// # Errors
    /// It named bytes that do not exist, or there is no room for a copy: in words.
    pub(crate) fn take_output(&mut self, account: &mut Account) -> Result<Bytes, String> {
        let (at, length) = self.output;
        if length == 0 {
            return Ok(Bytes::new());
        }
        let Some(bytes) = self.named(at, length) else {
            return Err(format!("an output of {length} bytes, where it has none"));
        };
        let length = bytes.len();
        if let Some(index) = self.segment(offset(at))
            && self.segments[index].bytes.len() <= length + length / 4
        {
            let Segment { start, bytes, .. } = &mut self.segments[index];
            let from = offset(at) - *start;
            return Ok(Bytes::from(mem::take(bytes)).slice(from..from + length));
        }
        let room = account.take(length as u64);
        room.map_err(|over| format!("an output of {length} bytes; with it {over}"))?;
        Ok(Bytes::copy_from_slice(self.named(at, length as u64).unwrap_or_default()))
    }

    /// Names a block as the error; 0 takes the error back.
    pub(crate) fn set_error(&mut self, handle: u64) {
        if handle == 0 || self.bytes(offset(handle), 1).is_some() {
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
        let beyond: usize = self.segments.iter().map(|segment| segment.bytes.len()).sum();
        (self.arena.len() + beyond) as u64
    }

    /// The bytes that a guest has named, if they exist and are in one piece.
    fn named(&self, at: u64, length: u64) -> Option<&[u8]> {
        at.checked_add(length)?;
        self.bytes(offset(at), usize::try_from(length).ok()?)
    }

    /// `length` bytes from `at` on, where there are so many in one piece.
    fn bytes(&self, at: usize, length: usize) -> Option<&[u8]> {
        let (from, bytes) = match self.segment(at) {
            None => (at, &self.arena),
            Some(index) => (at - self.segments[index].start, &self.segments[index].bytes),
        };
        bytes.get(from..from.checked_add(length)?)
    }

    fn bytes_mut(&mut self, at: usize, length: usize) -> Option<&mut [u8]> {
        let (from, bytes) = match self.segment(at) {
            None => (at, &mut self.arena),
            Some(index) => {
                let Segment { start, bytes, .. } = &mut self.segments[index];
                (at - *start, bytes)
            }
        };
        bytes.get_mut(from..from.checked_add(length)?)
    }

    /// The segment in which an offset lies that is not in the arena, or the last before it.
    fn segment(&self, at: usize) -> Option<usize> {
        if at < SEGMENT || self.segments.is_empty() {
            return None;
        }
        // Guests go through their bytes one after the other.
        let near = self.near.get();
        let holds = |segment: &Segment| at >= segment.start && at - segment.start < segment.room;
        if self.segments.get(near).is_some_and(holds) {
            return Some(near);
        }
        let after = self.segments.partition_point(|segment| segment.start <= at);
        let index = after.checked_sub(1)?;
        self.near.set(index);
        Some(index)
    }

    fn find(&self, handle: u64) -> Option<usize> {
        let start = offset(handle);
        let index = match self.blocks.last() {
            Some(last) if last.start == start => self.blocks.len() - 1,
            _ => self.blocks.binary_search_by_key(&start, |block| block.start).ok()?,
        };
        self.blocks[index].live.then_some(index)
    }
}

/// Gives a vector the capacity for `needed` bytes, at least twice what it has: by steps,
/// so that each is short.
fn grow(bytes: &mut Vec<u8>, needed: usize, account: &mut Account) -> Result<(), OverHostMemory> {
    let there = bytes.capacity();
    if needed <= there {
        return Ok(());
    }
    let double = needed.max((2 * there).min(SEGMENT));
    // Where there is no room for twice as much there may still be for what is needed.
    let capacity = if account.has_room((double - there) as u64) { double } else { needed };
    account.take((capacity - there) as u64)?;
    bytes.reserve_exact(capacity - bytes.len());
    Ok(())
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if self.arena.capacity() > KEPT {
            SPARES.give(mem::take(&mut self.arena));
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

    /// Blocks with the account that pays for them.
    struct Rig {
        blocks: Blocks,
        account: Account,
    }

    impl std::ops::Deref for Rig {
        type Target = Blocks;

        fn deref(&self) -> &Blocks {
            &self.blocks
        }
    }

    impl std::ops::DerefMut for Rig {
        fn deref_mut(&mut self) -> &mut Blocks {
            &mut self.blocks
        }
    }

    impl Rig {
        fn new(limit: u64) -> Self {
            Self { blocks: Blocks::new(), account: Account::new(limit) }
        }

        fn begin(&mut self, input: &[u8]) {
            let (size, account) = (input.len(), &mut self.account);
            let begun = self.blocks.begin(size, account, |arena| arena.extend_from_slice(input));
            begun.unwrap();
        }

        fn alloc(&mut self, length: u64) -> Result<u64, OutOfBlocks> {
            self.blocks.alloc(length, &mut self.account)
        }

        fn put(&mut self, bytes: &[u8]) -> Result<u64, OutOfBlocks> {
            self.blocks.put(bytes, &mut self.account)
        }

        fn clear(&mut self) {
            self.blocks.clear(&mut self.account);
        }

        fn end(&mut self) {
            self.blocks.end(&mut self.account);
        }

        fn output(&mut self) -> Result<Bytes, String> {
            self.blocks.take_output(&mut self.account)
        }
    }

    fn blocks(input: &[u8]) -> Rig {
        let mut rig = Rig::new(1 << 20);
        rig.begin(input);
        rig
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
        let input = blocks.input_offset();
        blocks.free(input);
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
            if length > MAX_BLOCK {
                assert_eq!(blocks.alloc(length), Err(OutOfBlocks::TooLong(length)));
            }
            let count = (0..100_000).take_while(|_| blocks.alloc(length).is_ok()).count();
            assert!(count < 50_000, "{length}");
            assert!(blocks.size() <= 1 << 20 && blocks.account.held() <= 1 << 20);
        }
        let mut many = Rig::new(2000);
        let account = &mut many.account;
        let begun = many.blocks.begin(3000, account, |arena| arena.resize(3000, 1));
        assert!(begun.is_err(), "the input counts");
        assert_eq!(many.account.held(), 0);
        let account = &mut many.account;
        let begun = many.blocks.begin(2 * SEGMENT, account, |_| panic!("it has no room"));
        assert!(begun.is_err(), "a large one too");
        assert_eq!(many.account.held(), 0);
    }

    #[test]
    fn an_output_that_has_to_be_copied_counts() {
        let mut blocks = Rig::new(1 << 20);
        let handle = blocks.alloc(600_000).unwrap();
        blocks.set_output(handle, 300_000);
        let held = blocks.account.held();
        assert_eq!(blocks.output().map(|output| output.len()), Ok(300_000));
        assert_eq!(blocks.account.held(), held + 300_000);
        blocks.set_output(handle, 600_000);
        assert!(blocks.output().is_err_and(|why| why.contains("an output of 600000 bytes")));
    }

    #[test]
    fn what_fits_is_given_where_twice_as_much_would_not_fit() {
        // However large the arenas are that others have left.
        SPARES.give(Vec::with_capacity(SPARE_BYTES));
        let mut blocks = Rig::new(100_000);
        assert!(blocks.alloc(60_000).is_ok() && blocks.alloc(20_000).is_ok());
        assert!(blocks.alloc(20_000).is_err());
    }

    #[test]
    fn blocks_beyond_the_arena_hold_what_was_put_there() {
        const LARGE: usize = 3 * SEGMENT;
        let mut blocks = Rig::new(10 * LARGE as u64);
        blocks.begin(b"input");
        let small = blocks.put(b"small").unwrap();
        let large = blocks.alloc(LARGE as u64).unwrap();
        let more = blocks.put(b"more").unwrap();
        let second = blocks.alloc(LARGE as u64).unwrap();
        let last = LARGE as u64 - 8;
        blocks.store_u64(large + last, 7);
        blocks.store_u8(second + last, 9);
        // What begins in one block and ends beyond it is none.
        blocks.store_u64(large + last + 1, u64::MAX);
        assert_eq!((blocks.load_u64(large + last), blocks.load_u8(second + last)), (7, 9));
        assert_eq!((blocks.load_u64(large), blocks.load_u64(large + last + 1)), (0, 0));
        assert_eq!((blocks.get(small), blocks.get(more)), (Ok(&b"small"[..]), Ok(&b"more"[..])));
        assert_eq!(blocks.get(large).map(<[u8]>::len), Ok(LARGE));
        assert_eq!((blocks.length(large), blocks.length(large + 16)), (LARGE as u64, 0));
        blocks.free(large);
        assert_eq!(blocks.get(large), Err(NoBlock(large)));

        blocks.set_output(second, LARGE as u64);
        let held = blocks.account.held();
        let output = blocks.output().unwrap();
        assert_eq!((output.len(), output[LARGE - 8], blocks.account.held()), (LARGE, 9, held));
        blocks.end();
        assert_eq!((blocks.segments.len(), blocks.size()), (0, 0));
        let beside = blocks.account.held() - output.len() as u64;
        assert!(beside < SEGMENT as u64 / 2, "{beside} bytes beside the output");
    }

    #[test]
    fn a_large_input_is_a_block_like_any_other() {
        let input: Vec<u8> = (0..251).cycle().take(SEGMENT + 100).collect();
        let mut blocks = Rig::new(4 * SEGMENT as u64);
        blocks.begin(&input);
        assert_eq!(blocks.input_length(), input.len() as u64);
        let last = input.len() as u64 - 8;
        let expected = u64::from_le_bytes(*input.last_chunk().unwrap());
        assert_eq!((blocks.input_load_u64(last), blocks.input_load_u64(last + 1)), (expected, 0));
        let small = blocks.put(b"small").unwrap();
        assert_eq!(blocks.get(small), Ok(&b"small"[..]));
        let at = blocks.input_offset();
        assert_eq!(blocks.get(at).unwrap(), input);
    }

    #[test]
    fn nothing_is_left_of_a_call() {
        let mut blocks = blocks(b"input");
        let handle = blocks.put(&[7; 100_000]).unwrap();
        blocks.set_output(handle, 10);
        blocks.set_error(handle);
        (0..10 * KEPT_BLOCKS).for_each(|_| assert!(blocks.alloc(1).is_ok()));
        blocks.end();
        assert!(blocks.arena.capacity() <= KEPT && blocks.blocks.blocks.capacity() <= KEPT_BLOCKS);
        assert_eq!(
            (blocks.output(), blocks.error(), blocks.input_length()),
            (Ok(Bytes::new()), None, 0)
        );
        blocks.begin(b"");
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
        let mut blocks = Rig::new(1 << 20);
        for _ in 0..3 {
            blocks.begin(b"");
            let handle = blocks.alloc(KEPT as u64 * 2).unwrap();
            assert_eq!((handle, blocks.load_u8(handle)), (ORIGIN as u64, 0));
            blocks.store_u8(handle, 7);
            blocks.end();
        }
    }
}
