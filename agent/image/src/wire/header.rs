//! The 32 bytes before every payload.

use super::{Kind, WireError};

/// First bytes of every frame.
pub const MAGIC: [u8; 8] = *b"HOLOWIRE";
/// Length of a header.
pub const HEADER_BYTES: usize = 32;

const KIND: usize = 8;
const VERSION: usize = 10;
const CHECK: usize = 12;
const LENGTH: usize = 16;
const SUM: usize = 24;
const _: () = assert!(SUM + 8 == HEADER_BYTES);

/// A header that was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Kind, with the version that was found.
    pub kind: Kind,
    /// Bytes of payload.
    pub length: u64,
    pub(super) sum: [u8; 8],
}

fn at<const N: usize>(bytes: &[u8; HEADER_BYTES], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

fn header_check(bytes: &[u8; HEADER_BYTES]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..CHECK]);
    hasher.update(&bytes[LENGTH..]);
    let mut check = [0; 4];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..4]);
    check
}

fn payload_sum(payload: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(payload).as_bytes()[..8]);
    sum
}

impl Header {
    /// The header of a payload.
    pub(super) fn of(kind: Kind, payload: &[u8]) -> Header {
        Header { kind, length: payload.len() as u64, sum: payload_sum(payload) }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..KIND].copy_from_slice(&MAGIC);
        bytes[KIND..VERSION].copy_from_slice(&self.kind.id.to_le_bytes());
        bytes[VERSION..CHECK].copy_from_slice(&self.kind.version.to_le_bytes());
        bytes[LENGTH..SUM].copy_from_slice(&self.length.to_le_bytes());
        bytes[SUM..].copy_from_slice(&self.sum);
        let check = header_check(&bytes);
        bytes[CHECK..LENGTH].copy_from_slice(&check);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
        if at::<8>(bytes, 0) != MAGIC {
            return Err(WireError::BadMagic);
        }
        // Before the version is believed: a flipped bit must not read as "newer".
        if at::<4>(bytes, CHECK) != header_check(bytes) {
            return Err(WireError::BadChecksum { part: "header" });
        }
        let kind = Kind::new(u16::from_le_bytes(at(bytes, KIND)), u16::from_le_bytes(at(bytes, VERSION)));
        Ok(Header { kind, length: u64::from_le_bytes(at(bytes, LENGTH)), sum: at(bytes, SUM) })
    }

    /// Bytes of the payload, if at most `limit`.
    pub(super) fn payload_bytes(&self, limit: u64) -> Result<usize, WireError> {
        let too_long = WireError::TooLong { found: self.length, limit };
        if self.length > limit { Err(too_long) } else { usize::try_from(self.length).map_err(|_| too_long) }
    }

    pub(super) fn check(&self, payload: &[u8]) -> Result<(), WireError> {
        if payload_sum(payload) == self.sum {
            Ok(())
        } else {
            Err(WireError::BadChecksum { part: "payload" })
        }
    }
}

/// Judges the kind and version that were found.
pub(super) fn expect(found: Kind, wanted: Kind) -> Result<(), WireError> {
    if found.id != wanted.id {
        return Err(WireError::WrongKind { found: found.id, wanted: wanted.id });
    }
    match found.version {
        v if v > wanted.version => Err(WireError::NewerVersion { found: v, supported: wanted.version }),
        v if v < wanted.version => Err(WireError::OlderVersion { found: v, supported: wanted.version }),
        _ => Ok(()),
    }
}
