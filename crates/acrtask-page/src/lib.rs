//! The web page: view models, templates and static files. Pure.
//!
//! The server fetches data, builds a view of this crate and renders it. Every page works without
//! script.
//!
//! Invariants:
//! * Text from outside is a [`Foreign`], which escapes itself and shows hidden characters.
//! * No template contains a script or an inline style.
//! * A state is an icon, a word and a color.
//!
//! Left out: scripts, graphs and live updates.

mod ansi;
mod assets;
mod badge;
mod log;
mod text;
mod time;
mod url;
mod views;

pub use ansi::{MAX_LINE_CHARS, Span, parse_line};
pub use assets::{Asset, asset, asset_url};
pub use badge::StateBadge;
pub use log::LogLine;
pub use text::{Foreign, show_hidden};
pub use time::{Moment, format_duration};
pub use url::{encode_path, encode_query, is_local_path};
pub use views::{
    BaseRow, Frame, ImageRow, LogPage, MePage, OverviewPage, ProblemPage, RunFilters, RunPage,
    RunRow, RunnerRow, RunnersPage, RunsPage, Section, SignInPage, StepRow, TaskPage, TaskRow,
    TasksPage, WaitPart,
};

pub use askama::{Error as RenderError, Template};
