//! The table as bytes: written from a plan, read from anywhere.

use holo_abi::VERSION;
use holo_abi::sites::{FIXUP_GATE, FIXUP_MODULE, Fixup, MAGIC, Site, TableHeader};

use crate::Error;
use crate::window::Plan;

const HEADER_BYTES: usize = size_of::<TableHeader>();
const SITE_BYTES: usize = size_of::<Site>();
const FIXUP_BYTES: usize = size_of::<Fixup>();
const EXPECT_BYTES: usize = 32;
const BUILD_ID_BYTES: usize = 20;
/// The trampoline area keeps each trampoline on its own 16 bytes.
const CODE_ALIGN: usize = 16;
/// Shortest trampoline: `lea`, `jmp gate`, `syscall`, `nop`, `jmp back`.
const CODE_BYTES_MIN: usize = 20;

/// A table that has been checked.
#[derive(Clone, Debug)]
pub struct Table<'a> {
    /// The module's build-id; empty if it has none.
    pub build_id: &'a [u8],
    /// `syscall` instructions of the module that are not in the table.
    pub left: u32,
    /// Bytes of memory for all trampolines.
    pub code_bytes: u32,
    /// Sites by address; their windows do not overlap.
    pub sites: Vec<SiteView<'a>>,
}

/// One call site of a table, see [`Site`].
#[derive(Clone, Debug)]
pub struct SiteView<'a> {
    /// First byte overwritten, module-relative.
    pub patch_at: u32,
    /// Address of the `syscall`, module-relative.
    pub syscall_at: u32,
    /// Call number where it is known.
    pub nr: Option<u16>,
    /// The bytes overwritten.
    pub expect: &'a [u8],
    /// Offset of the `syscall` in `code`.
    pub raw_at: u16,
    /// The trampoline, zeros where fixups go.
    pub code: &'a [u8],
    /// What to complete in it.
    pub fixups: Vec<Fixup>,
}

impl SiteView<'_> {
    /// First address after the bytes overwritten.
    #[must_use]
    pub fn patch_end(&self) -> u64 {
        u64::from(self.patch_at) + self.expect.len() as u64
    }
}

/// Writes a plan as a table.
pub(crate) fn encode(build_id: &[u8], plan: &Plan) -> Result<Vec<u8>, Error> {
    let too_large = || Error::Elf("too much code for a call-site table".into());
    let mut out = vec![0; HEADER_BYTES];
    let mut code_bytes = 0usize;
    for site in &plan.sites {
        let made = &site.trampoline;
        code_bytes += made.code.len().next_multiple_of(CODE_ALIGN);
        out.extend(site.patch_at.to_le_bytes());
        out.extend(site.syscall_at.to_le_bytes());
        out.extend(made.raw_at.to_le_bytes());
        out.extend(u16::try_from(made.code.len()).map_err(|_| too_large())?.to_le_bytes());
        out.push(u8::try_from(site.expect.len()).map_err(|_| too_large())?);
        out.push(u8::try_from(made.fixups.len()).map_err(|_| too_large())?);
        out.extend(site.nr.to_le_bytes());
        let mut expect = [0; EXPECT_BYTES];
        expect.get_mut(..site.expect.len()).ok_or_else(too_large)?.copy_from_slice(&site.expect);
        out.extend(expect);
        out.extend(&made.code);
        for fixup in &made.fixups {
            out.extend(fixup.at.to_le_bytes());
            out.extend(fixup.kind.to_le_bytes());
            out.extend(fixup.target.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(4), 0);
    }
    let mut id = [0; BUILD_ID_BYTES];
    id.get_mut(..build_id.len()).ok_or_else(too_large)?.copy_from_slice(build_id);
    let mut head = Vec::with_capacity(HEADER_BYTES);
    head.extend(MAGIC.to_le_bytes());
    for word in
        [VERSION as usize, plan.sites.len(), out.len(), code_bytes, plan.left as usize, build_id.len()]
    {
        head.extend(u32::try_from(word).map_err(|_| too_large())?.to_le_bytes());
    }
    head.extend(id);
    head.extend(0u32.to_le_bytes());
    out[..HEADER_BYTES].copy_from_slice(&head);
    Ok(out)
}

/// Reads the sites of a table. Safe on hostile input: every bound is checked, nothing is trusted.
///
/// # Errors
/// [`Error::Table`] with the broken rule and its place.
pub fn parse(bytes: &[u8]) -> Result<Vec<SiteView<'_>>, Error> {
    parse_table(bytes).map(|table| table.sites)
}

