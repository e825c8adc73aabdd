//! Frames: any bytes give an error or a value, from memory and from a stream alike, and a frame around them
//! is found out only by what is in it.
#![no_main]

use std::collections::BTreeMap;

use holo_image::wire::{self, Kind};
use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    Pair(u8, i64),
    Named { text: String, list: Vec<u16> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Value {
    flag: bool,
    some: Option<u32>,
    shapes: Vec<Shape>,
    map: BTreeMap<String, u64>,
    #[serde(with = "wire::bytes")]
    bytes: Vec<u8>,
}

fuzz_target!(|bytes: &[u8]| {
    let kind = Kind::new(7, 1);
    let limit = 1 << 16;
    let raw = wire::read_raw_frame(&mut &bytes[..], limit);
    let whole = wire::decode_prefix::<Value>(bytes, kind, limit);
    if let Ok((value, _)) = &whole {
        assert_eq!(raw.expect("the stream has the same bytes").decode::<Value>(kind).expect("same"), *value);
    }

    let framed = wire::encode_raw(bytes, kind);
    let from_stream = wire::read_frame::<Value>(&mut &framed[..], kind, u64::MAX);
    match wire::decode::<Value>(&framed, kind, u64::MAX) {
        Ok(value) => {
            assert_eq!(from_stream.expect("same bytes"), value);
            let again = wire::encode(&value, kind).expect("decoded, so encodable");
            assert_eq!(wire::decode::<Value>(&again, kind, u64::MAX).expect("own frame"), value);
        }
        Err(_) => assert!(from_stream.is_err()),
    }
});
