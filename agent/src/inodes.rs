//! Identity of files over a restore: what the application knows stays true.
//!
//! Programs compare device and inode numbers of a path with those of a file that they have open (databases,
//! log followers, archivers). Files that a restore makes have other numbers, and on another node all have.
//! So the control page gets a table from the numbers here to those that the application knows.
//!
//! The table is one to one. A number that is shown for one file is not shown for another: a file here that
//! really has it is shown as a number that is free because of the table.

use holo_abi::control::{INODES_MAX, InodeName};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Device and inode number.
pub type Number = (u64, u64);

/// What an image says of identities; all numbers are of the node that it was taken on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inodes {
    /// [`holo_abi::control::Header::class_at`] of each process's page, in the order of the tree.
    pub class_at: Vec<u64>,
    /// The table then: numbers of that node, and as the application knew them.
    pub names: Vec<(Number, Number)>,
    /// Descriptors (process, number) whose files no tree has, with the files' numbers.
    pub open: Vec<(u32, i32, Number)>,
}

impl Inodes {
    /// How the application knew what had these numbers.
    pub fn known(&self) -> impl Fn(Number) -> Number {
        let names: HashMap<Number, Number> = self.names.iter().copied().collect();
        move |number| names.get(&number).copied().unwrap_or(number)
    }
}

/// The table of a page, as an image has it.
#[must_use]
pub fn names(table: &[InodeName], is_needed: impl Fn(Number) -> bool) -> Vec<(Number, Number)> {
    let pair = |[dev, ino]: [u64; 2]| (dev, ino);
    let all = table.iter().map(|name| (pair(name.real), pair(name.app)));
    all.filter(|(real, _)| is_needed(*real)).collect()
}

/// A table for the page, and how many files found no place in it.
///
/// `files` are the numbers here of each file with those that the application knows, the most important first.
#[must_use]
pub fn table(files: impl IntoIterator<Item = (Number, Number)>) -> (Vec<InodeName>, usize) {
    let mut fixed = HashSet::new();
    let mut apps = HashMap::new();
    let mut back = HashMap::new();
    let mut left = 0;
    for (real, app) in files {
        if apps.contains_key(&real) || fixed.contains(&real) {
            continue;
        }
        if real == app {
            fixed.insert(real);
        // Each may need a second entry, below.
        } else if apps.len() < INODES_MAX / 2 {
            apps.insert(real, app);
            back.entry(app).or_insert(real);
        } else {
            left += 1;
        }
    }
    let foreign: Vec<(Number, Number)> = back
        .iter()
        .filter(|(app, _)| !apps.contains_key(app) && !fixed.contains(app))
        .map(|(app, real)| {
            // Back along the table to a number that nothing is shown as. It ends: each step has one way back.
            let mut free = *real;
            while let Some(before) = back.get(&free) {
                free = *before;
            }
            (*app, free)
        })
        .collect();
    let name = |(real, app): (Number, Number)| InodeName { real: [real.0, real.1], app: [app.0, app.1] };
    let mut table: Vec<InodeName> = apps.into_iter().chain(foreign).map(name).collect();
    table.sort_unstable();
    (table, left)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn shown(table: &[InodeName], number: Number) -> Number {
        let found = table.binary_search_by(|name| name.real.cmp(&[number.0, number.1]));
        found.map_or(number, |at| (table[at].app[0], table[at].app[1]))
    }

    #[test]
    fn what_is_as_it_was_costs_nothing() {
        assert_eq!(table([((1, 2), (1, 2)), ((1, 3), (1, 3))]), (Vec::new(), 0));
    }

    #[test]
    fn a_foreign_file_does_not_pass_for_one_of_ours() {
        let (table, left) = table([((1, 20), (1, 10)), ((1, 30), (1, 20))]);
        assert_eq!(left, 0);
        assert_eq!([20, 30, 10].map(|ino| shown(&table, (1, ino)).1), [10, 20, 30]);
    }

    #[test]
    fn the_first_are_kept_where_there_are_too_many() {
        let files = (0..INODES_MAX as u64).map(|n| ((1, n), (2, n)));
        let (table, left) = table(files);
        assert_eq!((table.len(), left), (INODES_MAX, INODES_MAX / 2));
        assert_eq!(shown(&table, (1, 0)), (2, 0));
        assert_eq!(shown(&table, (1, INODES_MAX as u64 - 1)).0, 1);
    }

    #[test]
    fn an_image_keeps_what_it_needs() {
        let (table, _) = table([((1, 20), (1, 10)), ((1, 21), (1, 11))]);
        let image = Inodes { names: names(&table, |real| real == (1, 20)), ..Inodes::default() };
        assert_eq!(image.names, [((1, 20), (1, 10))]);
        let known = image.known();
        assert_eq!([known((1, 20)), known((1, 21))], [(1, 10), (1, 21)]);
    }

    proptest! {
        /// Every file is shown as it is known, and no two numbers are shown alike.
        #[test]
        fn one_to_one(
            reals in proptest::collection::vec(0u64..40, 0..30),
            apps in proptest::sample::subsequence((0u64..40).collect::<Vec<_>>(), 30),
        ) {
            let mut seen = HashSet::new();
            let files: Vec<(Number, Number)> = reals
                .into_iter()
                .zip(apps)
                .filter(|(real, _)| seen.insert(*real))
                .map(|(real, app)| ((1, real), (1, app)))
                .collect();
            let (table, left) = table(files.iter().copied());
            prop_assert_eq!(left, 0);
            prop_assert!(table.is_sorted());
            for (real, app) in &files {
                prop_assert_eq!(shown(&table, *real), *app);
            }
            let all: HashSet<Number> = (0..40).map(|n| shown(&table, (1, n))).collect();
            prop_assert_eq!(all.len(), 40);
        }
    }
}