/// Reads a whole table, as [`parse`].
///
/// # Errors
/// [`Error::Table`] with the broken rule and its place.
pub fn parse_table(bytes: &[u8]) -> Result<Table<'_>, Error> {
    let mut reader = Reader { bytes, at: 0 };
    let magic = reader.u64()?;
    reader.require(magic == MAGIC, "not a call-site table")?;
    let version = reader.u32()?;
    reader.require(version == VERSION, "made for another version of holo")?;
    let count = reader.u32()? as usize;
    let stated = reader.u32()? as usize;
    reader.require(stated == bytes.len(), "length differs from the one stated")?;
    let code_bytes = reader.u32()?;
    let left = reader.u32()?;
    let id_len = reader.u32()? as usize;
    let id = reader.take(BUILD_ID_BYTES)?;
    reader.require(id_len <= BUILD_ID_BYTES, "build-id too long")?;
    let (build_id, rest) = id.split_at(id_len);
    reader.require(rest.iter().all(|b| *b == 0), "build-id not padded with zeros")?;
    let reserved = reader.u32()?;
    reader.require(reserved == 0, "reserved word not zero")?;
    reader.require(count <= bytes.len() / (SITE_BYTES + CODE_BYTES_MIN), "more sites than bytes")?;
    let mut sites: Vec<SiteView<'_>> = Vec::with_capacity(count);
    let mut code_sum = 0usize;
    for _ in 0..count {
        let site = reader.site()?;
        let free = sites.last().map_or(0, SiteView::patch_end);
        reader.require(u64::from(site.patch_at) >= free, "windows overlap or are out of order")?;
        code_sum += site.code.len().next_multiple_of(CODE_ALIGN);
        sites.push(site);
    }
    reader.require(reader.at == bytes.len(), "bytes after the last site")?;
    reader.require(code_sum == code_bytes as usize, "trampoline size differs from the one stated")?;
    Ok(Table { build_id, left, code_bytes, sites })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn require(&self, holds: bool, what: &'static str) -> Result<(), Error> {
        if holds { Ok(()) } else { Err(Error::Table { what, at: self.at }) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Error::Table { what: "cut short", at: self.at })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    fn site(&mut self) -> Result<SiteView<'a>, Error> {
        let (patch_at, syscall_at) = (self.u32()?, self.u32()?);
        let (raw_at, code_len) = (self.u16()?, usize::from(self.u16()?));
        let [patch_len, fixup_count] = self.array()?;
        let nr = self.array().map(i16::from_le_bytes)?;
        let held = self.take(EXPECT_BYTES)?;
        let patch_len = usize::from(patch_len);
        self.require((5..=EXPECT_BYTES).contains(&patch_len), "patch length out of range")?;
        let (expect, rest) = held.split_at(patch_len);
        self.require(rest.iter().all(|b| *b == 0), "expected bytes not padded with zeros")?;
        let call = syscall_at.checked_sub(patch_at).and_then(|at| expect.get(at as usize..));
        self.require(call.is_some_and(|c| c.starts_with(&[0x0f, 0x05])), "no syscall in the window")?;
        self.require(nr >= -1, "call number out of range")?;
        self.require(code_len >= CODE_BYTES_MIN, "trampoline too short")?;
        let code = self.take(code_len)?;
        let raw = code.get(usize::from(raw_at)..).is_some_and(|c| c.starts_with(&[0x0f, 0x05, 0x90]));
        self.require(raw, "no syscall in the trampoline")?;
        let mut fixups = Vec::with_capacity(usize::from(fixup_count));
        let mut free = 0;
        for _ in 0..fixup_count {
            let fixup = Fixup { at: self.u16()?, kind: self.u16()?, target: self.u32()? };
            let at = usize::from(fixup.at);
            let blank = code.get(at..at + 4).is_some_and(|b| b == [0; 4]);
            self.require(blank && at >= free, "fixup outside the code, out of order or not blank")?;
            self.require(matches!(fixup.kind, FIXUP_MODULE | FIXUP_GATE), "unknown kind of fixup")?;
            self.require(fixup.kind == FIXUP_MODULE || fixup.target == 0, "gate fixup with a target")?;
            free = at + 4;
            fixups.push(fixup);
        }
        let padding = (FIXUP_BYTES * fixups.len() + code_len).next_multiple_of(4)
            - (FIXUP_BYTES * fixups.len() + code_len);
        let padding = self.take(padding)?;
        self.require(padding.iter().all(|b| *b == 0), "record not padded with zeros")?;
        Ok(SiteView { patch_at, syscall_at, nr: u16::try_from(nr).ok(), expect, raw_at, code, fixups })
    }
}
