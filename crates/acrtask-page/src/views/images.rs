//! Views of images and bases.

use askama::Template;

use super::{Frame, run::image_url, task_url};
use crate::{Foreign, Moment, StateBadge, encode_path, encode_query};

fn base_url(name: &str) -> String {
    format!("/bases/{}", encode_path(name))
}

/// An image in the list.
#[derive(Debug)]
pub struct ImageListRow {
    /// Full name.
    pub name: String,
    /// Fresh or stale.
    pub state: StateBadge,
    /// Bases that make the image stale.
    pub changed: Vec<Foreign>,
    /// Name of its task.
    pub task: Option<String>,
    /// Run that pushed it.
    pub run: String,
    /// Digest.
    pub digest: String,
    /// Time of the build.
    pub built: Moment,
}

impl ImageListRow {
    pub(super) fn label(&self) -> Foreign {
        Foreign::line(&self.name)
    }

    pub(super) fn url(&self) -> String {
        image_url(&self.name)
    }

    pub(super) fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }
}

/// List of images.
#[derive(Debug, Template)]
#[template(path = "images.html")]
pub struct ImagesPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Prefix of the names, as filter.
    pub prefix: Option<String>,
    /// Set if only stale images are listed.
    pub stale: bool,
    /// Images of the page, by name.
    pub images: Vec<ImageListRow>,
    /// Cursor of the next page.
    pub next: Option<String>,
    /// Set if the page continues an earlier one.
    pub is_continued: bool,
}

impl ImagesPage {
    pub(super) fn prefix_text(&self) -> String {
        crate::show_hidden(self.prefix.as_deref().unwrap_or_default())
    }

    pub(super) fn prefix_label(&self) -> Foreign {
        Foreign::line(self.prefix.as_deref().unwrap_or_default())
    }

    pub(super) fn is_filtered(&self) -> bool {
        self.stale || self.prefix.is_some()
    }

    pub(super) fn url(&self, prefix: bool, stale: bool, after: Option<&str>) -> String {
        let prefix = self.prefix.as_deref().filter(|_| prefix);
        let stale = (stale && self.stale).then_some("1");
        let all = [("prefix", prefix), ("stale", stale), ("after", after)];
        let query: Vec<String> = all
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", encode_query(value?))))
            .collect();
        if query.is_empty() {
            "/images".to_owned()
        } else {
            format!("/images?{}", query.join("&"))
        }
    }

    pub(super) fn without_prefix(&self) -> String {
        self.url(false, true, None)
    }

    pub(super) fn without_stale(&self) -> String {
        self.url(true, false, None)
    }

    pub(super) fn next_url(&self) -> Option<String> {
        let next = self.next.as_deref()?;
        Some(self.url(true, true, Some(next)))
    }
}

/// A base of an image.
#[derive(Debug)]
pub struct ImageBaseRow {
    /// Reference with its tag or digest.
    pub name: String,
    /// Role of the base.
    pub role: &'static str,
    /// Effect of a new digest on the image.
    pub state: StateBadge,
    /// Digest that was used.
    pub digest: String,
    /// Current digest, if it differs.
    pub current: Option<String>,
    /// Task that builds the base.
    pub built_by: Option<String>,
    /// Set if the base has a page.
    pub is_watched: bool,
}

impl ImageBaseRow {
    pub(super) fn label(&self) -> Foreign {
        Foreign::line(&self.name)
    }

    pub(super) fn url(&self) -> String {
        base_url(&self.name)
    }

    pub(super) fn task_url(&self) -> String {
        task_url(self.built_by.as_deref().unwrap_or_default())
    }
}

/// An earlier push of an image.
#[derive(Debug)]
pub struct ImageBuildRow {
    /// Run that pushed it.
    pub run: String,
    /// Digest.
    pub digest: String,
    /// Time of the build.
    pub built: Moment,
}

