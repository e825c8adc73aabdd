//! Tables kept in files, one per build of a module.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use holo_abi::VERSION;

use crate::{Error, Module, build_from_module, check, module, parse_table};

/// Bytes of a content hash that a name carries.
const HASH_BYTES: usize = 20;

/// The file that holds the table of the module at `path`, made if it is missing or does not fit.
///
/// The file is named by build-id (by content for a module without one), version of the format and size of
/// the module. It is written under another name, synced and renamed, so that a reader sees all of it or
/// nothing, also when two agents make it at once. A file that is found is checked against the module before
/// use, down to what its trampolines do.
///
/// # Errors
/// [`Error::Read`], [`Error::Elf`] as for [`crate::build`]; [`Error::Write`] when the cache cannot be
/// written to.
pub fn cached(cache_dir: &Path, path: &Path) -> Result<PathBuf, Error> {
    let bytes = module::read(path)?;
    let module = Module::parse(&bytes)?;
    let file = cache_dir.join(name(&module, &bytes));
    if let Ok(table) = fs::read(&file)
        && parse_table(&table).and_then(|table| check(&module, &table)).is_ok()
    {
        return Ok(file);
    }
    let table = build_from_module(&module)?;
    write(cache_dir, &file, &table).map_err(|source| Error::Write { path: file.clone(), source })?;
    Ok(file)
}

fn name(module: &Module<'_>, bytes: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let id = match module.build_id() {
        [] => format!("blake3-{}", hex(&blake3::hash(bytes).as_bytes()[..HASH_BYTES])),
        id => hex(id),
    };
    format!("{id}-v{VERSION}-{}.sites", bytes.len())
}

fn write(cache_dir: &Path, file: &Path, table: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(cache_dir)?;
    let mut new = tempfile::Builder::new().prefix(".new-").suffix(".sites").tempfile_in(cache_dir)?;
    new.write_all(table)?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|e| e.error)?;
    Ok(())
}
