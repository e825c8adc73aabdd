//! File trees out of an image: decoding checks every rule.
#![no_main]

use holo_cfor::{Captured, CapturedByInode, CapturedWithoutFlags};
use holo_image::Blob;
use holo_image::wire::{self, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let kind = Kind::new(32, 1);
    let frame = wire::encode_raw(bytes, kind);
    if let Ok(captured) = wire::decode::<Captured<Blob>>(&frame, kind, 1 << 20) {
        let _ = captured.validate();
    }
    if let Ok(CapturedWithoutFlags(captured)) =
        wire::decode::<CapturedWithoutFlags<Blob>>(&frame, kind, 1 << 20)
    {
        let _ = captured.validate();
    }
    if let Ok(CapturedByInode(captured)) = wire::decode::<CapturedByInode<Blob>>(&frame, kind, 1 << 20) {
        let _ = captured.validate();
    }
});
