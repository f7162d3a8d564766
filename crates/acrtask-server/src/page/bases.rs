//! List of watched base tags, and one base tag.

use acrtask_api::image::{Base, BaseStatus};
use acrtask_page::{
    BaseChangeRow, BasePage, BaseWatchRow, BasesPage, Foreign, NewerTagRow, Section, StateBadge,
};
use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use serde::Deserialize;

use super::{PageError, Site, filled, images::load_dependents, render, session::Visitor};
use crate::{
    api::{
        bases::{self, ListBases},
        images::full_name,
    },
    auth,
};

/// Number of tags per page.
const PAGE: u32 = 100;

/// Position of the list, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    after: Option<String>,
}

/// Lists base tags.
pub(super) async fn list(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Query(query): Query<ListQuery>,
) -> Result<Response, PageError> {
    let after = filled(query.after);
    let input = ListBases {
        limit: Some(PAGE),
        cursor: after.clone(),
    };
    let page = bases::load_page(&site.api, &by.caller, input).await?;
    render(&BasesPage {
        frame: by.frame("Bases", Section::Bases),
        bases: page
            .items
            .iter()
            .map(|base| watch_row(&site, base))
            .collect(),
        next: page.next,
        is_continued: after.is_some(),
    })
}

fn watch_row(site: &Site, base: &Base) -> BaseWatchRow {
    let status = base.status.as_str();
    let state = if base.paused {
        StateBadge::neutral("paused")
    } else {
        match base.status {
            BaseStatus::New => StateBadge::waiting(status),
            BaseStatus::Ok => StateBadge::good(status),
            BaseStatus::Limited => StateBadge::warning(status),
            BaseStatus::Vanished | BaseStatus::Denied | BaseStatus::Unreachable => {
                StateBadge::bad(status)
            }
        }
    };
    BaseWatchRow {
        name: base.name.clone(),
        login_of: base.login_of.as_ref().map(Foreign::line),
        state,
        detail: base.detail.as_ref().map(Foreign::line),
        digest: base.digest.as_ref().map(ToString::to_string),
        checked: base.checked_at.map(|at| site.moment(at)),
        changed: base.changed_at.map(|at| site.moment(at)),
        used_by: base.used_by,
    }
}

/// Shows a base tag.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let name = full_name(&name)?;
    let found = bases::find(&site.api, &by.caller, &name).await?;
    let (dependents, more_dependents) = load_dependents(&site, &by.caller, &name).await?;
    let changes = found.iter().flat_map(|base| &base.changes);
    let mut changes: Vec<_> = changes.collect();
    changes.sort_by_key(|change| std::cmp::Reverse(change.changed_at));
    let newer = found.first().map_or(&[][..], |base| &base.newer);
    render(&BasePage {
        frame: by.frame(&format!("Base {name}"), Section::Bases),
        watches: found.iter().map(|base| watch_row(&site, base)).collect(),
        changes: changes
            .into_iter()
            .map(|change| BaseChangeRow {
                from: change.from.to_string(),
                to: change.to.to_string(),
                at: site.moment(change.changed_at),
                moved_back: change.moved_back,
            })
            .collect(),
        newer: newer
            .iter()
            .map(|newer| NewerTagRow {
                task: newer.task.clone(),
                tag: Foreign::line(&newer.tag),
                state: newer.state.as_str(),
            })
            .collect(),
        dependents,
        more_dependents,
        name: Foreign::line(name),
    })
}
