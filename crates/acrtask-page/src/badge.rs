//! States as icon, word and color.

use std::fmt;

use acrtask_model::{RunState, StepState};

/// A state with its icon and its CSS class. The class sets the color only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateBadge {
    icon: &'static str,
    word: String,
    class: &'static str,
}

impl StateBadge {
    /// Creates the badge of a state that is good.
    pub fn good(word: impl Into<String>) -> Self {
        Self::new("✔", word, "good")
    }

    /// Creates the badge of a state that needs attention, such as `draining`.
    pub fn warning(word: impl Into<String>) -> Self {
        Self::new("▲", word, "warning")
    }

    /// Creates the badge of a state that is neither good nor bad, such as `disabled`.
    pub fn neutral(word: impl Into<String>) -> Self {
        Self::new("○", word, "neutral")
    }

    /// Creates the badge of a failure.
    pub fn bad(word: impl Into<String>) -> Self {
        Self::new("✖", word, "bad")
    }

    /// Creates the badge of work in progress.
    pub fn running(word: impl Into<String>) -> Self {
        Self::new("▶", word, "running")
    }

    /// Creates the badge of work that has not started.
    pub fn waiting(word: impl Into<String>) -> Self {
        Self::new("◌", word, "waiting")
    }

    /// Returns the CSS class.
    pub fn class(&self) -> &'static str {
        self.class
    }

    /// Returns the icon.
    pub fn icon(&self) -> &'static str {
        self.icon
    }

    /// Returns the word.
    pub fn word(&self) -> &str {
        &self.word
    }

    /// Returns the name of the page icon of this state.
    pub fn page_icon(&self) -> &'static str {
        match self.class {
            "good" => "icon-good.svg",
            "bad" => "icon-bad.svg",
            "running" => "icon-running.svg",
            "waiting" => "icon-waiting.svg",
            _ => "icon.svg",
        }
    }

    fn new(icon: &'static str, word: impl Into<String>, class: &'static str) -> Self {
        Self {
            icon,
            word: word.into(),
            class,
        }
    }
}

impl From<RunState> for StateBadge {
    fn from(state: RunState) -> Self {
        let (icon, class) = match state {
            RunState::Queued => ("◌", "waiting"),
            RunState::Leased => ("◔", "waiting"),
            RunState::Running => ("▶", "running"),
            RunState::Succeeded => ("✔", "good"),
            RunState::Failed => ("✖", "bad"),
            RunState::Canceled => ("⊘", "neutral"),
            RunState::TimedOut => ("⧖", "bad"),
            RunState::Error => ("‼", "bad"),
        };
        Self::new(icon, state.to_string(), class)
    }
}

impl From<&StepState> for StateBadge {
    fn from(state: &StepState) -> Self {
        let (icon, class) = match state {
            StepState::Pending => ("◌", "waiting"),
            StepState::Running => ("▶", "running"),
            StepState::Succeeded => ("✔", "good"),
            StepState::Failed { ignored: true, .. } => ("▲", "warning"),
            StepState::Failed { .. } => ("✖", "bad"),
            StepState::Skipped { .. } => ("○", "neutral"),
            StepState::Canceled { .. } => ("⊘", "neutral"),
            StepState::TimedOut { .. } => ("⧖", "bad"),
        };
        Self::new(icon, state.to_string(), class)
    }
}

impl fmt::Display for StateBadge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { icon, word, class } = self;
        write!(
            f,
            "<span class=\"state {class}\"><span aria-hidden=\"true\">{icon}</span> "
        )?;
        crate::text::write_escaped(f, word, false)?;
        f.write_str("</span>")
    }
}

impl askama::filters::HtmlSafe for StateBadge {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn states_of_runs_differ_by_icon_and_word() {
        let badges = RunState::ALL.map(StateBadge::from);
        let icons: BTreeSet<&str> = badges.iter().map(|badge| badge.icon).collect();
        let words: BTreeSet<&str> = badges.iter().map(|badge| badge.word.as_str()).collect();
        assert_eq!((icons.len(), words.len()), (8, 8));
        assert_eq!(
            badges[4].to_string(),
            "<span class=\"state bad\"><span aria-hidden=\"true\">✖</span> failed</span>"
        );
    }
}
