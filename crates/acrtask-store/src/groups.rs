//! Concurrency groups: limits on concurrent runs.
//!
//! Invariant: a name from a user is always a [`RunGroup::Named`], so that no task can join a group
//! that the server creates for its own purposes.

use std::fmt;

use acrtask_model::RunId;

use crate::{NewRun, Result, StoreError, runs};

const NAMED: &str = "named ";
const REF: &str = "ref ";
const APPROVAL: &str = "approval ";

/// Concurrency group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunGroup {
    /// Group that a task or run names. By default the name of the task.
    Named(String),
    /// Runs of one branch, tag or pull request of a task: the `ref_key` of their [`crate::Origin`].
    Ref(String),
    /// A single run, while it waits for an approval.
    Approval(RunId),
}

impl RunGroup {
    /// Checks the slash-separated parts of a name, which patterns of tokens match.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn check_name(name: &str) -> std::result::Result<(), String> {
        match name
            .split('/')
            .find(|part| matches!(part.trim(), "" | "." | ".."))
        {
            None => Ok(()),
            Some(part) => Err(format!(
                "`{name}` has the part `{part}`; write parts such as `team/deploy`, without empty ones, `.` and `..`"
            )),
        }
    }

    /// Returns the text of the column `group_name`.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Named(name) => format!("{NAMED}{name}"),
            Self::Ref(ref_key) => format!("{REF}{ref_key}"),
            Self::Approval(run) => format!("{APPROVAL}{run}"),
        }
    }

    /// Parses the output of [`RunGroup::key`].
    pub(crate) fn parse(key: &str) -> Result<Self> {
        if let Some(name) = key.strip_prefix(NAMED) {
            Ok(Self::Named(name.to_owned()))
        } else if let Some(ref_key) = key.strip_prefix(REF) {
            Ok(Self::Ref(ref_key.to_owned()))
        } else if let Some(run) = key.strip_prefix(APPROVAL) {
            runs::parse_run_id(run.to_owned()).map(Self::Approval)
        } else {
            Err(StoreError::corrupt(format_args!(
                "a concurrency group cannot be `{key}`"
            )))
        }
    }
}

impl fmt::Display for RunGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "the group `{name}`"),
            Self::Ref(_) => f.write_str("one branch, tag or pull request of the task"),
            Self::Approval(run) => write!(f, "the approval of {run}"),
        }
    }
}

/// Membership of a new run in a concurrency group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Value of the column `group_name`.
    pub(crate) key: String,
    /// Number of runs of the group that may run at once.
    pub(crate) max: u32,
    /// The run cancels earlier runs of the group.
    pub(crate) supersedes: bool,
}

/// Returns the concurrency group of a new run.
///
/// A run that waits for an approval always has a group, which blocks it. It supersedes no other
/// run, because the author of a pull request requested it.
pub(crate) fn membership(new: &NewRun) -> Option<Membership> {
    let named = new.queue.concurrency.as_ref().and_then(|concurrency| {
        let name = concurrency.group.as_ref().or(new.task_name.as_ref())?;
        Some(Membership {
            key: RunGroup::Named(name.clone()).key(),
            max: concurrency.max.max(1),
            supersedes: concurrency.cancel_superseded && !new.origin.needs_approval,
        })
    });
    let alone = |group: RunGroup| Membership {
        key: group.key(),
        max: 1,
        supersedes: false,
    };
    let origin = &new.origin;
    named
        .or_else(|| {
            let ref_key = origin.ref_key.clone().filter(|_| origin.one_at_a_time)?;
            Some(alone(RunGroup::Ref(ref_key)))
        })
        .or_else(|| {
            origin
                .needs_approval
                .then(|| alone(RunGroup::Approval(new.id.clone())))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_empty_or_dot_parts_are_rejected() {
        for name in [
            "deploy",
            "team/deploy",
            "a b",
            "team/..x",
            "v1.2",
            "team/a.b",
        ] {
            assert_eq!(RunGroup::check_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "team/../prod",
            "team/./x",
            "team//x",
            "/x",
            "x/",
            "team/.. /prod",
        ] {
            assert!(RunGroup::check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn named_groups_never_collide_with_server_groups() {
        let run = RunId::new("rabc").unwrap();
        let own = [
            RunGroup::Ref("t1 branch main".into()),
            RunGroup::Approval(run),
        ];
        for group in own {
            let key = group.key();
            assert_eq!(RunGroup::parse(&key).unwrap(), group);
            for name in [key.clone(), format!("named {key}"), group.to_string()] {
                let named = RunGroup::Named(name);
                assert_ne!(named.key(), key);
                assert_eq!(RunGroup::parse(&named.key()).unwrap(), named);
            }
        }
        assert!(RunGroup::parse("deploy").is_err());
    }
}
