//! Unique names on the engine for each attempt of a run.
//!
//! Invariants: two attempts never share a scope, and no scope contains `_`. So `acrtask_SCOPE_NAME`
//! names an object of exactly one attempt, whatever run ids and object names a task or a client
//! chooses.

use std::{fmt, str::FromStr};

use acrtask_model::RunId;

/// An attempt of a run: `r1`, and `r1.a2` for its second attempt. A run id contains neither `.` nor
/// `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RunScope {
    run: RunId,
    /// Number of the attempt, from 1.
    attempt: u32,
}

impl RunScope {
    pub(crate) fn new(run: RunId, attempt: u32) -> Self {
        Self {
            run,
            attempt: attempt.max(1),
        }
    }

    /// Returns the engine's name for a container, network or volume of this attempt.
    pub(crate) fn object_name(&self, name: &str) -> String {
        format!("acrtask_{self}_{name}")
    }
}

impl fmt::Display for RunScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attempt {
            1 => write!(f, "{}", self.run),
            attempt => write!(f, "{}.a{attempt}", self.run),
        }
    }
}

impl FromStr for RunScope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (run, attempt) = match text.split_once(".a") {
            Some((run, number)) => (run, number.parse().map_err(drop)?),
            None => (text, 1),
        };
        let scope = Self::new(RunId::new(run).map_err(drop)?, attempt);
        (scope.to_string() == text).then_some(scope).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_have_distinct_scopes_that_parse() {
        let long = "a".repeat(RunId::MAX_LEN);
        let mut seen = std::collections::BTreeSet::new();
        for (run, attempt, expected) in [
            ("r1", 1, "r1".to_owned()),
            ("r1", 2, "r1.a2".into()),
            ("r1-a2", 1, "r1-a2".into()),
            ("r1", 22, "r1.a22".into()),
            (&long, 1, long.clone()),
            (&long, 12, format!("{long}.a12")),
        ] {
            let scope = RunScope::new(RunId::new(run).unwrap(), attempt);
            assert_eq!(scope.to_string(), expected);
            assert_eq!(expected.parse(), Ok(scope));
            assert!(seen.insert(expected));
        }
        for text in [
            "", "r1.a", "r1.a0", "r1.a1", "r1.a02", "R1", "r1_a2", "r1.a2.a3",
        ] {
            assert!(text.parse::<RunScope>().is_err(), "{text}");
        }
    }

    #[test]
    fn object_names_of_distinct_runs_differ() {
        let object = |run: &str, attempt, name: &str| {
            RunScope::new(RunId::new(run).unwrap(), attempt).object_name(name)
        };
        for (one, other) in [
            (object("a", 1, "b_workspace"), object("a-b", 1, "workspace")),
            (object("a", 2, "home"), object("a", 1, "a2_home")),
            (object("a", 2, "home"), object("a-a2", 1, "home")),
            (object("a", 1, "acrtask_b_home"), object("b", 1, "home")),
        ] {
            assert_ne!(one, other);
        }
    }
}
