//! What is read from `/proc` and out of a vdso: a process chooses names and, in an image, every byte.
#![no_main]

use holo_rm::kinds::{vdso, zones};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut all) = zones::parse(bytes) {
        all.sort_by_key(|zone| zone.start);
        zones::add_flags(&mut all.iter_mut().collect::<Vec<_>>(), bytes);
    }
    let _ = vdso::functions(bytes);
    let (old, new) = bytes.split_at(bytes.len() / 2);
    let _ = vdso::stand_in(old, new, 0x7fff_0000_0000);
});
