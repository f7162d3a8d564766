//! Concurrency groups: whose runs take turns.
//!
//! Invariant: a name that a user chooses is only ever [`RunGroup::Named`], so that no task reaches a group that the server
//! makes for its own purposes.

use std::fmt;

use acrtask_model::RunId;

use crate::{NewRun, Result, StoreError, runs};

const NAMED: &str = "named ";
const REF: &str = "ref ";
const APPROVAL: &str = "approval ";

/// A concurrency group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunGroup {
    /// The group that a task or a run names; for a task that names none its own name.
    Named(String),
    /// Runs of one branch, tag or pull request of a task: the lane of their [`crate::Origin`].
    Ref(String),
    /// The run alone, while its commit waits for an approval.
    Approval(RunId),
}

impl RunGroup {
    /// Checks the parts of a name between slashes, as patterns of tokens read them.
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
            Self::Ref(lane) => format!("{REF}{lane}"),
            Self::Approval(run) => format!("{APPROVAL}{run}"),
        }
    }

    /// Parses the output of [`RunGroup::key`].
    pub(crate) fn parse(key: &str) -> Result<Self> {
        if let Some(name) = key.strip_prefix(NAMED) {
            Ok(Self::Named(name.to_owned()))
        } else if let Some(lane) = key.strip_prefix(REF) {
            Ok(Self::Ref(lane.to_owned()))
        } else if let Some(run) = key.strip_prefix(APPROVAL) {
            runs::id(run.to_owned()).map(Self::Approval)
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

/// The place of a new run in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The column `group_name`.
    pub(crate) key: String,
    /// Runs of the group that may run at once.
    pub(crate) max: u32,
    /// The run cancels those of the group that came before it.
    pub(crate) supersedes: bool,
}

/// Returns the group of a new run.
///
/// A run that waits for an approval always has one: its group blocks it. It supersedes no other run,
/// because the author of a pull request asked for it.
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
            let lane = origin.lane.clone().filter(|_| origin.one_at_a_time)?;
            Some(alone(RunGroup::Ref(lane)))
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
    fn parts_of_a_name_name_no_other_group() {
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
    fn no_chosen_name_is_a_group_of_the_server() {
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
