//! Webhook deliveries with their decisions. Sessions with a task limit see those of the webhooks of
//! their prefix.

use acrtask_api::webhook::{Decision, Delivery, Refusal};
use acrtask_page::{DecisionRow, DeliveriesPage, DeliveryRow, Foreign, RefusalRow, Section};
use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use serde::Deserialize;

use super::{PageError, Site, filled, render, session::Visitor, tasks::decision_badge};
use crate::{
    api::webhooks::{self, ListDeliveries},
    auth,
};

/// Number of deliveries per page.
const PAGE: u32 = 50;

/// Position of the list, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    before: Option<String>,
}

/// Lists deliveries.
pub(super) async fn list(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Query(query): Query<ListQuery>,
) -> Result<Response, PageError> {
    let before = filled(query.before);
    let input = ListDeliveries {
        limit: Some(PAGE),
        cursor: before.clone(),
        ..ListDeliveries::default()
    };
    let page = webhooks::load_deliveries(&site.api, &by.caller, input).await?;
    let refusals = match before {
        Some(_) => Vec::new(),
        None => webhooks::load_refusals(&site.api, &by.caller, None).await?,
    };
    render(&DeliveriesPage {
        frame: by.frame("Deliveries", Section::Deliveries),
        deliveries: page
            .items
            .into_iter()
            .map(|delivery| delivery_row(&site, delivery))
            .collect(),
        refusals: refusals
            .into_iter()
            .map(|refusal| refusal_row(&site, refusal))
            .collect(),
        next: page.next,
        is_continued: before.is_some(),
    })
}

/// Shows a delivery.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let delivery = webhooks::load_delivery(&site.api, &by.caller, &id).await?;
    render(&DeliveriesPage {
        frame: by.frame(&format!("Delivery {id}"), Section::Deliveries),
        deliveries: vec![delivery_row(&site, delivery)],
        refusals: Vec::new(),
        next: None,
        is_continued: true,
    })
}

fn delivery_row(site: &Site, delivery: Delivery) -> DeliveryRow {
    DeliveryRow {
        id: delivery.id,
        received: site.moment(delivery.received_at),
        webhook: Foreign::line(delivery.webhook),
        summary: Foreign::line(delivery.summary),
        note: delivery.note.map(Foreign::line),
        decisions: delivery.decisions.into_iter().map(decision_row).collect(),
        bases: delivery
            .watches
            .into_iter()
            .map(|watch| (Foreign::line(watch.image), watch.cascade))
            .collect(),
    }
}

fn decision_row(decision: Decision) -> DecisionRow {
    DecisionRow {
        state: decision_badge(decision.action),
        task: decision.task,
        run: decision.run.map(|run| run.to_string()),
        reason: Foreign::line(decision.reason),
    }
}

fn refusal_row(site: &Site, refusal: Refusal) -> RefusalRow {
    RefusalRow {
        webhook: Foreign::line(refusal.webhook),
        message: Foreign::line(refusal.message),
        count: refusal.count,
        last: site.moment(refusal.last_at),
    }
}
