//! The parts of an ELF file that matter here: code, function starts, data words, build-id.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use goblin::elf::program_header::{PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE};
use goblin::elf::section_header::{SHF_ALLOC, SHF_EXECINSTR, SHT_PROGBITS};
use goblin::elf::{Elf, header, sym};

use crate::Error;
use crate::eh_frame;

/// Largest module read; the largest shared objects in use (browsers, GPU compilers) are below it.
const MODULE_BYTES_MAX: u64 = 1 << 30;
/// Executable sections or loaded segments of a module; linkers make fewer than ten.
const REGIONS_MAX: usize = 256;
/// Bytes of a build-id that a table can name.
const BUILD_ID_BYTES_MAX: usize = 20;

/// Bytes of the file and the address that they are mapped at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region<'a> {
    /// Module-relative address of the first byte.
    pub(crate) addr: u64,
    /// The bytes in the file.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Region<'a> {
    /// First address after the region.
    pub(crate) fn end(&self) -> u64 {
        self.addr + self.bytes.len() as u64
    }

    /// Bytes from `addr` on, if it is inside.
    pub(crate) fn from(&self, addr: u64) -> Option<&'a [u8]> {
        let at = usize::try_from(addr.checked_sub(self.addr)?).ok()?;
        self.bytes.get(at..)
    }
}

/// A function by its unwind entry or symbol: `start..end`, module-relative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Function {
    /// First instruction.
    pub(crate) start: u64,
    /// First byte after the last instruction.
    pub(crate) end: u64,
}

/// A parsed module.
#[derive(Debug)]
pub struct Module<'a> {
    /// Executable regions, by address, not overlapping.
    pub(crate) code: Vec<Region<'a>>,
    /// All loaded regions, code included where a linker did not keep it apart.
    pub(crate) data: Vec<Region<'a>>,
    /// Functions, by start.
    pub(crate) functions: Vec<Function>,
    /// Addresses that relocations and symbols mention: places that something may jump to.
    pub(crate) mentioned: Vec<u64>,
    build_id: Vec<u8>,
}

/// Reads a file, refusing one that is too large to be a module.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MODULE_BYTES_MAX {
        return Err(Error::Elf(format!("{} is larger than {MODULE_BYTES_MAX} bytes", path.display())));
    }
    Ok(bytes)
}

impl<'a> Module<'a> {
    /// Parses an x86-64 ELF file; hostile input gives an error or a module with less in it.
    ///
    /// # Errors
    /// [`Error::Elf`] when the file is not a little-endian x86-64 executable or shared object.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        // Checked before the full parse so that a stranger's tables are not even looked at.
        let head = Elf::parse_header(bytes).map_err(|e| Error::Elf(e.to_string()))?;
        if head.e_machine != header::EM_X86_64 || !matches!(head.e_type, header::ET_DYN | header::ET_EXEC) {
            return Err(Error::Elf("not an x86-64 executable or shared object".into()));
        }
        let elf = Elf::parse(bytes).map_err(|e| Error::Elf(e.to_string()))?;
        if !elf.is_64 || !elf.little_endian {
            return Err(Error::Elf("not a 64-bit little-endian file".into()));
        }
        let code = code_regions(&elf, bytes);
        let data = segments(&elf, bytes, |_| true);
        for regions in [&code, &data] {
            let total: u64 = regions.iter().map(|r| r.bytes.len() as u64).sum();
            if regions.len() > REGIONS_MAX || total > bytes.len() as u64 {
                return Err(Error::Elf("sections or segments overlap or are too many".into()));
            }
        }
        let mut functions = unwind_functions(&elf, bytes);
        let mut mentioned = vec![elf.entry];
        for symbol in elf.dynsyms.iter().chain(elf.syms.iter()) {
            mentioned.push(symbol.st_value);
            if symbol.st_type() == sym::STT_FUNC && symbol.st_shndx != 0 && symbol.st_size > 0 {
                let end = symbol.st_value.saturating_add(symbol.st_size);
                functions.push(Function { start: symbol.st_value, end });
            }
        }
        for reloc in elf.dynrelas.iter().chain(elf.pltrelocs.iter()) {
            mentioned.extend(reloc.r_addend.and_then(|addend| u64::try_from(addend).ok()));
        }
        functions.retain(|f| f.start < f.end && code.iter().any(|r| f.start >= r.addr && f.end <= r.end()));
        functions.sort_unstable();
        functions.dedup();
        Ok(Self { code, data, functions, mentioned, build_id: build_id(&elf, bytes) })
    }

    /// The module's build-id; empty if it has none.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// A module of one region of code and one of data.
    #[cfg(test)]
    pub(crate) fn for_test(code: Region<'a>, data: Region<'a>, functions: Vec<Function>) -> Self {
        Self { code: vec![code], data: vec![data], functions, mentioned: Vec::new(), build_id: Vec::new() }
    }

    /// `len` bytes of code at `addr`, if all are in one executable region.
    pub(crate) fn code_at(&self, addr: u64, len: usize) -> Option<&'a [u8]> {
        self.code.iter().find_map(|region| region.from(addr)?.get(..len))
    }
}

