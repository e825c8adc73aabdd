//! The envelope of everything that is serialized: files of the store, messages between agents, states.
//!
//! A frame is a header of 32 bytes and a payload; all integers are little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `HOLOWIRE` |
//! | 8 | 2 | kind ([`Kind::id`]) |
//! | 10 | 2 | version of the payload's structure ([`Kind::version`]) |
//! | 12 | 4 | check of the header: first 4 bytes of the BLAKE3 of the other 28 |
//! | 16 | 8 | length of the payload |
//! | 24 | 8 | check of the payload: its BLAKE3's first 8 bytes |
//!
//! The payload is `serde` through `bincode` 1.3.3 with fixed-width integers. The checks find accidents, not
//! attackers: who may send is settled below (file modes, mutual TLS). What arrives is nevertheless parsed as
//! if an attacker wrote it: lengths are checked before anything is allocated, memory grows only with bytes
//! that really arrived, and bytes that are left over are an error.
//!
//! # Versions
//!
//! The header's layout never changes; another one would have another magic. A kind's version is raised with
//! every change of its structure, since `bincode` does not describe itself.
//!
//! * Newer than known: refused with [`WireError::NewerVersion`]; the bytes are left alone.
//! * Older than known: refused with [`WireError::OlderVersion`], unless the caller asks [`peek`] first and
//!   decodes with the older kind (and structure), which is kept as long as such files may exist.
//!
//! # Rules for structures
//!
//! No recursive types (the decoder's stack is not bounded), no sequences of zero-sized elements (their count
//! costs no bytes), byte strings with `#[serde(with = "holo_image::wire::bytes")]` (one copy, not one call a
//! byte).

pub mod bytes;
mod error;
mod header;
#[cfg(test)]
mod tests;

use std::io::{ErrorKind, Read, Write};

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

pub use error::WireError;
pub use header::{HEADER_BYTES, Header, MAGIC};

/// What a frame carries: a number and the version of its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Registered number, unique in holo.
    pub id: u16,
    /// Version of the structure that this program writes and reads.
    pub version: u16,
}

impl Kind {
    /// A kind. Numbers below 256 are registered here, as constants.
    pub const fn new(id: u16, version: u16) -> Kind {
        Kind { id, version }
    }

    /// An application's record in the store.
    pub const APP: Kind = Kind::new(1, 1);
    /// An epoch's manifest.
    pub const MANIFEST: Kind = Kind::new(2, 1);
    /// Where a manifest's pages lie in the local page files.
    pub const SLOTS: Kind = Kind::new(3, 1);
    /// What became known of an epoch after it was sealed.
    pub const SIDE: Kind = Kind::new(4, 1);
    /// An epoch as a change of another one.
    pub const DELTA: Kind = Kind::new(5, 1);
    /// Conversation of the command line with its agent.
    pub const LOCAL: Kind = Kind::new(16, 6);
    /// Conversation between agents.
    pub const PEER: Kind = Kind::new(17, 1);
    /// Raw pages between agents.
    pub const PAGES: Kind = Kind::new(18, 1);
    /// State of a resource kind, inside a section of a manifest.
    pub const STATE: Kind = Kind::new(32, 1);
}

/// A frame whose payload is checked but not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// Its kind, with the version that was found.
    pub kind: Kind,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// Decodes the payload as a `T` of `kind`.
    pub fn decode<T: DeserializeOwned>(&self, kind: Kind) -> Result<T, WireError> {
        header::expect(self.kind, kind)?;
        decode_payload(&self.payload)
    }
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_little_endian().reject_trailing_bytes()
}

/// A frame around `value`, in one piece.
///
/// Fails only if `value` cannot be serialized at all (a path that is not UTF-8, a sequence of unknown length).
pub fn encode<T: Serialize + ?Sized>(value: &T, kind: Kind) -> Result<Vec<u8>, WireError> {
    let bytes = options().serialized_size(value).map_err(|e| WireError::Encode(e.to_string()))?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + bytes as usize);
    frame.resize(HEADER_BYTES, 0);
    options().serialize_into(&mut frame, value).map_err(|e| WireError::Encode(e.to_string()))?;
    seal_frame(&mut frame, kind);
    Ok(frame)
}

/// A frame around bytes that are not serialized (pages, file contents).
pub fn encode_raw(payload: &[u8], kind: Kind) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend_from_slice(payload);
    seal_frame(&mut frame, kind);
    frame
}

fn seal_frame(frame: &mut [u8], kind: Kind) {
    let (head, payload) = frame.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(&Header::of(kind, payload).to_bytes());
}

