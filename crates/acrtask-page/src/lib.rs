//! The web page: view models, templates and static files. Pure.
//!
//! The server fetches data, builds a view of this crate and renders it. Every page works without
//! script. The script replaces parts of a page by newly rendered ones while the page is open.
//!
//! Invariants:
//! * Text from outside is a [`Foreign`], which escapes itself and shows hidden characters.
//! * No template contains an inline script or style. The only script is `page.js`.
//! * A state is an icon, a word and a color.

mod ansi;
mod assets;
mod badge;
mod graph;
mod layout;
mod log;
mod text;
mod time;
mod url;
mod views;

pub use ansi::{MAX_LINE_CHARS, Span, parse_line};
pub use assets::{Asset, asset, asset_url};
pub use badge::StateBadge;
pub use graph::{DurationChart, GraphNode, MAX_BOXES, StepGraph};
pub use layout::{BOX_HEIGHT, BOX_WIDTH, Layout, lay_out};
pub use log::LogLine;
pub use text::{Foreign, short_digest, show_hidden};
pub use time::{Moment, format_duration};
pub use url::{encode_path, encode_query, is_local_path};
pub use views::{
    ApprovalRow, BaseChangeRow, BasePage, BaseRow, BaseWatchRow, BasesPage, CascadeActions,
    CascadePage, CascadeRow, CascadeStatus, CascadesPage, ChangeRow, DecisionRow, DeliveriesPage,
    DeliveryRow, DependentRow, FailureRow, Frame, ImageBaseRow, ImageBuildRow, ImageListRow,
    ImagePage, ImageRow, ImagesPage, LogExcerpt, LogPage, MePage, NewerTagRow, NodeRow,
    OverviewCounts, OverviewLists, OverviewPage, ProblemPage, RefusalRow, RunActions, RunFilters,
    RunHead, RunOutcome, RunPage, RunRow, RunSteps, RunnerRow, RunnersPage, RunsPage, Section,
    SignInPage, StepRow, TagRow, TaskPage, TaskRow, TasksPage, TriggerRow, WaitPart, WaitRow,
    WaveRow,
};

pub use askama::{Error as RenderError, Template};
