//! Call-site tables and the modules that they are made from.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = holo_sites::parse(bytes);
    if let Ok(table) = holo_sites::build_from_bytes(bytes) {
        holo_sites::parse(&table).expect("what was made can be read");
    }
});