/// Decodes exactly one frame; `limit` bounds the payload.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], kind: Kind, limit: u64) -> Result<T, WireError> {
    let (value, rest) = decode_prefix(bytes, kind, limit)?;
    if rest.is_empty() { Ok(value) } else { Err(WireError::Trailing { bytes: rest.len() as u64 }) }
}

/// Decodes the frame that `bytes` start with and returns what follows it.
pub fn decode_prefix<T: DeserializeOwned>(
    bytes: &[u8],
    kind: Kind,
    limit: u64,
) -> Result<(T, &[u8]), WireError> {
    let (payload, rest) = split(bytes, kind, limit)?;
    Ok((decode_payload(payload)?, rest))
}

/// Splits the checked payload of the frame that `bytes` start with from what follows it.
pub fn split(bytes: &[u8], kind: Kind, limit: u64) -> Result<(&[u8], &[u8]), WireError> {
    let header = peek(bytes)?;
    header::expect(header.kind, kind)?;
    let length = header.payload_bytes(limit)?;
    let body = &bytes[HEADER_BYTES..];
    if body.len() < length {
        return Err(WireError::TooShort { wanted: length as u64, found: body.len() as u64 });
    }
    let (payload, rest) = body.split_at(length);
    header.check(payload)?;
    Ok((payload, rest))
}

/// The header that `bytes` start with: magic and header check are verified, kind and version are not judged.
pub fn peek(bytes: &[u8]) -> Result<Header, WireError> {
    match bytes.first_chunk::<HEADER_BYTES>() {
        Some(head) => Header::from_bytes(head),
        // A foreign file may be short, too; say what helps more.
        None if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) => Err(WireError::BadMagic),
        None => Err(WireError::TooShort { wanted: HEADER_BYTES as u64, found: bytes.len() as u64 }),
    }
}

fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    options().with_limit(payload.len() as u64).deserialize(payload).map_err(|error| {
        // The only way in which the pinned bincode tells that it left bytes.
        let trailing = matches!(&*error, bincode::ErrorKind::Custom(why) if why.contains("bytes remaining"));
        if trailing { WireError::TrailingInside } else { WireError::Decode(error.to_string()) }
    })
}

/// Writes one frame with one `write_all` (two small writes would meet Nagle and delayed acknowledgements).
pub fn write_frame<T: Serialize + ?Sized>(
    out: &mut impl Write,
    value: &T,
    kind: Kind,
) -> Result<(), WireError> {
    out.write_all(&encode(value, kind)?).map_err(WireError::Io)
}

/// Writes one frame of raw bytes: header and payload are not copied together, so give it a large payload.
pub fn write_raw_frame(out: &mut impl Write, payload: &[u8], kind: Kind) -> Result<(), WireError> {
    if payload.len() < 64 * 1024 {
        return out.write_all(&encode_raw(payload, kind)).map_err(WireError::Io);
    }
    out.write_all(&Header::of(kind, payload).to_bytes()).map_err(WireError::Io)?;
    out.write_all(payload).map_err(WireError::Io)
}

/// Reads one frame of `kind`; `limit` bounds its payload.
///
/// The end of the stream before the first byte is [`WireError::Closed`], later it is [`WireError::TooShort`].
/// After any error but [`WireError::Decode`] and [`WireError::TrailingInside`] the stream has lost its place.
pub fn read_frame<T: DeserializeOwned>(
    input: &mut impl Read,
    kind: Kind,
    limit: u64,
) -> Result<T, WireError> {
    let header = read_header(input)?;
    header::expect(header.kind, kind)?;
    decode_payload(&read_payload(input, &header, limit)?)
}

/// Reads one frame of whatever kind and leaves it undecoded.
pub fn read_raw_frame(input: &mut impl Read, limit: u64) -> Result<RawFrame, WireError> {
    let header = read_header(input)?;
    Ok(RawFrame { kind: header.kind, payload: read_payload(input, &header, limit)? })
}

fn read_header(input: &mut impl Read) -> Result<Header, WireError> {
    let mut head = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match input.read(&mut head[filled..]) {
            Ok(0) if filled == 0 => return Err(WireError::Closed),
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(WireError::Io(e)),
        }
    }
    peek(&head[..filled])
}

fn read_payload(input: &mut impl Read, header: &Header, limit: u64) -> Result<Vec<u8>, WireError> {
    let length = header.payload_bytes(limit)?;
    // `read_to_end` grows with what arrives; the reservation spares small frames the growing.
    let mut payload = Vec::with_capacity(length.min(64 * 1024));
    input.by_ref().take(length as u64).read_to_end(&mut payload).map_err(WireError::Io)?;
    if payload.len() < length {
        return Err(WireError::TooShort { wanted: length as u64, found: payload.len() as u64 });
    }
    header.check(&payload)?;
    Ok(payload)
}
