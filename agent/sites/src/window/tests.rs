//! Goal: the rules for windows hold where real code seldom tests them.
//!
//! Method: small pieces of machine code as modules of one function, planned, encoded, parsed and checked.
#![allow(clippy::unwrap_used)]

use super::plan;
use crate::code::Code;
use crate::module::{Function, Module, Region};
use crate::{check, parse_table, table};

const BASE: u64 = 0x1000;
const SYSCALL: &[u8] = &[0x0f, 0x05];
const RET: &[u8] = &[0xc3];
/// `mov eax, 39`.
const MOV_39: &[u8] = &[0xb8, 39, 0, 0, 0];
/// `test rax, rax`.
const TEST: &[u8] = &[0x48, 0x85, 0xc0];
/// `call` to itself.
const CALL: &[u8] = &[0xe8, 0xfb, 0xff, 0xff, 0xff];

/// A site: start and length of the window, relative to the code, and call number.
type Found = (u64, usize, i16);

/// Plans code made of `parts`, of which the first `named` bytes are a function and `mentioned` addresses
/// occur in data.
fn plan_code(parts: &[&[u8]], named: Option<u64>, mentioned: &[u64]) -> (Vec<Found>, u32) {
    let bytes = parts.concat();
    let end = BASE + named.unwrap_or(bytes.len() as u64);
    let words: Vec<u8> = mentioned.iter().flat_map(|at| (BASE + at).to_le_bytes()).collect();
    let module = Module::for_test(
        Region { addr: BASE, bytes: &bytes },
        Region { addr: 0x9000, bytes: &words },
        vec![Function { start: BASE, end }],
    );
    let plan = plan(&Code::read(&module));
    let encoded = table::encode(&[], &plan).unwrap();
    let parsed = parse_table(&encoded).unwrap();
    check(&module, &parsed).unwrap();
    assert_eq!(parsed.sites.len(), plan.sites.len());
    let found = |s: &super::Site| (u64::from(s.patch_at) - BASE, s.expect.len(), s.nr);
    (plan.sites.iter().map(found).collect(), plan.left)
}

#[test]
fn begins_at_the_syscall_where_it_can() {
    assert_eq!(plan_code(&[MOV_39, SYSCALL, TEST, RET], None, &[]), (vec![(5, 5, 39)], 0));
}

#[test]
fn begins_before_where_a_call_follows() {
    assert_eq!(plan_code(&[MOV_39, SYSCALL, CALL], None, &[]), (vec![(0, 7, 39)], 0));
}

#[test]
fn uses_padding_after_the_end_but_no_code() {
    let filler: &[u8] = &[0x90, 0xcc, 0xcc];
    assert_eq!(plan_code(&[TEST, SYSCALL, RET, filler], Some(6), &[3]), (vec![(3, 5, -1)], 0));
    assert_eq!(plan_code(&[TEST, SYSCALL, RET, TEST], None, &[3]), (vec![], 1));
}

#[test]
fn a_retry_loop_begins_at_its_syscall() {
    // `jne` back to the `syscall`: the number may be another one the second time.
    let retry: &[u8] = &[0x75, 0xf9];
    assert_eq!(plan_code(&[MOV_39, SYSCALL, TEST, retry, RET], None, &[]), (vec![(5, 5, -1)], 0));
}

#[test]
fn nothing_jumps_into_a_window() {
    // `je` to the instruction after the `syscall`, so that only the ones before are free.
    let skip: &[u8] = &[0x74, 7];
    assert_eq!(plan_code(&[skip, MOV_39, SYSCALL, TEST, RET], None, &[]), (vec![(2, 7, 39)], 0));
    // The same place in a table of addresses.
    assert_eq!(plan_code(&[MOV_39, SYSCALL, TEST, RET], None, &[7]), (vec![(0, 7, 39)], 0));
    // Both sides taken.
    assert_eq!(plan_code(&[MOV_39, SYSCALL, TEST, RET], None, &[5, 7]), (vec![], 1));
}

#[test]
fn relative_operands_and_jumps_are_relocated() {
    // `cmp dword [rip + 0x100], 7` has an immediate after its displacement; `check` follows both.
    let compare: &[u8] = &[0x83, 0x3d, 0, 1, 0, 0, 7];
    assert_eq!(plan_code(&[SYSCALL, compare, RET], None, &[]), (vec![(0, 9, -1)], 0));
    // `js` over the `jmp` back to the `syscall`, short forms.
    let branches: &[u8] = &[0x78, 2, 0xeb, 0xfa];
    assert_eq!(plan_code(&[SYSCALL, branches, RET], None, &[]), (vec![(0, 6, -1)], 0));
    // `jrcxz` has no long form.
    assert_eq!(plan_code(&[SYSCALL, &[0xe3, 0], RET], None, &[]), (vec![], 1));
}

#[test]
fn neighbours_share_without_overlap() {
    // Each could take the five bytes between; the first goes back so that the second gets them.
    assert_eq!(
        plan_code(&[MOV_39, SYSCALL, TEST, SYSCALL, CALL], None, &[]),
        (vec![(0, 7, 39), (7, 5, -1)], 0)
    );
    // Nothing but each other.
    assert_eq!(plan_code(&[SYSCALL, SYSCALL, CALL], None, &[]), (vec![], 2));
}

#[test]
fn the_signal_trampoline_is_neither_patched_nor_left() {
    let sigreturn: &[u8] = &[0x48, 0xc7, 0xc0, 15, 0, 0, 0];
    assert_eq!(plan_code(&[sigreturn, SYSCALL, &[0x90; 8]], None, &[]), (vec![], 0));
}

#[test]
fn code_without_a_function_is_left() {
    assert_eq!(plan_code(&[RET, MOV_39, SYSCALL, TEST, RET], Some(1), &[]), (vec![], 1));
    // Unless control runs into it from a function, as in `clone3` of glibc.
    assert_eq!(plan_code(&[MOV_39, SYSCALL, TEST, RET], Some(5), &[]), (vec![(5, 5, 39)], 0));
}

#[test]
fn a_pair_of_bytes_that_is_no_instruction_is_not_touched() {
    // `mov eax, 0x050f050f`.
    assert_eq!(plan_code(&[&[0xb8, 0x0f, 0x05, 0x0f, 0x05], RET], None, &[]), (vec![], 0));
}

#[test]
fn the_number_is_the_one_in_force() {
    let xor: &[u8] = &[0x31, 0xc0];
    let mov_edi: &[u8] = &[0xbf, 1, 0, 0, 0];
    assert_eq!(plan_code(&[MOV_39, xor, mov_edi, SYSCALL, TEST], None, &[]).0, [(12, 5, 0)]);
    // `mov eax, edx` hides it.
    assert_eq!(plan_code(&[MOV_39, &[0x89, 0xd0], SYSCALL, TEST], None, &[]).0, [(7, 5, -1)]);
    assert_eq!(plan_code(&[MOV_39, CALL, SYSCALL, TEST], None, &[]).0, [(10, 5, -1)]);
}
