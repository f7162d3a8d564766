//! Rows to write for deliveries, in addition to their own: runs, triggers, statuses and
//! cancellations. No I/O.

use std::collections::HashMap;

use acrtask_api::webhook::DecisionAction;
use acrtask_model::RunId;

use super::{CancelScope, NewDelivery, RefRun, TriggerAction, TriggerDecision};
use crate::{
    Ms, NewRun, OutcomeRow,
    db::{Arg, args},
    quotas::Admission,
};

/// Rows and cancellations to write.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) new: Vec<NewRun>,
    pub(super) statuses: Vec<Vec<Arg>>,
    pub(super) triggers: Vec<Vec<Arg>>,
    /// Refs whose live runs are canceled: scope and reason.
    pub(super) cancellations: HashMap<String, (CancelScope, String)>,
    /// New run of each ref that supersedes older runs.
    pub(super) newer: HashMap<String, RunId>,
}

impl Plan {
    /// Adds the effects of a delivery. Returns the decisions.
    pub(super) fn add(
        &mut self,
        delivery: &NewDelivery,
        decisions: Vec<TriggerDecision>,
        live: &[RefRun],
        replayed: Option<&str>,
        admission: &mut Admission,
        now: Ms,
    ) -> Vec<OutcomeRow> {
        let mut outcomes = Vec::with_capacity(decisions.len());
        for (place, one) in (0_u32..).zip(decisions) {
            let TriggerDecision {
                task,
                kind,
                mut reason,
                action,
            } = one;
            let mut joined = None;
            let mut started = None;
            match action {
                TriggerAction::Ignore => {}
                TriggerAction::Run { .. } | TriggerAction::Cancel { .. } if replayed.is_some() => {
                    reason = format!(
                        "the same body was received before, as delivery {}; redeliver that one to run it again",
                        replayed.unwrap_or_default()
                    );
                }
                TriggerAction::Cancel { ref_key, scope } => {
                    let ended: Vec<&str> = live
                        .iter()
                        .filter(|run| run.ref_key == ref_key && run.is_canceled_by(scope))
                        .map(|run| run.id.as_str())
                        .collect();
                    reason = match ended.as_slice() {
                        [] => format!("{reason}, and no run of it was left"),
                        [one] => format!("{reason}, so its run {one} ends"),
                        ended => format!("{reason}, so its runs {} end", ended.join(", ")),
                    };
                    self.newer.remove(&ref_key);
                    self.cancellations.insert(ref_key, (scope, reason.clone()));
                }
                TriggerAction::Run {
                    mut new,
                    newest_wins,
                    may_join,
                    status,
                } => {
                    // After commits A, B, A, the last run must be one of A. So only the newest run
                    // is joined.
                    joined = live
                        .iter()
                        .find(|run| {
                            may_join
                                && run.newest != 0
                                && run.cancel_requested_at.is_none()
                                && Some(&run.ref_key) == new.origin.ref_key.as_ref()
                                && run.commit_id.is_some()
                                && run.commit_id == new.origin.commit
                        })
                        .map(|run| run.id.clone());
                    let admitted = joined.is_some()
                        || match admission.admit(&new) {
                            Ok(()) => true,
                            Err(exceeded) => {
                                reason = format!("{exceeded}; {}", exceeded.help());
                                false
                            }
                        };
                    if joined.is_none() && admitted {
                        if let (true, Some(ref_key)) = (newest_wins, &new.origin.ref_key) {
                            let scope = if new.origin.needs_approval {
                                CancelScope::Unapproved
                            } else {
                                CancelScope::All
                            };
                            let reason = format!("superseded by {}", new.id);
                            self.cancellations.insert(ref_key.clone(), (scope, reason));
                            self.newer.insert(ref_key.clone(), new.id.clone());
                        }
                        if let Some(target) = status {
                            self.statuses.push(args![&new.id, target, now]);
                        }
                        new.origin.delivery = Some((delivery.id.clone(), place));
                        new.origin.reason = Some(reason.clone());
                        started = Some(new.id.clone());
                        self.new.push(*new);
                    }
                }
            }
            let run = started
                .clone()
                .or_else(|| joined.clone().and_then(|id| RunId::new(id).ok()));
            let trigger = match &started {
                Some(run) => run.to_string(),
                None => format!("{}/{place}", delivery.id),
            };
            if started.is_none() {
                let ignored = run.is_none();
                self.triggers.push(args![
                    trigger.as_str(),
                    kind.as_str(),
                    task.as_str(),
                    now,
                    run.as_ref().map(RunId::as_str),
                    !ignored,
                    ignored.then_some(reason.as_str()),
                    ignored.then_some(now),
                    delivery.id.as_str(),
                    place,
                    (!ignored).then_some(reason.as_str()),
                ]);
            }
            outcomes.push(OutcomeRow {
                trigger,
                task,
                kind,
                received_at: now,
                delivery: Some(delivery.id.clone()),
                what: match (&started, &run) {
                    (Some(_), _) => DecisionAction::RunStarted,
                    (None, Some(_)) => DecisionAction::ExistingRun,
                    (None, None) => DecisionAction::Ignored,
                },
                run,
                reason,
            });
        }
        outcomes
    }
}
