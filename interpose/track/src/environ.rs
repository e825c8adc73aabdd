//! The environment that a program started by the application must have, so that holo stays with it.
//!
//! The caller may have built any environment. What is missing is added: libholo in `LD_PRELOAD` and the
//! `HOLO_*` variables that this process was started with.

/// Most variables that holo adds.
pub const ADDED_MAX: usize = 16;

/// What is wanted: the `LD_PRELOAD` entry and whole `NAME=value` strings, NUL-terminated, as found when
/// this process started.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Path of libholo, without NUL.
    pub library: &'static [u8],
    /// `HOLO_...=...`, with NUL.
    pub variables: [&'static [u8]; ADDED_MAX],
    /// How many of them.
    pub count: usize,
}

/// What must be done to an environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Index of an `LD_PRELOAD` that lacks the library.
    pub preload_at: Option<usize>,
    /// No `LD_PRELOAD` at all.
    pub preload_missing: bool,
    /// Bit i: variable i is missing.
    pub missing: u32,
}

impl Plan {
    /// Nothing to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// Does `value` (of `LD_PRELOAD`) name the library already?
#[must_use]
pub fn names(value: &[u8], library: &[u8]) -> bool {
    value.split(|byte| *byte == b':' || *byte == b' ').any(|part| part == library)
}

fn name_of(variable: &[u8]) -> &[u8] {
    let end = variable.iter().position(|byte| *byte == b'=').map_or(variable.len(), |at| at + 1);
    &variable[..end]
}

/// Compares an environment (strings without NUL) with what is wanted.
pub fn plan<'a>(environment: impl Iterator<Item = &'a [u8]>, wanted: &Wanted) -> Plan {
    let mut plan = Plan { preload_missing: true, missing: (1u32 << wanted.count) - 1, ..Plan::default() };
    for (index, variable) in environment.enumerate() {
        if let Some(value) = variable.strip_prefix(PRELOAD) {
            // The loader takes the last of several.
            plan.preload_missing = false;
            plan.preload_at = (!names(value, wanted.library)).then_some(index);
        } else if variable.starts_with(b"HOLO_") {
            for (i, want) in wanted.variables[..wanted.count].iter().enumerate() {
                if name_of(want) == name_of(variable) {
                    plan.missing &= !(1 << i);
                }
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let mut variables: [&'static [u8]; ADDED_MAX] = [b""; ADDED_MAX];
        variables[0] = b"HOLO_SOCKET=/s\0";
        variables[1] = b"HOLO_NAME=n\0";
        Wanted { library: b"/l/libholo.so", variables, count: 2 }
    }

    #[test]
    fn an_inherited_environment_needs_nothing() {
        let env: [&[u8]; 4] =
            [b"A=1", b"LD_PRELOAD=/x.so:/l/libholo.so", b"HOLO_SOCKET=/other", b"HOLO_NAME=n"];
        assert!(plan(env.into_iter(), &wanted()).is_empty());
    }

    #[test]
    fn an_empty_one_needs_everything() {
        let plan = plan(core::iter::empty(), &wanted());
        assert_eq!(plan, Plan { preload_at: None, preload_missing: true, missing: 3 });
    }

    #[test]
    fn a_foreign_preload_is_extended() {
        let env: [&[u8]; 3] = [b"HOLO_NAME=n", b"LD_PRELOAD=/l/libholo.so.old", b"B=2"];
        let plan = plan(env.into_iter(), &wanted());
        assert_eq!(plan, Plan { preload_at: Some(1), preload_missing: false, missing: 1 });
    }
}
