//! List of cascades with the plan of what is stale, and one cascade with its forms.

use std::{collections::HashMap, time::Duration};

use acrtask_api::{
    admin::Scope,
    cascade::{
        CascadeCounts, CascadeDetail, CascadeNode, CascadeNodeState, CascadePhase,
        CascadePromotion, CascadeSummary, PlanRequest,
    },
};
use acrtask_cascade::show::PlanView;
use acrtask_model::count;
use acrtask_page::{
    CascadeActions, CascadePage, CascadeRow, CascadeStatus, CascadesPage, ChangeRow, Foreign,
    GraphNode, NodeRow, Section, StateBadge, StepGraph, TagRow, WaveRow, encode_path,
    format_duration,
};
use axum::{
    extract::{Path, Query, State},
    response::{IntoResponse as _, Redirect, Response},
};
use serde::Deserialize;

use super::{
    PageError, Site, filled,
    live::{self, LivePage, LiveQuery, Update},
    render,
    runs::duration,
    session::Visitor,
};
use crate::{
    api::{
        ApiError,
        cascades::{self, CascadeAction, ListCascades},
    },
    auth::{self, Caller},
};

/// Number of cascades per page.
const PAGE: u32 = 50;
/// Most nodes and most tags of a page.
const MAX_ROWS: usize = 100;
/// Most nodes of a graph on a page with a table of the nodes.
const MAX_BOXES: usize = 60;
/// Most tasks of a wave of the plan.
const WAVE_TASKS: usize = 40;
/// Interval between updates.
const INTERVAL: Duration = Duration::from_secs(1);

/// Filter and position of the list, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    active: Option<String>,
    before: Option<String>,
}

/// Lists cascades.
pub(super) async fn list(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Query(query): Query<ListQuery>,
) -> Result<Response, PageError> {
    let active = query.active.as_deref() == Some("1");
    let before = filled(query.before);
    let input = ListCascades {
        active,
        limit: Some(PAGE),
        cursor: before.clone(),
        ..ListCascades::default()
    };
    let page = cascades::load_page(&site.api, &by.caller, input).await?;
    // A plan contains the tasks of all users.
    let plan = if before.is_none() && by.caller.tasks.is_none() {
        Some(cascades::load_plan(&site.api, &by.caller, PlanRequest::default()).await?)
    } else {
        None
    };
    let cascades = page.items.iter();
    render(&CascadesPage {
        frame: by.frame("Cascades", Section::Cascades),
        active,
        cascades: cascades
            .map(|cascade| cascade_row(&site, cascade))
            .collect(),
        changes: plan.as_ref().map_or_else(Vec::new, list_changes),
        waves: plan.as_ref().map_or_else(Vec::new, list_waves),
        refused: plan.as_ref().map_or_else(Vec::new, |plan| {
            let refused = plan.refused.iter();
            refused.map(|one| Foreign::line(&one.message)).collect()
        }),
        plan: plan.as_ref().map(describe_plan),
        next: page.next,
        is_continued: before.is_some(),
    })
}

fn describe_plan(plan: &PlanView) -> String {
    if plan.nodes.is_empty() {
        return "Nothing is stale: all images are built from the current digests of their bases."
            .to_owned();
    }
    let size = &plan.size;
    let guessed = match plan.estimate.guessed {
        0 => String::new(),
        guessed => format!(", with a guess for {}", count(guessed, "task")),
    };
    format!(
        "{} with {} in {}, about {} with {} at once{guessed}.",
        count(size.tasks, "stale task"),
        count(size.images, "image"),
        count(size.waves, "wave"),
        format_duration(plan.estimate.total_ms),
        count(plan.estimate.parallel, "run"),
    )
}

fn list_changes(plan: &PlanView) -> Vec<ChangeRow> {
    let changes = plan.changes.iter().take(MAX_ROWS).map(|change| ChangeRow {
        name: Foreign::line(&change.image),
        from: change.from.iter().map(ToString::to_string).collect(),
        to: change.to.to_string(),
    });
    changes.collect()
}

fn list_waves(plan: &PlanView) -> Vec<WaveRow> {
    let mut waves: Vec<WaveRow> = Vec::new();
    for node in &plan.nodes {
        while waves.len() <= node.wave {
            waves.push(WaveRow {
                number: waves.len() + 1,
                tasks: Vec::new(),
            });
        }
        let tasks = &mut waves[node.wave].tasks;
        if tasks.len() < WAVE_TASKS {
            tasks.push(node.task.clone());
        }
    }
    waves
}

