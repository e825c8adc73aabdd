//! Manifests: any payload is refused or is a manifest that can be walked and encoded again to the same bytes.
#![no_main]

use holo_image::{Manifest, wire};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let frame = wire::encode_raw(payload, wire::Kind::MANIFEST);
    let Ok(manifest) = Manifest::parse(&frame) else { return };
    assert_eq!(manifest.to_frame().expect("decoded, so encodable"), frame);
    assert!(manifest.keys().len() as u64 <= manifest.page_count());
    assert_eq!(manifest.references().filter(|key| key.is_zero()).count(), 0);
});
