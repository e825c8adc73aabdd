//! Messages of the local conversation and between agents, and the states of resource kinds: any payload gives
//! an error or a value that encodes to the same bytes again.
#![no_main]

use holo_api::local::{Reply, Request};
use holo_image::wire::{self, Kind};
use holo_rm::kinds::memory::MemoryState;
use holo_rm::kinds::process::ProcessState;
use holo_rm::kinds::signals::SignalsState;
use holo_rm::kinds::threads::ThreadsState;
use holo_rm::kinds::timers::TimersState;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

const LIMIT: u64 = 1 << 20;

fn check<T: Serialize + DeserializeOwned>(payload: &[u8], kind: Kind) {
    let frame = wire::encode_raw(payload, kind);
    if let Ok(value) = wire::decode::<T>(&frame, kind, LIMIT) {
        assert_eq!(wire::encode(&value, kind).expect("it was decoded"), frame);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, payload)) = bytes.split_first() else { return };
    let section = Kind::new(32, 1);
    match which % 10 {
        0 => check::<Request>(payload, Kind::LOCAL),
        1 => check::<Reply>(payload, Kind::LOCAL),
        2 => check::<holo_api::peer::AppMsg>(payload, Kind::PEER),
        3 => check::<holo_api::peer::Transfer>(payload, Kind::PEER),
        4 => check::<holo_api::peer::Order>(payload, Kind::PEER),
        5 => check::<ProcessState>(payload, section),
        6 => check::<ThreadsState>(payload, section),
        7 => check::<SignalsState>(payload, section),
        8 => check::<TimersState>(payload, section),
        _ => check::<MemoryState>(payload, section),
    }
});