/// Page of an image.
#[derive(Debug, Template)]
#[template(path = "image.html")]
pub struct ImagePage {
    /// Frame of the page.
    pub frame: Frame,
    /// Full name.
    pub name: Foreign,
    /// Fresh or stale.
    pub state: StateBadge,
    /// Freshness in one sentence.
    pub sentence: Foreign,
    /// Digest.
    pub digest: String,
    /// Full name, for a pull.
    pub tag: String,
    /// Repository with the digest, for a pull of exactly this image.
    pub pull: String,
    /// Name of its task.
    pub task: Option<String>,
    /// Run that pushed it.
    pub run: String,
    /// Time of the build.
    pub built: Moment,
    /// Platforms, separated by commas. Empty if unknown.
    pub platforms: Foreign,
    /// Roles of bases that count for the image.
    pub policy: &'static str,
    /// Cascade that rebuilds the image.
    pub cascade: Option<u64>,
    /// Bases of the image.
    pub bases: Vec<ImageBaseRow>,
    /// Images that depend on this one.
    pub dependents: Vec<DependentRow>,
    /// Number of dependents beyond the listed ones.
    pub more_dependents: usize,
    /// Earlier pushes, the newest first.
    pub history: Vec<ImageBuildRow>,
}

impl ImagePage {
    pub(super) fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }
}

/// An image that depends on a base.
#[derive(Debug)]
pub struct DependentRow {
    /// Full name.
    pub name: String,
    /// Name of its task.
    pub task: Option<String>,
    /// Distance from the base, from 1.
    pub distance: u32,
    /// Set if a new digest of the base would rebuild the image.
    pub rebuilt: bool,
}

impl DependentRow {
    pub(super) fn label(&self) -> Foreign {
        Foreign::line(&self.name)
    }

    pub(super) fn url(&self) -> String {
        image_url(&self.name)
    }

    pub(super) fn task_url(&self) -> String {
        task_url(self.task.as_deref().unwrap_or_default())
    }
}

/// A watched base tag.
#[derive(Debug)]
pub struct BaseWatchRow {
    /// Full name.
    pub name: String,
    /// Task whose login is used.
    pub login_of: Option<Foreign>,
    /// Status of the watch.
    pub state: StateBadge,
    /// Reason of an error status.
    pub detail: Option<Foreign>,
    /// Last digest.
    pub digest: Option<String>,
    /// Time of the last poll.
    pub checked: Option<Moment>,
    /// Time of the last digest change.
    pub changed: Option<Moment>,
    /// Number of images that were built from this base.
    pub used_by: u64,
}

impl BaseWatchRow {
    pub(super) fn label(&self) -> Foreign {
        Foreign::line(&self.name)
    }

    pub(super) fn url(&self) -> String {
        base_url(&self.name)
    }
}

/// List of watched base tags.
#[derive(Debug, Template)]
#[template(path = "bases.html")]
pub struct BasesPage {
    /// Frame of the page.
    pub frame: Frame,
    /// Tags of the page, by name.
    pub bases: Vec<BaseWatchRow>,
    /// Cursor of the next page.
    pub next: Option<String>,
    /// Set if the page continues an earlier one.
    pub is_continued: bool,
}

impl BasesPage {
    pub(super) fn next_url(&self) -> Option<String> {
        let next = self.next.as_deref()?;
        Some(format!("/bases?after={}", encode_query(next)))
    }
}

/// A digest change of a base tag.
#[derive(Debug)]
pub struct BaseChangeRow {
    /// Digest before the change.
    pub from: String,
    /// Digest after the change.
    pub to: String,
    /// Time of the poll that found it.
    pub at: Moment,
    /// Set if the tag had the new digest before.
    pub moved_back: bool,
}

/// A newer tag that a rule of a task allows.
#[derive(Debug)]
pub struct NewerTagRow {
    /// Name of the task.
    pub task: String,
    /// Newer tag.
    pub tag: Foreign,
    /// State of the rule.
    pub state: &'static str,
}

impl NewerTagRow {
    pub(super) fn task_url(&self) -> String {
        task_url(&self.task)
    }
}

/// Page of a base tag.
#[derive(Debug, Template)]
#[template(path = "base.html")]
pub struct BasePage {
    /// Frame of the page.
    pub frame: Frame,
    /// Full name.
    pub name: Foreign,
    /// Watches of the tag, one per login.
    pub watches: Vec<BaseWatchRow>,
    /// Digest changes, the newest first.
    pub changes: Vec<BaseChangeRow>,
    /// Newer tags that rules of tasks allow.
    pub newer: Vec<NewerTagRow>,
    /// Images that depend on the base.
    pub dependents: Vec<DependentRow>,
    /// Number of dependents beyond the listed ones.
    pub more_dependents: usize,
}