fn slice(bytes: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(size).ok()?)?)
}

/// Drops regions that overlap or wrap: a sane linker makes none, and patches must be unambiguous.
fn sorted(mut regions: Vec<Region<'_>>) -> Vec<Region<'_>> {
    regions.retain(|r| !r.bytes.is_empty() && r.addr.checked_add(r.bytes.len() as u64).is_some());
    regions.sort_by_key(|r| r.addr);
    let mut end = 0;
    regions.retain(|r| {
        let keep = r.addr >= end;
        end = end.max(r.end());
        keep
    });
    regions
}

/// Executable sections; without section headers, executable segments.
fn code_regions<'a>(elf: &Elf<'_>, bytes: &'a [u8]) -> Vec<Region<'a>> {
    let wanted = u64::from(SHF_ALLOC | SHF_EXECINSTR);
    let sections: Vec<_> = elf
        .section_headers
        .iter()
        .filter(|s| s.sh_type == SHT_PROGBITS && s.sh_flags & wanted == wanted)
        .filter_map(|s| Some(Region { addr: s.sh_addr, bytes: slice(bytes, s.sh_offset, s.sh_size)? }))
        .collect();
    if sections.is_empty() { segments(elf, bytes, |flags| flags & PF_X != 0) } else { sorted(sections) }
}

fn segments<'a>(elf: &Elf<'_>, bytes: &'a [u8], wanted: impl Fn(u32) -> bool) -> Vec<Region<'a>> {
    let regions = elf
        .program_headers
        .iter()
        .filter(|p| p.p_type == PT_LOAD && wanted(p.p_flags))
        .filter_map(|p| Some(Region { addr: p.p_vaddr, bytes: slice(bytes, p.p_offset, p.p_filesz)? }))
        .collect();
    sorted(regions)
}

/// Functions from `.eh_frame`, found by its section or through the header segment.
fn unwind_functions(elf: &Elf<'_>, bytes: &[u8]) -> Vec<Function> {
    let by_section = elf
        .section_headers
        .iter()
        .find(|s| elf.shdr_strtab.get_at(s.sh_name) == Some(".eh_frame"))
        .and_then(|s| Some(Region { addr: s.sh_addr, bytes: slice(bytes, s.sh_offset, s.sh_size)? }));
    let region = by_section.or_else(|| {
        let head = elf.program_headers.iter().find(|p| p.p_type == PT_GNU_EH_FRAME)?;
        let addr = eh_frame::frame_addr(head.p_vaddr, slice(bytes, head.p_offset, head.p_filesz)?)?;
        let bytes = segments(elf, bytes, |_| true).iter().find_map(|segment| segment.from(addr))?;
        Some(Region { addr, bytes })
    });
    region.map(|region| eh_frame::functions(region.addr, region.bytes)).unwrap_or_default()
}

/// The build-id note's bytes; empty if there is none or it is longer than a table can hold.
fn build_id(elf: &Elf<'_>, bytes: &[u8]) -> Vec<u8> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let notes = elf.program_headers.iter().filter(|p| p.p_type == PT_NOTE);
    for mut note in notes.filter_map(|p| slice(bytes, p.p_offset, p.p_filesz)) {
        // Name and descriptor are padded to 4 bytes; alignments of 8 occur in other notes and are skipped
        // over correctly because their sizes are multiples of 8 already.
        while let Some((head, rest)) = note.split_at_checked(12) {
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (name_len, desc_len, kind) = (word(0) as usize, word(4) as usize, word(8));
            let desc_at = name_len.next_multiple_of(4);
            let Some(desc) = rest.get(desc_at..desc_at + desc_len) else { break };
            if kind == NT_GNU_BUILD_ID && rest.starts_with(b"GNU\0") && name_len == 4 {
                return if desc.len() <= BUILD_ID_BYTES_MAX { desc.to_vec() } else { Vec::new() };
            }
            note = rest.get(desc_at + desc_len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Vec::new()
}
