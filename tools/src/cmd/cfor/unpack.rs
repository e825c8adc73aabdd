//! `holo cfor pack` and `holo cfor unpack`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use holo_cfor::Targets;

use super::source::Held;
use super::verify::under;
use crate::args::{CforPack, CforUnpack, Source};
use crate::error::{CforError, CliError};
use crate::paths::Agent;
use crate::{daemon, human};

pub(super) fn pack(args: &CforPack, agent: &Agent) -> Result<u8, CliError> {
    let mut held = Held::open(&Source::App(args.name.clone()), args.epoch, agent)?;
    let failed = |what, source| CliError::Path { what, path: args.file.clone(), source };
    // Contents may be for few eyes only.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&args.file);
    let file = file.map_err(|cause| failed("make", cause))?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    let packed = held.pack(&mut out);
    drop(out);
    let bytes = packed.map_err(|cause| CforError::packed(&args.file, cause).into()).and_then(|()| {
        file.sync_all().and_then(|()| file.metadata()).map_err(|cause| failed("write", cause))
    });
    let bytes = bytes.inspect_err(|_| drop(fs::remove_file(&args.file)))?.len();
    let line = format!("{}: {}, {}", args.file.display(), held.title(), human::bytes(bytes));
    writeln!(io::stdout().lock(), "{}", human::plain(&line))?;
    Ok(0)
}

/// Nothing that is there may be lost: applying removes what does not belong.
fn make_empty(dir: &Path) -> Result<(), CliError> {
    let failed = |what, source| CliError::Path { what, path: dir.into(), source };
    fs::create_dir_all(dir).map_err(|cause| failed("make", cause))?;
    if fs::read_dir(dir).map_err(|cause| failed("list", cause))?.next().is_some() {
        return Err(CliError::Usage(format!("{} is not empty; name a directory that is", dir.display())));
    }
    Ok(())
}

pub(super) fn unpack(args: &CforUnpack, agent: &Agent) -> Result<u8, CliError> {
    use std::os::unix::ffi::OsStrExt;
    let mut held = Held::open(&args.source, args.epoch, agent)?;
    make_empty(&args.into)?;
    let into = args.into.canonicalize();
    let into = into.map_err(|source| CliError::Path { what: "find", path: args.into.clone(), source })?;
    let roots = held.tree().roots.iter();
    let map = roots.map(|root| {
        let target = under(&into, &root.path);
        (root.path.clone(), std::ffi::OsStr::from_bytes(&target).into())
    });
    let targets = Targets { map: map.collect(), ..Targets::default() };
    let report = held.apply(&targets)?;
    for remark in report.errors.iter().chain(&report.remarks) {
        daemon::warn(&human::plain(&remark.to_string()));
    }
    let line = format!("{}: {} names, {}", args.into.display(), report.made, human::bytes(report.bytes));
    writeln!(io::stdout().lock(), "{}", human::plain(&line))?;
    Ok(u8::from(!report.errors.is_empty()))
}
