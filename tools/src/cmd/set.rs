//! `holo set`: when epochs are taken, changed while the application runs.

use holo_api::local::{BUDGET_PERMILLE_DEFAULT, Request};

use super::stop::done;
use crate::args::{Every, Set};
use crate::error::CliError;
use crate::paths::Agent;

pub(super) fn main(args: &Set, agent: &Agent) -> Result<u8, CliError> {
    done(&request(args)?, agent)
}

fn request(args: &Set) -> Result<Request, CliError> {
    let (every_ms, budget_permille) = match (args.every, args.budget) {
        (Some(Every::Fixed(_)), Some(_)) => {
            return Err(CliError::Usage("--budget is for --every auto".to_owned()));
        }
        (Some(Every::Fixed(time)), None) => (Some(super::run::millis(time)), Some(0)),
        (Some(Every::Auto), budget) => {
            (Some(holo_api::local::EVERY_MS_DEFAULT), Some(budget.unwrap_or(BUDGET_PERMILLE_DEFAULT)))
        }
        (None, budget) => (None, budget),
    };
    let is_said = !args.on_change.is_empty();
    let on_change = is_said.then(|| super::run::watched(&args.on_change)).transpose()?;
    Ok(Request::Set {
        name: args.name.clone(),
        every_ms,
        budget_permille,
        growth_bytes: args.growth,
        on_change,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    // Goal: what is not said stays; a fixed period ends the adapting one. Method: the request of each.
    #[test]
    fn only_what_is_said_changes() {
        let ask = |every, budget, growth| {
            request(&Set { name: "a".into(), every, budget, growth, on_change: Vec::new() })
        };
        let set = |every_ms, budget_permille, growth_bytes| Request::Set {
            name: "a".into(),
            every_ms,
            budget_permille,
            growth_bytes,
            on_change: None,
        };
        let fixed = Every::Fixed(Duration::from_millis(250));
        assert_eq!(ask(Some(fixed), None, None).unwrap(), set(Some(250), Some(0), None));
        assert_eq!(ask(Some(Every::Auto), None, None).unwrap(), set(Some(1000), Some(50), None));
        assert_eq!(ask(Some(Every::Auto), Some(20), Some(9)).unwrap(), set(Some(1000), Some(20), Some(9)));
        assert_eq!(ask(None, Some(20), None).unwrap(), set(None, Some(20), None));
        assert!(ask(Some(fixed), Some(20), None).is_err());
    }

    // Goal: files have absolute names, and `none` ends the watching. Method: the request of each.
    #[test]
    fn files_are_absolute_or_none() {
        let ask = |files: &[&str]| {
            let on_change = files.iter().map(Into::into).collect();
            let args = Set { name: "a".into(), every: None, budget: None, growth: None, on_change };
            match request(&args) {
                Ok(Request::Set { on_change, .. }) => on_change,
                _ => Some(vec![b"error".to_vec()]),
            }
        };
        let here = std::env::current_dir().unwrap().join("x").into_os_string().into_encoded_bytes();
        assert_eq!(ask(&["/a/./b", "x"]), Some(vec![b"/a/b".to_vec(), here]));
        assert_eq!((ask(&[]), ask(&["none"])), (None, Some(Vec::new())));
        for bad in [&["", "/a"][..], &["none", "/a"]] {
            assert_eq!(ask(bad), Some(vec![b"error".to_vec()]), "{bad:?}");
        }
    }
}