/// Returns the row of a cascade in a list.
pub(super) fn cascade_row(site: &Site, cascade: &CascadeSummary) -> CascadeRow {
    let bases: Vec<&str> = cascade.changes.keys().map(String::as_str).collect();
    let (done, total) = progress(&cascade.counts);
    CascadeRow {
        id: cascade.id,
        state: phase_badge(cascade),
        bases: Foreign::line(bases.join(", ")),
        counts: describe_counts(&cascade.counts),
        done,
        total,
        created: site.moment(cascade.created_at),
    }
}

fn phase_badge(cascade: &CascadeSummary) -> StateBadge {
    match cascade.phase {
        _ if cascade.paused && cascade.phase != CascadePhase::Finished => {
            StateBadge::warning("paused")
        }
        _ if cascade.awaiting_approval => StateBadge::warning("awaiting approval"),
        CascadePhase::Settling => StateBadge::waiting("settling"),
        CascadePhase::Active => StateBadge::running("active"),
        CascadePhase::Canceling => StateBadge::warning("canceling"),
        CascadePhase::Finished if cascade.counts.failed > 0 => {
            StateBadge::bad("finished with failures")
        }
        CascadePhase::Finished if cascade.counts.stale + cascade.counts.canceled > 0 => {
            StateBadge::warning("incomplete")
        }
        CascadePhase::Finished => StateBadge::good("finished"),
    }
}

/// Returns the numbers of finished and of all nodes.
fn progress(counts: &CascadeCounts) -> (u32, u32) {
    let open = counts.pending + counts.ready + counts.running;
    (counts.total() - open, counts.total())
}

fn describe_counts(counts: &CascadeCounts) -> String {
    let states = CascadeNodeState::ALL.into_iter();
    let parts = states.filter_map(|state| match counts.of(state) {
        0 => None,
        count => Some(format!("{count} {}", state.as_str())),
    });
    parts.collect::<Vec<String>>().join(", ")
}

fn node_badge(state: CascadeNodeState) -> StateBadge {
    let word = state.as_str();
    match state {
        CascadeNodeState::Pending | CascadeNodeState::Ready => StateBadge::waiting(word),
        CascadeNodeState::Running => StateBadge::running(word),
        CascadeNodeState::Succeeded => StateBadge::good(word),
        CascadeNodeState::Failed => StateBadge::bad(word),
        CascadeNodeState::Stale => StateBadge::warning(word),
        CascadeNodeState::Skipped | CascadeNodeState::Canceled => StateBadge::neutral(word),
    }
}

/// Shows a cascade.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let detail = find(&site, &by.caller, &id).await?;
    let summary = &detail.summary;
    let mut frame = by.frame(&title(summary), Section::Cascades);
    frame.icon = phase_badge(summary).page_icon();
    frame.live = is_open(summary).then(|| format!("/cascades/{}/live", summary.id));
    let changes = summary.changes.iter().take(MAX_ROWS);
    render(&CascadePage {
        frame,
        id: summary.id,
        status: build_status(&site, &detail),
        actions: list_actions(&by.caller, summary),
        changes: changes
            .map(|(name, digest)| ChangeRow {
                name: Foreign::line(name),
                from: Vec::new(),
                to: digest.to_string(),
            })
            .collect(),
        created: site.moment(summary.created_at),
        finished: summary.finished_at.map(|at| site.moment(at)),
        follows: summary.follows,
    })
}

async fn find(site: &Site, caller: &Caller, id: &str) -> Result<CascadeDetail, ApiError> {
    let missing = || ApiError::not_found(format!("the cascade {id} does not exist"));
    let id = id.parse().map_err(|_| missing())?;
    cascades::find(&site.api, caller, id).await
}

fn title(cascade: &CascadeSummary) -> String {
    format!("{} cascade {}", phase_badge(cascade).word(), cascade.id)
}

/// Returns `true` if the cascade can still change without a request.
fn is_open(cascade: &CascadeSummary) -> bool {
    cascade.phase != CascadePhase::Finished || cascade.promotion == CascadePromotion::Staged
}

