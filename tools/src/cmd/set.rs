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
    Ok(Request::Set { name: args.name.clone(), every_ms, budget_permille, growth_bytes: args.growth })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    // Goal: what is not said stays; a fixed period ends the adapting one. Method: the request of each.
    #[test]
    fn only_what_is_said_changes() {
        let ask = |every, budget, growth| request(&Set { name: "a".into(), every, budget, growth });
        let set = |every_ms, budget_permille, growth_bytes| Request::Set {
            name: "a".into(),
            every_ms,
            budget_permille,
            growth_bytes,
        };
        let fixed = Every::Fixed(Duration::from_millis(250));
        assert_eq!(ask(Some(fixed), None, None).unwrap(), set(Some(250), Some(0), None));
        assert_eq!(ask(Some(Every::Auto), None, None).unwrap(), set(Some(1000), Some(50), None));
        assert_eq!(ask(Some(Every::Auto), Some(20), Some(9)).unwrap(), set(Some(1000), Some(20), Some(9)));
        assert_eq!(ask(None, Some(20), None).unwrap(), set(None, Some(20), None));
        assert!(ask(Some(fixed), Some(20), None).is_err());
    }
}
