//! Scopes of stored secrets and logins: the tasks that may use them.
//!
//! Invariants: the key of a scope is unique. A task uses the narrowest scope that has a name or
//! host: its own one, then the longest matching prefix, then all tasks.

use std::fmt;

use crate::TaskPattern;

/// The tasks that may use a stored secret or login.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskScope {
    /// A single task, by its id.
    Task(String),
    /// All tasks whose names match the pattern.
    Prefix(TaskPattern),
    /// All tasks, and runs without a task.
    All,
}

impl TaskScope {
    /// Parses the output of [`Self::key`].
    pub fn parse(key: &str) -> Self {
        // Ids of tasks are letters and digits.
        match key.parse() {
            _ if key.is_empty() => Self::All,
            Ok(pattern) => Self::Prefix(pattern),
            Err(_) => Self::Task(key.to_owned()),
        }
    }

    /// Returns the text that identifies the scope in the database: the id, `PREFIX*`, or an empty
    /// text for all tasks.
    pub fn key(&self) -> String {
        match self {
            Self::Task(id) => id.clone(),
            Self::Prefix(pattern) => pattern.to_string(),
            Self::All => String::new(),
        }
    }

    /// Returns the pattern of the tasks. `None` for one task and for all tasks.
    pub fn pattern(&self) -> Option<&TaskPattern> {
        match self {
            Self::Prefix(pattern) => Some(pattern),
            Self::Task(_) | Self::All => None,
        }
    }
}

impl fmt::Display for TaskScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(id) => write!(f, "the task {id}"),
            Self::Prefix(pattern) => write!(f, "the tasks {pattern}"),
            Self::All => f.write_str("all tasks"),
        }
    }
}

/// The keys of all scopes that a run may use, the narrowest first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScopeChain(Vec<String>);

impl ScopeChain {
    /// Returns the scopes of a task: itself, the prefixes of its name from the longest to the
    /// shortest, and all tasks.
    pub fn of_task(id: &str, name: &str) -> Self {
        Self::narrowest(Some(id), name)
    }

    /// Returns the scopes of all tasks that a pattern matches.
    pub fn of_pattern(pattern: &TaskPattern) -> Self {
        Self::narrowest(None, pattern.prefix())
    }

    /// Returns only the scope of all tasks. It is the chain of runs without a task.
    pub fn shared() -> Self {
        Self(vec![TaskScope::All.key()])
    }

    fn narrowest(id: Option<&str>, prefix: &str) -> Self {
        let ends = prefix.char_indices().map(|(at, char)| at + char.len_utf8());
        let prefixes = ends.rev().map(|end| format!("{}*", &prefix[..end]));
        let own = id.map(str::to_owned);
        Self(
            own.into_iter()
                .chain(prefixes)
                .chain([TaskScope::All.key()])
                .collect(),
        )
    }

    /// Returns the keys, the narrowest first.
    pub fn keys(&self) -> &[String] {
        &self.0
    }

    /// Sorts rows by their scopes, the narrowest first. Rows of the same scope keep their order.
    pub fn sort<T>(&self, rows: &mut [T], key: impl Fn(&T) -> &str) {
        rows.sort_by_cached_key(|row| self.0.iter().position(|own| own == key(row)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chain_of_a_task_is_sorted_from_its_id_to_all_tasks() {
        let chain = ScopeChain::of_task("id1", "a/bc");
        assert_eq!(chain.keys(), ["id1", "a/bc*", "a/b*", "a/*", "a*", ""]);
        let mut rows = ["", "a/*", "id1", "a/b*"];
        chain.sort(&mut rows, |row| row);
        assert_eq!(rows, ["id1", "a/b*", "a/*", ""]);
        assert_eq!(ScopeChain::shared().keys(), [""]);
        let pattern = "a/*".parse().unwrap();
        assert_eq!(ScopeChain::of_pattern(&pattern).keys(), ["a/*", "a*", ""]);
    }

    proptest! {
        #[test]
        fn chain_has_exactly_the_patterns_that_match(name in "[a-c/]{1,5}", prefix in "[a-c/]{1,5}") {
            let pattern: TaskPattern = format!("{prefix}*").parse().unwrap();
            let chain = ScopeChain::of_task("id1", &name);
            let key = TaskScope::Prefix(pattern.clone()).key();
            prop_assert_eq!(chain.keys().contains(&key), pattern.matches(&name));
            prop_assert_eq!(TaskScope::parse(&key), TaskScope::Prefix(pattern));
        }

        #[test]
        fn keys_parse_and_are_unique(id in "[a-z2-7]{1,16}", prefix in "[a-z/]{0,4}") {
            let scopes = [
                TaskScope::All,
                TaskScope::Task(id),
                TaskScope::Prefix(format!("{prefix}*").parse().unwrap()),
            ];
            for scope in &scopes {
                prop_assert_eq!(&TaskScope::parse(&scope.key()), scope);
            }
        }
    }
}
