//! Colours, or none.

use acrtask_model::StepState;
use console::Style as Paint;

use crate::args::ColorWhen;

/// Whether and how to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    on: bool,
}

impl Style {
    /// No colours.
    pub(crate) const PLAIN: Self = Self { on: false };
    /// Colours.
    pub(crate) const COLORED: Self = Self { on: true };

    /// What `--color` means for an output that is a terminal or is none. `NO_COLOR` counts for `auto`
    /// (https://no-color.org), and so does `TERM=dumb`.
    pub(crate) fn new(when: ColorWhen, terminal: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        match when {
            ColorWhen::Always => Self::COLORED,
            ColorWhen::Auto if terminal && !set("NO_COLOR") && !dumb => Self::COLORED,
            ColorWhen::Auto | ColorWhen::Never => Self::PLAIN,
        }
    }

    /// True where colours are on.
    pub(crate) fn is_colored(self) -> bool {
        self.on
    }

    fn paint(self, style: &Paint, text: &str) -> String {
        if self.on {
            style.clone().force_styling(true).apply_to(text).to_string()
        } else {
            text.to_owned()
        }
    }

    /// Names and headings.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint(&Paint::new().bold(), text)
    }

    /// What matters less.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint(&Paint::new().dim(), text)
    }

    /// Success.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint(&Paint::new().green(), text)
    }

    /// Failure.
    pub(crate) fn bad(self, text: &str) -> String {
        self.paint(&Paint::new().red().bold(), text)
    }

    /// Something to look at.
    pub(crate) fn warn(self, text: &str) -> String {
        self.paint(&Paint::new().yellow(), text)
    }

    /// `text` in the colour of `state`.
    pub(crate) fn state(self, state: &StepState, text: &str) -> String {
        match state {
            StepState::Succeeded => self.good(text),
            StepState::Failed { ignored: false, .. } | StepState::TimedOut { .. } => self.bad(text),
            StepState::Failed { ignored: true, .. } | StepState::Canceled { .. } => self.warn(text),
            StepState::Pending | StepState::Running => text.to_owned(),
            StepState::Skipped { .. } => self.dim(text),
        }
    }

    /// `text` in the colour of the step at `position`, so that parallel steps can be told apart.
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
