//! Packed files: as they come, and with a structure and blocks of any bytes behind right checksums, so that what the checksums
//! keep out is reached, too.
#![no_main]

use std::io::{Cursor, Read};

use holo_cfor::ContentSource;
use holo_cfor::pack::Packed;
use libfuzzer_sys::fuzz_target;

const READ_MAX: u64 = 1 << 20;

fn read(bytes: Vec<u8>) {
    let Ok(packed) = Packed::open(Cursor::new(bytes)) else { return };
    let (captured, mut contents) = packed.split();
    captured.validate().expect("what was opened keeps all rules");
    for piece in captured.contents.values() {
        let reader = contents.open(piece).expect("it names contents of its own");
        // Blocks may be damaged; nothing else may happen.
        let _ = reader.take(READ_MAX).read_to_end(&mut Vec::new());
    }
}

fn check(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().as_bytes()[..16].try_into().expect("16 of 32")
}

/// A file of this version with this structure and these blocks.
fn sealed(version: u32, structure: &[u8], blocks: &[&[u8]]) -> Vec<u8> {
    let stored = lz4_flex::block::compress(structure);
    let mut file = b"HOLOCFOR".to_vec();
    file.extend(version.to_le_bytes());
    file.extend((structure.len() as u64).to_le_bytes());
    file.extend((stored.len() as u64).to_le_bytes());
    file.extend(check(&[&file, &stored]));
    file.extend(stored);
    let mut index = Vec::new();
    for block in blocks {
        let is_plain = u32::from(block.first().is_some_and(|byte| byte & 1 == 0)) << 31;
        index.extend((block.len() as u32 | is_plain).to_le_bytes());
        index.extend(check(&[block]));
        file.extend_from_slice(block);
    }
    file.extend(&index);
    file.extend(check(&[&index]));
    file.extend(b"HOLOPEND");
    file
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes.to_vec());
    if let Some((cut, rest)) = bytes.split_first() {
        let (structure, blocks) = rest.split_at(rest.len() * usize::from(*cut) / 256);
        let count = usize::from(cut % 4);
        let blocks: Vec<_> =
            if count == 0 { Vec::new() } else { blocks.chunks(blocks.len() / count + 1).collect() };
        read(sealed(1, structure, &blocks));
        read(sealed(2, structure, &blocks));
        read(sealed(3, structure, &blocks));
    }
});
