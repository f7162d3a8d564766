//! What is written for deliveries beside their rows: runs, reasons why nothing, ends of runs. No I/O.

use std::collections::HashMap;

use acrtask_api::webhook::OutcomeKind;
use acrtask_model::RunId;

use super::{Ends, InLane, LeadsTo, Looked, NewDelivery};
use crate::{
    Ms, NewRun, OutcomeRow,
    db::{Arg, args},
    quotas::Admission,
};

/// What is to be written beside the deliveries.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) new: Vec<NewRun>,
    pub(super) statuses: Vec<Vec<Arg>>,
    pub(super) triggers: Vec<Vec<Arg>>,
    /// Lanes whose live runs end: which of them, and the reason.
    pub(super) ends: HashMap<String, (Ends, String)>,
    /// The new run of each lane whose older runs end because of it.
    pub(super) newer: HashMap<String, RunId>,
}

impl Plan {
    /// Adds what a delivery leads to; its outcomes.
    pub(super) fn add(
        &mut self,
        delivery: &NewDelivery,
        looked: Vec<Looked>,
        live: &[InLane],
        replayed: Option<&str>,
        admission: &mut Admission,
        now: Ms,
    ) -> Vec<OutcomeRow> {
        let mut outcomes = Vec::with_capacity(looked.len());
        for (place, one) in (0_u32..).zip(looked) {
            let Looked {
                task,
                kind,
                mut reason,
                leads_to,
            } = one;
            let mut joined = None;
            let mut started = None;
            match leads_to {
                LeadsTo::Nothing => {}
                LeadsTo::Run { .. } | LeadsTo::Cancel { .. } if replayed.is_some() => {
                    reason = format!(
                        "the same body came before, as delivery {}; redeliver that one to run it again",
                        replayed.unwrap_or_default()
                    );
                }
                LeadsTo::Cancel { lane, ends } => {
                    let ended: Vec<&str> = live
                        .iter()
                        .filter(|run| run.lane == lane && run.is_ended_by(ends))
                        .map(|run| run.id.as_str())
                        .collect();
                    reason = match ended.as_slice() {
                        [] => format!("{reason}, and no run of it was left"),
                        [one] => format!("{reason}, so its run {one} ends"),
                        ended => format!("{reason}, so its runs {} end", ended.join(", ")),
                    };
                    self.newer.remove(&lane);
                    self.ends.insert(lane, (ends, reason.clone()));
                }
                LeadsTo::Run {
                    mut new,
                    newest_wins,
                    may_join,
                    status,
                } => {
                    // After commits A, B, A, the last run has to be one of A: only the newest run is joined.
                    joined = live
                        .iter()
                        .find(|run| {
                            may_join
                                && run.newest != 0
                                && run.cancel_requested_at.is_none()
                                && Some(&run.lane) == new.origin.lane.as_ref()
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
                        if let (true, Some(lane)) = (newest_wins, &new.origin.lane) {
                            let ends = if new.origin.needs_approval {
                                Ends::Unapproved
                            } else {
                                Ends::All
                            };
                            let reason = format!("superseded by {}", new.id);
                            self.ends.insert(lane.clone(), (ends, reason));
                            self.newer.insert(lane.clone(), new.id.clone());
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
                let suppressed = run.is_none();
                self.triggers.push(args![
                    trigger.as_str(),
                    kind.as_str(),
                    task.as_str(),
                    now,
                    run.as_ref().map(RunId::as_str),
                    !suppressed,
                    suppressed.then_some(reason.as_str()),
                    suppressed.then_some(now),
                    delivery.id.as_str(),
                    place,
                    (!suppressed).then_some(reason.as_str()),
                ]);
            }
            outcomes.push(OutcomeRow {
                trigger,
                task,
                kind,
                received_at: now,
                delivery: Some(delivery.id.clone()),
                what: match (&started, &run) {
                    (Some(_), _) => OutcomeKind::Run,
                    (None, Some(_)) => OutcomeKind::Joined,
                    (None, None) => OutcomeKind::Suppressed,
                },
                run,
                reason,
            });
        }
        outcomes
    }
}
