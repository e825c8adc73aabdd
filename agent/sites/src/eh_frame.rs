//! Function ranges from `.eh_frame` (LSB core, "Exception Frames").
//!
//! Stripped libraries keep their unwind entries, and hand-written assembly in libc carries them too, so
//! they name nearly every function start.

use std::collections::HashMap;

use crate::module::Function;

/// Pointer encodings (`DW_EH_PE_*`): format in the low half, base in the high half.
const FORMAT_MASK: u8 = 0x0f;
const BASE_MASK: u8 = 0x70;
const INDIRECT: u8 = 0x80;
const BASE_ABSOLUTE: u8 = 0x00;
const BASE_PC: u8 = 0x10;

/// What a common entry says about the function entries that name it.
#[derive(Clone, Copy)]
struct Common {
    encoding: u8,
    signal_frame: bool,
}

/// A reader that yields `None` past its end.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let value = self.bytes.get(self.at..self.at.checked_add(N)?)?.try_into().ok()?;
        self.at += N;
        Some(value)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn leb128(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A number in the format part of `encoding`, sign-extended.
    fn number(&mut self, encoding: u8) -> Option<u64> {
        match encoding & FORMAT_MASK {
            0x02 => self.take().map(|b| u64::from(u16::from_le_bytes(b))),
            0x03 => self.take().map(|b| u64::from(u32::from_le_bytes(b))),
            0x00 | 0x04 | 0x0c => self.take().map(u64::from_le_bytes),
            0x0a => self.take().map(|b| i64::from(i16::from_le_bytes(b)) as u64),
            0x0b => self.take().map(|b| i64::from(i32::from_le_bytes(b)) as u64),
            _ => None,
        }
    }

    /// A pointer in `encoding`, for a section at `addr`.
    fn pointer(&mut self, encoding: u8, addr: u64) -> Option<u64> {
        if encoding & INDIRECT != 0 {
            return None;
        }
        let here = addr.wrapping_add(self.at as u64);
        let value = self.number(encoding)?;
        match encoding & BASE_MASK {
            BASE_ABSOLUTE => Some(value),
            BASE_PC => Some(value.wrapping_add(here)),
            _ => None,
        }
    }
}

/// Address of `.eh_frame` as the `.eh_frame_hdr` at `addr` gives it.
pub(crate) fn frame_addr(addr: u64, bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader { bytes, at: 0 };
    let [version, encoding, _, _] = reader.take()?;
    if version != 1 {
        return None;
    }
    reader.pointer(encoding, addr)
}

/// The functions that the frame entries at `addr` describe. An entry that cannot be read is left out.
pub(crate) fn functions(addr: u64, bytes: &[u8]) -> Vec<Function> {
    let mut commons = HashMap::new();
    let mut found = Vec::new();
    let mut reader = Reader { bytes, at: 0 };
    while let Some(length) = reader.take().map(u32::from_le_bytes) {
        let length = match length {
            0 => break,
            u32::MAX => reader.take().map(u64::from_le_bytes),
            short => Some(u64::from(short)),
        };
        let Some(end) = length.and_then(|l| reader.at.checked_add(usize::try_from(l).ok()?)) else { break };
        let id_at = reader.at;
        let Some(body) = bytes.get(..end) else { break };
        let mut entry = Reader { bytes: body, at: id_at };
        match entry.take().map(u32::from_le_bytes) {
            None => break,
            Some(0) => {
                if let Some(common) = common(&mut entry) {
                    commons.insert(id_at - 4, common);
                }
            }
            Some(back) => {
                let common = id_at.checked_sub(back as usize).and_then(|at| commons.get(&at));
                found.extend(common.and_then(|common| function(&mut entry, *common, addr)));
            }
        }
        reader.at = end;
    }
    found
}

fn common(entry: &mut Reader<'_>) -> Option<Common> {
    let version = entry.u8()?;
    let mut augmentation = Vec::new();
    loop {
        match entry.u8()? {
            0 => break,
            letter => augmentation.push(letter),
        }
    }
    entry.leb128()?; // code alignment
    entry.leb128()?; // data alignment: signed, but only skipped
    if version == 1 {
        entry.u8().map(u64::from)?
    } else {
        entry.leb128()?
    }; // return-address register
    let mut common = Common { encoding: 0, signal_frame: false };
    if augmentation.first() == Some(&b'z') {
        entry.leb128()?;
    }
    for letter in augmentation.iter().skip_while(|l| **l == b'z') {
        match letter {
            b'R' => common.encoding = entry.u8()?,
            b'L' => drop(entry.u8()?),
            b'P' => {
                let encoding = entry.u8()?;
                entry.number(encoding)?;
            }
            b'S' => common.signal_frame = true,
            b'B' => (),
            _ => return None,
        }
    }
    Some(common)
}

fn function(entry: &mut Reader<'_>, common: Common, addr: u64) -> Option<Function> {
    let start = entry.pointer(common.encoding, addr)?;
    let len = entry.number(common.encoding & FORMAT_MASK)?;
    let end = start.checked_add(len)?;
    // A signal trampoline's entry begins one byte before its first instruction, so that an unwinder which
    // looks up the byte before a return address finds it.
    Some(Function { start: start.checked_add(u64::from(common.signal_frame))?, end })
}
