//! Manifests, whole ones and changes: any payload is refused or is one that can be walked and encoded again to the same bytes.
#![no_main]

use holo_image::{Delta, Manifest, wire};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let frame = wire::encode_raw(payload, wire::Kind::DELTA);
    if let Ok(delta) = Delta::parse(&frame) {
        assert_eq!(wire::encode(&delta, wire::Kind::DELTA).expect("decoded, so encodable"), frame);
        assert_eq!(delta.references().filter(|key| key.is_zero()).count(), 0);
    }
    let frame = wire::encode_raw(payload, wire::Kind::MANIFEST);
    let Ok(manifest) = Manifest::parse(&frame) else { return };
    // Runs that touch are one run then.
    let again = manifest.to_frame().expect("decoded, so encodable");
    assert_eq!(Manifest::parse(&again).expect("as before"), manifest);
    assert!(manifest.keys().len() as u64 <= manifest.page_count());
    assert_eq!(manifest.references().filter(|key| key.is_zero()).count(), 0);
});
