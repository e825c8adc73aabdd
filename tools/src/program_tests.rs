//! Goal: every kind of program that a preload cannot reach is recognised, and no other.
//! Method: small hand-made files, and programs that every host has.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const USER: Credentials = Credentials { uid: 12_345, gid: 12_345, no_new_privs: false };

/// The head of an ELF file with one program header.
fn elf(machine: u16, interpreter: Option<&str>) -> Vec<u8> {
    let mut file = vec![0; 64 + 56];
    file[..4].copy_from_slice(b"\x7fELF");
    file[4] = 2;
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&1u16.to_le_bytes());
    if let Some(path) = interpreter {
        let at = file.len() as u64;
        file[64..68].copy_from_slice(&3u32.to_le_bytes());
        file[72..80].copy_from_slice(&at.to_le_bytes());
        file[96..104].copy_from_slice(&(path.len() as u64 + 1).to_le_bytes());
        file.extend(path.bytes());
        file.push(0);
    }
    file
}

fn examine(bytes: &[u8], mode: u32) -> Option<Unreachable> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    unreachable(&path, USER)
}

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

#[test]
fn dynamic_programs_are_reached() {
    assert_eq!(examine(&elf(62, Some(LOADER)), 0o755), None);
    assert_eq!(unreachable(Path::new("/bin/sh"), USER), None);
    assert_eq!(unreachable(Path::new(LOADER), USER), None);
}

#[test]
fn others_are_not() {
    assert!(matches!(examine(&elf(62, None), 0o755), Some(Unreachable::Static(_))));
    assert!(matches!(examine(&elf(183, Some(LOADER)), 0o755), Some(Unreachable::Foreign(_))));
    let musl = examine(&elf(62, Some("/lib/ld-musl-x86_64.so.1")), 0o755);
    assert!(matches!(musl, Some(Unreachable::OtherLoader(_, loader)) if loader.contains("musl")));
}

#[test]
fn set_id_bits_count_when_they_change_something() {
    let program = elf(62, Some(LOADER));
    assert!(matches!(examine(&program, 0o4755), Some(Unreachable::SetId(_))));
    assert!(matches!(examine(&program, 0o2755), Some(Unreachable::SetId(_))));
    assert_eq!(examine(&program, 0o2745), None);
}

#[test]
fn scripts_are_their_interpreters() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("static");
    fs::write(&program, elf(62, None)).unwrap();
    let script = dir.path().join("script");
    fs::write(&script, format!("#! {} -x\n", program.display())).unwrap();
    assert_eq!(unreachable(&script, USER), Some(Unreachable::Static(program)));
    fs::write(&script, "#!/bin/sh\n").unwrap();
    assert_eq!(unreachable(&script, USER), None);
    // A script that names itself: bounded.
    fs::write(&script, format!("#!{}\n", script.display())).unwrap();
    assert_eq!(unreachable(&script, USER), None);
}

#[test]
fn damaged_files_are_the_kernels_business() {
    let mut broken = elf(62, Some(LOADER));
    broken[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(examine(&broken, 0o755), None);
    assert_eq!(examine(b"", 0o755), None);
    assert_eq!(examine(b"#!", 0o755), None);
    assert_eq!(examine(&elf(62, None)[..70], 0o755), None);
}
