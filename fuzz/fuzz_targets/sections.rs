//! States of kinds in an image, and the agent's own sections: whoever made it chose every byte.
#![no_main]

use holo_image::Blob;
use holo_image::wire::{self, Kind};
use holo_rm::kinds::ptys::TerminalsState;
use holo_rm::kinds::stops::StopsState;
use holo_rm::kinds::{aio, sysv_msg, sysv_sem};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let kind = Kind::new(32, 1);
    let frame = wire::encode_raw(bytes, kind);
    let _ = sysv_sem::is_sound(&frame, 3);
    let _ = sysv_msg::is_sound(&frame);
    let _ = aio::is_sound(&frame);
    if let Ok(state) = wire::decode::<StopsState>(&frame, kind, 1 << 20)
        && state.check(&[1, 2, 3]).is_ok()
    {
        assert!(state.stops.len() <= 3);
    }
    // Section `changes`: addresses of the table of file changes; `files`: the content that has the trees.
    let _ = wire::decode::<Vec<u64>>(&frame, kind, 1 << 20);
    let _ = wire::decode::<Blob>(&frame, kind, 1 << 20).map(|blob| blob.check());
    if let Ok(state) = wire::decode::<TerminalsState>(&frame, kind, 1 << 20)
        && state.check(3).is_ok()
    {
        assert!(state.ptys.len() <= 4096);
    }
});
