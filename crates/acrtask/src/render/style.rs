//! Colors of the output.

use acrtask_model::StepState;
use console::Style as Paint;

use crate::args::ColorWhen;

/// Color settings of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    colored: bool,
}

impl Style {
    /// Style without colors.
    pub(crate) const PLAIN: Self = Self { colored: false };
    /// Style with colors.
    pub(crate) const COLORED: Self = Self { colored: true };

    /// Combines `--color` with the kind of the output. `auto` respects `NO_COLOR`
    /// (https://no-color.org) and `TERM=dumb`.
    pub(crate) fn new(when: ColorWhen, terminal: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        match when {
            ColorWhen::Always => Self::COLORED,
            ColorWhen::Auto if terminal && !set("NO_COLOR") && !dumb => Self::COLORED,
            ColorWhen::Auto | ColorWhen::Never => Self::PLAIN,
        }
    }

    /// Returns `true` if colors are enabled.
    pub(crate) fn is_colored(self) -> bool {
        self.colored
    }

    fn paint(self, style: &Paint, text: &str) -> String {
        if self.colored {
            style.clone().force_styling(true).apply_to(text).to_string()
        } else {
            text.to_owned()
        }
    }

    /// Styles names and headings.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint(&Paint::new().bold(), text)
    }

    /// Styles secondary text.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint(&Paint::new().dim(), text)
    }

    /// Styles a success.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint(&Paint::new().green(), text)
    }

    /// Styles a failure.
    pub(crate) fn bad(self, text: &str) -> String {
        self.paint(&Paint::new().red().bold(), text)
    }

    /// Styles a warning.
    pub(crate) fn warn(self, text: &str) -> String {
        self.paint(&Paint::new().yellow(), text)
    }

    /// Styles `text` in the color of `state`.
    pub(crate) fn state(self, state: &StepState, text: &str) -> String {
        match state {
            StepState::Succeeded => self.good(text),
            StepState::Failed { ignored: false, .. } | StepState::TimedOut { .. } => self.bad(text),
            StepState::Failed { ignored: true, .. } | StepState::Canceled { .. } => self.warn(text),
            StepState::Pending | StepState::Running => text.to_owned(),
            StepState::Skipped { .. } => self.dim(text),
        }
    }

    /// Styles `text` in the color of the step at `position`, to distinguish parallel steps.
    pub(crate) fn step(self, position: usize, text: &str) -> String {
        let paint = Paint::new();
        let paint = match position % 5 {
            0 => paint.cyan(),
            1 => paint.magenta(),
            2 => paint.blue(),
            3 => paint.yellow(),
            _ => paint.green(),
        };
        self.paint(&paint, text)
    }
}
