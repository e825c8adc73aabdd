//! BLAKE3 of many pages at once, three times as fast as of one after the other.
//!
//! A page is four chunks, which by itself fill a quarter of what a processor's widest registers take; those of several pages fill
//! them. The library does that for the chunks of one long input only, but lets its own benchmarks at what it is made of:
//! that is used here, of exactly the version that the workspace names, and compared with whole hashes in the tests.

use blake3::{IncrementCounter, platform::Platform};

use crate::key::{PAGE_BYTES, Page};

/// Pages that are hashed at once.
pub(crate) const PAGES: usize = 16;
/// Of BLAKE3: bytes of a chunk, of two hashes, of one.
const CHUNK_BYTES: usize = 1024;
const PAIR_BYTES: usize = 2 * HASH_BYTES;
const HASH_BYTES: usize = blake3::OUT_LEN;
const CHUNKS: usize = PAGE_BYTES / CHUNK_BYTES;
/// Of BLAKE3: what a hash begins with.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// Of BLAKE3: what marks the first block of a chunk, the last one, a pair, and the last pair.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;

type Hash = [u8; HASH_BYTES];

/// Hashes of [`PAGES`] pages at most, in their order.
pub(crate) fn hashes(pages: &[&Page]) -> impl Iterator<Item = Hash> + use<> {
    let (platform, count) = (Platform::detect(), pages.len());
    // Of each page those of its chunks, one after the other.
    let mut chunks = [[0; HASH_BYTES]; PAGES * CHUNKS];
    for chunk in 0..CHUNKS {
        let mut inputs = [&[0; CHUNK_BYTES]; PAGES];
        for (input, page) in inputs.iter_mut().zip(pages) {
            *input = &page.as_chunks().0[chunk];
        }
        let mut out = [[0; HASH_BYTES]; PAGES];
        let (number, none) = (chunk as u64, IncrementCounter::No);
        let out_bytes = out.as_flattened_mut();
        platform.hash_many(&inputs[..count], &IV, number, none, 0, CHUNK_START, CHUNK_END, out_bytes);
        out.iter().enumerate().for_each(|(page, hash)| chunks[page * CHUNKS + chunk] = *hash);
    }
    let mut halves = [[0; HASH_BYTES]; PAGES * CHUNKS / 2];
    pairs(platform, &chunks[..count * CHUNKS], PARENT, &mut halves);
    let mut whole = [[0; HASH_BYTES]; PAGES];
    pairs(platform, &halves[..count * CHUNKS / 2], PARENT | ROOT, &mut whole);
    whole.into_iter().take(count)
}

/// Hashes of pairs of hashes, at most `2 * PAGES`.
fn pairs(platform: Platform, hashes: &[Hash], flags: u8, out: &mut [Hash]) {
    let (pairs, _) = hashes.as_flattened().as_chunks::<PAIR_BYTES>();
    let mut inputs = [&[0; PAIR_BYTES]; PAGES * CHUNKS / 2];
    inputs.iter_mut().zip(pairs).for_each(|(input, pair)| *input = pair);
    platform.hash_many(
        &inputs[..pairs.len()],
        &IV,
        0,
        IncrementCounter::No,
        flags,
        0,
        0,
        out.as_flattened_mut(),
    );
}