/// Describes a cascade in one sentence.
fn describe(detail: &CascadeDetail) -> String {
    let summary = &detail.summary;
    let counts = &summary.counts;
    let failed: Vec<&str> = detail
        .nodes
        .iter()
        .filter(|node| node.state == CascadeNodeState::Failed)
        .map(|node| node.task.as_str())
        .take(3)
        .collect();
    let failure = match failed.as_slice() {
        [] => String::new(),
        names => {
            let others = match (counts.failed as usize).saturating_sub(names.len()) {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            let stale = match counts.stale {
                0 => String::new(),
                1 => ", so one task stays stale".to_owned(),
                stale => format!(", so {stale} tasks stay stale"),
            };
            format!(" {}{others} failed{stale}.", names.join(", "))
        }
    };
    let state = match summary.phase {
        _ if summary.awaiting_approval => "The cascade cannot continue without an approval.",
        CascadePhase::Settling => "The cascade collects further changes before it starts.",
        CascadePhase::Active if summary.paused => "The cascade is paused and starts nothing.",
        CascadePhase::Active => "The cascade rebuilds what depends on the changed bases.",
        CascadePhase::Canceling => "The cascade was canceled, and its runs are ending.",
        CascadePhase::Finished if counts.failed > 0 => "The cascade finished with failures.",
        CascadePhase::Finished => "The cascade is finished.",
    };
    let promotion = match summary.promotion {
        CascadePromotion::None => "",
        CascadePromotion::Staged => " Its images are staged: no tag has changed.",
        CascadePromotion::Promoted => " Its tags are set to the new images.",
        CascadePromotion::RolledBack => " Its tags were rolled back.",
        CascadePromotion::Discarded => " Its staged images were discarded.",
    };
    let note = summary.promotion_note.as_deref();
    let note = note.map_or_else(String::new, |note| format!(" Promotion: {note}."));
    format!("{state}{failure}{promotion}{note}")
}

fn build_status(site: &Site, detail: &CascadeDetail) -> CascadeStatus {
    let summary = &detail.summary;
    let (done, total) = progress(&summary.counts);
    let waves = find_waves(&detail.nodes);
    let mut nodes: Vec<(u32, &CascadeNode)> = waves.into_iter().zip(&detail.nodes).collect();
    nodes.sort_by_key(|(wave, _)| *wave);
    let tags = detail.images.iter().take(MAX_ROWS).map(|image| TagRow {
        name: Foreign::line(&image.name),
        before: image.before.as_ref().map(ToString::to_string),
        after: image.after.to_string(),
        state: image.state.as_str(),
        reason: Foreign::line(image.reason.as_deref().unwrap_or_default()),
    });
    CascadeStatus {
        id: summary.id,
        state: phase_badge(summary),
        sentence: Foreign::line(describe(detail)),
        done,
        total,
        counts: describe_counts(&summary.counts),
        graph: graph(&detail.nodes),
        more_nodes: nodes.len().saturating_sub(MAX_ROWS),
        nodes: nodes
            .iter()
            .take(MAX_ROWS)
            .map(|(wave, node)| node_row(site, *wave, node))
            .collect(),
        more_tags: detail.images.len().saturating_sub(MAX_ROWS),
        tags: tags.collect(),
    }
}

fn node_row(site: &Site, wave: u32, node: &CascadeNode) -> NodeRow {
    let is_running = node.state == CascadeNodeState::Running;
    let spent = duration(node.started_at, node.ended_at, site.now());
    let elapsed = match (spent, node.estimate_ms) {
        (Some(spent), _) => spent,
        (None, Some(ms)) if node.state.is_open() => format!("about {}", format_duration(ms)),
        _ => String::new(),
    };
    NodeRow {
        wave,
        task: node.task.clone(),
        state: node_badge(node.state),
        reason: Foreign::line(node.reason.as_deref().unwrap_or_default()),
        run: node.run.as_ref().map(ToString::to_string),
        duration: elapsed,
        running_since: node
            .started_at
            .filter(|_| is_running)
            .map(jiff::Timestamp::as_millisecond),
    }
}

/// Returns the edges between nodes, as positions.
fn edges_of(nodes: &[CascadeNode]) -> Vec<(usize, usize)> {
    let position: HashMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| (node.task.as_str(), index))
        .collect();
    let edges = nodes.iter().enumerate().flat_map(|(to, node)| {
        let after = node.after.iter();
        let position = &position;
        after.filter_map(move |task| Some((*position.get(task.as_str())?, to)))
    });
    edges.collect()
}

