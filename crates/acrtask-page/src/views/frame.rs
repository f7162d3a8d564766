//! Parts of every page outside its content: title, navigation, user.

use jiff::Timestamp;

use crate::{Foreign, asset_url};

/// Section of the navigation that a page belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Overview.
    Overview,
    /// Runs.
    Runs,
    /// Tasks.
    Tasks,
    /// Images.
    Images,
    /// Bases.
    Bases,
    /// Cascades.
    Cascades,
    /// Webhook deliveries.
    Deliveries,
    /// Runners.
    Runners,
    /// Pages outside the sections: sign-in, own session, problems.
    Other,
}

/// Sections of the navigation with their paths and names.
const SECTIONS: [(Section, &str, &str); 8] = [
    (Section::Overview, "/", "Overview"),
    (Section::Runs, "/runs", "Runs"),
    (Section::Tasks, "/tasks", "Tasks"),
    (Section::Images, "/images", "Images"),
    (Section::Bases, "/bases", "Bases"),
    (Section::Cascades, "/cascades", "Cascades"),
    (Section::Deliveries, "/deliveries", "Deliveries"),
    (Section::Runners, "/runners", "Runners"),
];

/// Parts of a page outside its content: title, navigation, user.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Title of the page.
    pub title: String,
    /// Section of the navigation.
    pub section: Section,
    /// Name of the token of the session. `None` without a session.
    pub user: Option<Foreign>,
    /// Name of the icon.
    pub icon: &'static str,
    /// Path of the stream that updates parts of the page. `None` if the page does not change.
    pub live: Option<String>,
    /// Clock of the server, so that a script can count times on.
    pub now: Option<Timestamp>,
}

impl Frame {
    /// Creates the frame of a page. Hidden characters of the title are shown.
    pub fn new(title: &str, section: Section, user: Option<&str>) -> Self {
        Self {
            title: crate::show_hidden(title),
            section,
            user: user.map(Foreign::line),
            icon: "icon.svg",
            live: None,
            now: None,
        }
    }

    pub(super) fn style_url(&self) -> String {
        asset_url("style.css")
    }

    pub(super) fn script_url(&self) -> String {
        asset_url("page.js")
    }

    pub(super) fn icon_url(&self) -> String {
        asset_url(self.icon)
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.now.map_or(0, Timestamp::as_millisecond)
    }

    pub(super) fn live_path(&self) -> &str {
        self.live.as_deref().unwrap_or_default()
    }

    pub(super) fn sections(&self) -> [(&'static str, &'static str, bool); 8] {
        SECTIONS.map(|(section, path, name)| (path, name, self.section == section))
    }
}
