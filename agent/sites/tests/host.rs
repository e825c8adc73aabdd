//! Goal: every system call of the host's libc and ld.so is in their tables, and the tables do what the code
//! does.
//!
//! Method: count `syscall` instructions independently (a linear sweep of the executable sections, which
//! works for these two because they keep no data among code), compare with the table, and check the table
//! against the module by decoding the trampolines again.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use holo_sites::{Module, build_from_bytes, cached, check, parse, parse_table};
use iced_x86::{Code, Decoder, DecoderOptions};

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn host_modules() -> Vec<PathBuf> {
    [LIBC, LOADER].iter().map(PathBuf::from).filter(|p| p.exists()).collect()
}

/// `syscall` instructions by linear sweep, without signal trampolines (`mov rax, 15; syscall`).
fn sweep(bytes: &[u8]) -> Vec<u64> {
    let elf = goblin::elf::Elf::parse(bytes).unwrap();
    let mut found = Vec::new();
    for section in elf.section_headers.iter().filter(|s| s.sh_flags & 4 != 0) {
        let code = &bytes[section.file_range().unwrap()];
        let decoder = Decoder::with_ip(64, code, section.sh_addr, DecoderOptions::NONE);
        let mut sigreturn = false;
        for op in decoder {
            if op.code() == Code::Syscall && !sigreturn {
                found.push(op.ip());
            }
            sigreturn = op.code() == Code::Mov_rm64_imm32 && op.immediate32to64() == 15;
        }
    }
    found
}

#[test]
fn every_system_call_of_the_host_is_patched() {
    for path in host_modules() {
        let bytes = std::fs::read(&path).unwrap();
        let table = build_from_bytes(&bytes).unwrap();
        let table = parse_table(&table).unwrap();
        let module = Module::parse(&bytes).unwrap();
        check(&module, &table).unwrap();
        let calls: Vec<_> = table.sites.iter().map(|s| u64::from(s.syscall_at)).collect();
        assert_eq!(calls, sweep(&bytes), "{}", path.display());
        assert_eq!(table.left, 0, "{}", path.display());
        let known = table.sites.iter().filter(|s| s.nr.is_some()).count();
        assert!(known * 10 > table.sites.len() * 9, "only {known} numbers known of {}", path.display());
        assert!(table.sites.iter().all(|s| s.nr != Some(15)));
    }
}

/// Goal: a wrong trampoline never passes the check. Method: change each byte of each trampoline.
#[test]
fn a_changed_trampoline_is_noticed() {
    let bytes = std::fs::read(host_modules().pop().unwrap()).unwrap();
    let made = build_from_bytes(&bytes).unwrap();
    let module = Module::parse(&bytes).unwrap();
    let base = made.as_ptr() as usize;
    for site in parse(&made).unwrap() {
        let start = site.code.as_ptr() as usize - base;
        for at in start..start + site.code.len() {
            let mut changed = made.clone();
            changed[at] ^= 0x11;
            let verdict = parse_table(&changed).and_then(|table| check(&module, &table));
            assert!(verdict.is_err(), "byte {at} of the site at {:#x}", site.syscall_at);
        }
    }
}

#[test]
fn the_cache_repairs_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let module = Path::new(LOADER);
    let file = cached(dir.path(), module).unwrap();
    let good = std::fs::read(&file).unwrap();
    assert_eq!(cached(dir.path(), module).unwrap(), file);
    for damaged in [Vec::new(), good[..good.len() - 1].to_vec(), vec![0; good.len()], {
        let mut changed = good.clone();
        let at = changed.len() - 3;
        changed[at] ^= 1;
        changed
    }] {
        std::fs::write(&file, &damaged).unwrap();
        assert_eq!(cached(dir.path(), module).unwrap(), file);
        assert_eq!(std::fs::read(&file).unwrap(), good);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}