/// Returns the wave of each node, from 1: the length of the longest chain of nodes before it.
fn find_waves(nodes: &[CascadeNode]) -> Vec<u32> {
    let edges = edges_of(nodes);
    let mut waves = vec![1; nodes.len()];
    // A chain has at most as many links as there are nodes.
    for _ in 0..nodes.len() {
        let mut has_changed = false;
        for (from, to) in &edges {
            if waves[*to] <= waves[*from] {
                waves[*to] = waves[*from] + 1;
                has_changed = true;
            }
        }
        if !has_changed {
            break;
        }
    }
    waves
}

fn graph(nodes: &[CascadeNode]) -> Option<StepGraph> {
    if nodes.len() > MAX_BOXES {
        return None;
    }
    let boxes = nodes.iter().map(|node| GraphNode {
        name: node.task.clone(),
        state: node_badge(node.state),
        url: Some(match &node.run {
            Some(run) => format!("/runs/{run}"),
            None => format!("/tasks/{}", encode_path(&node.task)),
        }),
    });
    StepGraph::new("Tasks in their order", boxes.collect(), edges_of(nodes))
}

/// Lists the changes that the state of a cascade allows. A cascade affects all tasks, so a session
/// with a task limit has none.
fn list_actions(caller: &Caller, cascade: &CascadeSummary) -> CascadeActions {
    let mut actions = Vec::new();
    let may_change = caller.has_scope(Scope::Write) && caller.tasks.is_none();
    let is_open = matches!(cascade.phase, CascadePhase::Settling | CascadePhase::Active);
    if may_change && is_open {
        if cascade.awaiting_approval {
            actions.push(("approve", "Approve", ""));
        }
        if cascade.paused {
            actions.push(("resume", "Resume", ""));
        } else {
            actions.push(("pause", "Pause", ""));
        }
        actions.push((
            "cancel",
            "Cancel",
            "Its runs stop. Images that are not rebuilt stay stale until the next digest change.",
        ));
    }
    let counts = &cascade.counts;
    if may_change && counts.failed + counts.stale + counts.canceled > 0 {
        actions.push(("retry", "Retry unbuilt tasks", ""));
    }
    if may_change && cascade.phase == CascadePhase::Finished {
        if cascade.promotion == CascadePromotion::Staged {
            actions.push((
                "promote",
                "Promote",
                "The tags of all staged images are set, regardless of the tests.",
            ));
        }
        if matches!(
            cascade.promotion,
            CascadePromotion::Staged | CascadePromotion::Promoted
        ) {
            actions.push((
                "rollback",
                "Roll back",
                "Its tags return to their previous digests, and staged images are discarded.",
            ));
        }
    }
    CascadeActions {
        id: cascade.id,
        actions,
    }
}

/// Sends the changes of a cascade until it is finished.
pub(super) async fn follow(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
    Query(query): Query<LiveQuery>,
) -> Result<Response, PageError> {
    find(&site, &by.caller, &id).await?;
    let page = LiveCascade {
        site: site.frozen(),
        caller: by.caller,
        id,
    };
    live::respond(&site, &by.session, &query, page).await
}

/// A cascade that an open page shows.
struct LiveCascade {
    site: Site,
    caller: Caller,
    id: String,
}

impl LivePage for LiveCascade {
    const INTERVAL: Duration = INTERVAL;

    async fn update(&mut self) -> Result<Update, ApiError> {
        let detail = find(&self.site, &self.caller, &self.id).await?;
        let summary = &detail.summary;
        Ok(Update::new(!is_open(summary))
            .add("cascade-status", &build_status(&self.site, &detail))
            .add("cascade-actions", &list_actions(&self.caller, summary))
            .titled(&title(summary), &phase_badge(summary)))
    }

    async fn changed(&mut self) {
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Changes a cascade.
pub(super) async fn change(
    by: Visitor<auth::Write>,
    State(site): State<Site>,
    Path((id, action)): Path<(String, String)>,
) -> Result<Response, PageError> {
    let cascade = find(&site, &by.caller, &id).await?.summary.id;
    let action = match action.as_str() {
        "pause" => CascadeAction::Pause,
        "resume" => CascadeAction::Resume,
        "approve" => CascadeAction::Approve,
        "cancel" => CascadeAction::Cancel,
        "retry" => CascadeAction::Retry,
        "promote" => CascadeAction::Promote,
        "rollback" => CascadeAction::Rollback,
        _ => return Err(ApiError::not_found("this form does not exist").into()),
    };
    cascades::change(&site.api, &by.caller, cascade, action).await?;
    Ok(Redirect::to(&format!("/cascades/{cascade}")).into_response())
}
