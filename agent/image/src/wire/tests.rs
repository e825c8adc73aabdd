//! Goal: frames are what the documentation says (golden bytes), round-trip, and every way of damaging one is
//! told apart. Method: hand-made frames, each byte of one flipped, each prefix of one, random values.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, io};

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

const KIND: Kind = Kind::new(0x1234, 7);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    Pair(u8, i64),
    Named { text: String, list: Vec<u16> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Value {
    flag: bool,
    some: Option<u32>,
    shapes: Vec<Shape>,
    map: BTreeMap<String, u64>,
    #[serde(with = "super::bytes")]
    bytes: Vec<u8>,
}

fn value() -> Value {
    Value {
        flag: true,
        some: Some(0xaabb_ccdd),
        shapes: vec![Shape::Unit, Shape::Pair(1, -2), Shape::Named { text: "ü".into(), list: vec![3, 4] }],
        map: BTreeMap::from([("k".into(), 5)]),
        bytes: vec![9, 8, 7],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden_bytes() {
    let frame = encode(&value(), KIND).unwrap();
    let golden = concat!(
        "484f4c4f57495245", // HOLOWIRE
        "3412",
        "0700",
        "1b5f7bb5",
        "5d00000000000000",
        "3de8c076f63d816a",
        "01", // flag
        "01",
        "ddccbbaa",         // some
        "0300000000000000", // three shapes
        "00000000",         // Unit
        "01000000",
        "01",
        "feffffffffffffff", // Pair
        "02000000",
        "0200000000000000",
        "c3bc", // Named.text
        "0200000000000000",
        "0300",
        "0400", // Named.list
        "0100000000000000",
        "0100000000000000",
        "6b",
        "0500000000000000", // map
        "0300000000000000",
        "090807", // bytes
    );
    assert_eq!(hex(&frame), golden);
    assert_eq!(decode::<Value>(&frame, KIND, 1000).unwrap(), value());
}

#[test]
fn empty_payload_and_plain_vec_bytes() {
    assert_eq!(encode(&(), KIND).unwrap().len(), HEADER_BYTES);
    decode::<()>(&encode(&(), KIND).unwrap(), KIND, 0).unwrap();

    #[derive(Serialize)]
    struct Fast(#[serde(with = "super::bytes")] Vec<u8>);
    assert_eq!(encode(&Fast(vec![1, 2]), KIND).unwrap(), encode(&vec![1u8, 2], KIND).unwrap());
}

#[test]
fn each_flipped_bit_is_found() {
    let frame = encode(&value(), KIND).unwrap();
    for bit in 0..frame.len() * 8 {
        let mut bad = frame.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = decode::<Value>(&bad, KIND, 1000).unwrap_err();
        match bit / 8 {
            0..8 => assert!(matches!(error, WireError::BadMagic), "{bit}: {error}"),
            8..HEADER_BYTES => {
                assert!(matches!(error, WireError::BadChecksum { part: "header" }), "{bit}: {error}")
            }
            _ => assert!(matches!(error, WireError::BadChecksum { part: "payload" }), "{bit}: {error}"),
        }
    }
}

#[test]
fn each_prefix_is_too_short() {
    let frame = encode(&value(), KIND).unwrap();
    for length in 0..frame.len() {
        let error = decode::<Value>(&frame[..length], KIND, 1000).unwrap_err();
        assert!(matches!(error, WireError::TooShort { .. }), "{length}: {error}");
        let error = read_frame::<Value>(&mut &frame[..length], KIND, 1000).unwrap_err();
        match length {
            0 => assert!(matches!(error, WireError::Closed), "{error}"),
            _ => assert!(matches!(error, WireError::TooShort { .. }), "{length}: {error}"),
        }
    }
}

#[test]
fn other_errors_are_told_apart() {
    let frame = encode(&value(), KIND).unwrap();
    let payload = (frame.len() - HEADER_BYTES) as u64;
    let error = |bytes: &[u8], kind, limit| decode::<Value>(bytes, kind, limit).unwrap_err();

    assert!(matches!(error(b"\x7fELF", KIND, 1000), WireError::BadMagic));
    assert!(matches!(error(&[0; 500], KIND, 1000), WireError::BadMagic));
    assert!(matches!(
        error(&frame, Kind::new(1, 7), 1000),
        WireError::WrongKind { found: 0x1234, wanted: 1 }
    ));
    assert!(matches!(
        error(&frame, Kind::new(0x1234, 6), 1000),
        WireError::NewerVersion { found: 7, supported: 6 }
    ));
    assert!(matches!(
        error(&frame, Kind::new(0x1234, 8), 1000),
        WireError::OlderVersion { found: 7, supported: 8 }
    ));
    assert!(matches!(error(&frame, KIND, payload - 1), WireError::TooLong { .. }));
    decode::<Value>(&frame, KIND, payload).unwrap();

    let mut longer = frame.clone();
    longer.push(0);
    assert!(matches!(error(&longer, KIND, 1000), WireError::Trailing { bytes: 1 }));
    assert!(matches!(
        decode::<bool>(&encode(&(true, 1u8), KIND).unwrap(), KIND, 10).unwrap_err(),
        WireError::TrailingInside
    ));
    assert!(matches!(
        decode::<u64>(&encode(&1u8, KIND).unwrap(), KIND, 10).unwrap_err(),
        WireError::Decode(_)
    ));
    assert!(matches!(
        decode::<bool>(&encode(&2u8, KIND).unwrap(), KIND, 10).unwrap_err(),
        WireError::Decode(_)
    ));
}

/// Ends after a few bytes, and would show a reservation of what is announced.
#[test]
fn an_announced_length_allocates_nothing() {
    let header = Header::of(KIND, &[]);
    let lie = Header { length: 1 << 46, ..header }.to_bytes();
    let mut stream: &[u8] = &lie;
    assert!(matches!(read_raw_frame(&mut stream, u64::MAX), Err(WireError::TooShort { .. })));
    // Inside a payload: lengths of vectors and strings.
    for payload in [&u64::MAX.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()] {
        let frame = encode_raw(payload, KIND);
        assert!(matches!(decode::<Vec<u64>>(&frame, KIND, 100), Err(WireError::Decode(_))));
        assert!(matches!(decode::<String>(&frame, KIND, 100), Err(WireError::Decode(_))));
        assert!(matches!(decode::<Vec<Vec<[u64; 30]>>>(&frame, KIND, 100), Err(WireError::Decode(_))));
    }
}

/// Gives one byte a call and interruptions in between.
struct Dribble<'a>(&'a [u8], bool);

impl Read for Dribble<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(ErrorKind::Interrupted.into());
        }
        let n = self.0.len().min(into.len()).min(1);
        into[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

#[test]
fn a_stream_of_frames() {
    let mut stream = Vec::new();
    write_frame(&mut stream, &value(), KIND).unwrap();
    write_raw_frame(&mut stream, &[5; 100_000], Kind::PAGES).unwrap();
    write_frame(&mut stream, "end", KIND).unwrap();

    let mut input = Dribble(&stream, false);
    assert_eq!(read_frame::<Value>(&mut input, KIND, 1000).unwrap(), value());
    let raw = read_raw_frame(&mut input, 100_000).unwrap();
    assert_eq!((raw.kind, raw.payload.len()), (Kind::PAGES, 100_000));
    let raw = read_raw_frame(&mut input, 100).unwrap();
    assert_eq!(raw.decode::<String>(KIND).unwrap(), "end");
    assert!(matches!(raw.decode::<String>(Kind::PAGES), Err(WireError::WrongKind { .. })));
    assert!(matches!(read_raw_frame(&mut input, 100), Err(WireError::Closed)));
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::Unit),
        any::<(u8, i64)>().prop_map(|(a, b)| Shape::Pair(a, b)),
        (".*", any::<Vec<u16>>()).prop_map(|(text, list)| Shape::Named { text, list }),
    ]
}

proptest! {
    #[test]
    fn values_round_trip(
        flag: bool, some: Option<u32>, shapes in prop::collection::vec(shapes(), 0..8),
        map: BTreeMap<String, u64>, bytes: Vec<u8>,
    ) {
        let value = Value { flag, some, shapes, map, bytes };
        let frame = encode(&value, KIND).unwrap();
        prop_assert_eq!(decode::<Value>(&frame, KIND, 1 << 20).unwrap(), value);
    }

    #[test]
    fn any_payload_decodes_or_fails_cleanly(payload: Vec<u8>) {
        let frame = encode_raw(&payload, KIND);
        // Most fail; what decodes can be encoded and decoded again.
        if let Ok(value) = decode::<Value>(&frame, KIND, 1 << 20) {
            let again = encode(&value, KIND).unwrap();
            prop_assert_eq!(decode::<Value>(&again, KIND, 1 << 20).unwrap(), value);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>) {
        prop_assert!(decode::<Value>(&bytes, KIND, 1 << 20).is_err());
        prop_assert!(read_raw_frame(&mut &bytes[..], 1 << 20).is_err());
    }
}
