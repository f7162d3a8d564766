//! What happens to a run: pure functions from where it stands, what is said and the time to where it stands then. The
//! rest of the crate reads rows, calls these and writes rows.
//!
//! Invariants, held by the tests below:
//! - a final state never changes;
//! - what is said about an attempt that is not the current one, or by a runner that does not hold it, changes nothing;
//! - what is not final is queued or has a deadline;
//! - attempts only grow, and a log only grows within its attempt;
//! - a run never succeeds with a log that is not whole.

use acrtask_model::RunState;

use crate::{Ms, Report, Verdict};

/// What the reaper leaves a run beyond its timeout: its runner ends it by itself before that.
pub(crate) const TIMEOUT_SLACK_MS: i64 = 60_000;
/// What the reaper leaves a runner that was told to cancel.
pub(crate) const CANCEL_SLACK_MS: i64 = 600_000;

/// Where a run stands: what its life changes, and what its life depends on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Life {
    pub(crate) state: RunState,
    /// Queued, but its group has no room.
    pub(crate) held: bool,
    pub(crate) reason: Option<String>,
    pub(crate) attempt: u32,
    pub(crate) losses: u32,
    pub(crate) max_attempts: u32,
    pub(crate) timeout_ms: Option<i64>,
    pub(crate) runner_id: Option<String>,
    pub(crate) lease_until: Option<Ms>,
    /// Until then the runner has to accept; nothing once it has.
    pub(crate) accept_by: Option<Ms>,
    /// The end of its timeout, with some slack.
    pub(crate) run_until: Option<Ms>,
    pub(crate) leased_at: Option<Ms>,
    pub(crate) started_at: Option<Ms>,
    pub(crate) finished_at: Option<Ms>,
    pub(crate) cancel_requested_at: Option<Ms>,
    pub(crate) cancel_reason: Option<String>,
    pub(crate) log_length: u64,
    pub(crate) log_sha256: Option<String>,
    /// JSON.
    pub(crate) result: Option<String>,
}

/// A chunk of the log that is to be stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) attempt: u32,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) blob: String,
}

/// What a report leads to. Where `verdict` is not `Done`, nothing was changed.
#[derive(Debug, PartialEq)]
pub(crate) struct Heard {
    pub(crate) verdict: Verdict,
    pub(crate) chunk: Option<Chunk>,
}

impl Life {
    pub(crate) fn is_leased(&self) -> bool {
        matches!(self.state, RunState::Leased | RunState::Running)
    }

    /// It takes a place of its group.
    pub(crate) fn takes_place(&self) -> bool {
        !self.state.is_final() && !self.held
    }

    /// When the reaper acts.
    pub(crate) fn deadline(&self) -> Option<Ms> {
        if !self.is_leased() {
            return None;
        }
        let cancel_until = self.cancel_requested_at.map(|at| at + CANCEL_SLACK_MS);
        [
            self.lease_until,
            self.accept_by,
            self.run_until,
            cancel_until,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A runner gets it. Says whether it could.
    pub(crate) fn lease(&mut self, runner: &str, now: Ms, lease_ms: i64, accept_ms: i64) -> bool {
        if self.state != RunState::Queued || self.held {
            return false;
        }
        self.state = RunState::Leased;
        self.reason = None;
        self.attempt += 1;
        self.runner_id = Some(runner.to_owned());
        self.lease_until = Some(now + lease_ms);
        self.accept_by = Some(now + accept_ms);
        self.leased_at = Some(now);
        self.log_length = 0;
        self.log_sha256 = None;
        true
    }

    /// Somebody wants its end. Says whether that changed anything.
    pub(crate) fn cancel(&mut self, reason: &str, now: Ms) -> bool {
        if self.state.is_final() || self.cancel_requested_at.is_some() {
            return false;
        }
        self.cancel_requested_at = Some(now);
        self.cancel_reason = Some(reason.to_owned());
        if self.state == RunState::Queued {
            self.end(RunState::Canceled, Some(reason.to_owned()), now);
        }
        true
    }

    /// The reaper comes by. Says whether that changed anything. `runner` is the name of who holds it.
    pub(crate) fn expire(&mut self, runner: &str, now: Ms) -> bool {
        if self.deadline().is_none_or(|deadline| deadline >= now) {
            return false;
        }
        let accepted = self.accept_by.is_none();
        let timed_out = self.run_until.is_some_and(|until| until < now);
        let lost = if accepted {
            format!("runner {runner} was lost")
        } else {
            format!("runner {runner} did not accept it")
        };
        if self.cancel_requested_at.is_some() {
            let reason = self.cancel_reason.clone();
            self.end(RunState::Canceled, reason, now);
        } else if timed_out {
            let limit = self.timeout_ms.unwrap_or(0) / 1000;
            self.end(
                RunState::TimedOut,
                Some(format!(
                    "it ran past its timeout of {limit} s and runner {runner} did not end it"
                )),
                now,
            );
        } else if accepted && self.losses + 1 >= self.max_attempts {
            self.losses += 1;
            self.end(
                RunState::Error,
                Some(format!("{lost}, and no attempt is left")),
                now,
            );
        } else {
            self.losses += u32::from(accepted);
            self.requeue(lost);
        }
        true
    }

    /// A runner says something about an attempt.
    pub(crate) fn hear(
        &mut self,
        attempt: u32,
        runner: &str,
        report: &Report,
        now: Ms,
        lease_ms: i64,
    ) -> Heard {
        let verdict = |verdict| Heard {
            verdict,
            chunk: None,
        };
        let refused = |reason: String| verdict(Verdict::Refused { reason });
        if attempt != self.attempt {
            return refused(format!(
                "attempt {attempt} is over; the current one is {}",
                self.attempt
            ));
        }
        if self.runner_id.as_deref() != Some(runner) {
            return refused("another runner holds it".into());
        }
        if self.state.is_final() {
            // The answer to the first time may have been lost.
            let repeated = matches!(report, Report::Finished { log_length, log_sha256, .. }
                if self.log_sha256.as_ref() == Some(log_sha256) && self.log_length == *log_length);
            return if repeated {
                verdict(Verdict::Done)
            } else {
                refused(format!("the run is over: {}", self.state))
            };
        }
        if !self.is_leased() {
            return refused("its lease has ended and it is queued again".into());
        }
        match report {
            Report::Accepted => self.accept_by = None,
            Report::Started => {
                if self.state == RunState::Leased {
                    self.state = RunState::Running;
                    self.started_at = Some(now);
                    self.accept_by = None;
                    self.run_until = self.timeout_ms.map(|limit| now + limit + TIMEOUT_SLACK_MS);
                }
            }
            Report::Declined { reason } => {
                if self.state == RunState::Running {
                    return refused("it has started already".into());
                }
                if self.cancel_requested_at.is_some() {
                    let reason = self.cancel_reason.clone();
                    self.end(RunState::Canceled, reason, now);
                } else {
                    self.requeue(format!("a runner declined it: {reason}"));
                }
            }
            Report::Renewed => {
                let until = now + lease_ms;
                self.lease_until = self.lease_until.max(Some(until));
            }
            Report::LogChunk {
                offset,
                length,
                blob,
            } => {
                let end = offset + u64::from(*length);
                if *offset == self.log_length {
                    self.log_length = end;
                    let chunk = (*length > 0).then(|| Chunk {
                        attempt,
                        offset: *offset,
                        length: *length,
                        blob: blob.clone(),
                    });
                    return Heard {
                        verdict: Verdict::Done,
                        chunk,
                    };
                }
                return verdict(Verdict::LogAt(self.log_length));
            }
            Report::LogFull {
                offset,
                length,
                blob,
                reason,
            } => {
                if *offset != self.log_length {
                    return verdict(Verdict::LogAt(self.log_length));
                }
                self.log_length = offset + u64::from(*length);
                let chunk = Chunk {
                    attempt,
                    offset: *offset,
                    length: *length,
                    blob: blob.clone(),
                };
                self.end(RunState::Error, Some(reason.clone()), now);
                return Heard {
                    verdict: Verdict::Done,
                    chunk: Some(chunk),
                };
            }
            Report::Finished {
                state,
                reason,
                result,
                log_length,
                log_sha256,
            } => {
                if !state.is_final() {
                    return refused(format!("`{state}` is not the end of a run"));
                }
                if *log_length > self.log_length {
                    return verdict(Verdict::LogAt(self.log_length));
                }
                if *log_length < self.log_length {
                    return refused(format!(
                        "its log has {} already, more than the {log_length} that it is said to have",
                        acrtask_model::count(self.log_length, "byte")
                    ));
                }
                let Ok(json) = serde_json::to_string(result) else {
                    return refused("its result cannot be written down".into());
                };
                self.log_sha256 = Some(log_sha256.clone());
                self.result = Some(json);
                if self.cancel_requested_at.is_some() && *state != RunState::Succeeded {
                    let reason = self.cancel_reason.clone();
                    self.end(RunState::Canceled, reason, now);
                } else {
                    self.end(*state, reason.clone(), now);
                }
            }
        }
        verdict(Verdict::Done)
    }

    fn end(&mut self, state: RunState, reason: Option<String>, now: Ms) {
        self.state = state;
        self.held = false;
        self.reason = reason;
        self.finished_at = Some(now);
        self.lease_until = None;
        self.accept_by = None;
        self.run_until = None;
    }

    fn requeue(&mut self, reason: String) {
        self.state = RunState::Queued;
        self.reason = Some(reason);
        self.runner_id = None;
        self.lease_until = None;
        self.accept_by = None;
        self.run_until = None;
        self.leased_at = None;
        self.started_at = None;
    }
}

#[cfg(test)]
mod tests {
    use acrtask_api::run::RunResult;
    use proptest::prelude::*;

    use super::*;

    const LEASE: i64 = 30_000;
    const ACCEPT: i64 = 15_000;

    fn fresh(max_attempts: u32, timeout_ms: Option<i64>) -> Life {
        Life {
            state: RunState::Queued,
            held: false,
            reason: None,
            attempt: 0,
            losses: 0,
            max_attempts,
            timeout_ms,
            runner_id: None,
            lease_until: None,
            accept_by: None,
            run_until: None,
            leased_at: None,
            started_at: None,
            finished_at: None,
            cancel_requested_at: None,
            cancel_reason: None,
            log_length: 0,
            log_sha256: None,
            result: None,
        }
    }

    fn finished(state: RunState, log_length: u64) -> Report {
        Report::Finished {
            state,
            reason: None,
            result: Box::new(RunResult::default()),
            log_length,
            log_sha256: "ab".repeat(32),
        }
    }

    fn chunk(offset: u64, length: u32) -> Report {
        Report::LogChunk {
            offset,
            length,
            blob: format!("logs/{offset}"),
        }
    }

    #[derive(Debug, Clone)]
    enum Move {
        Wait(i64),
        Lease(u8),
        Cancel,
        Reap,
        Say {
            attempt_back: u32,
            runner: u8,
            report: Report,
        },
    }

    fn moves() -> impl Strategy<Value = Move> {
        let state = prop::sample::select(RunState::ALL.to_vec());
        let report = prop_oneof![
            1 => Just(Report::Accepted),
            3 => Just(Report::Started),
            1 => Just(Report::Declined { reason: "full".into() }),
            2 => Just(Report::Renewed),
            4 => (0u64..40, 0u32..20).prop_map(|(offset, length)| chunk(offset, length)),
            4 => (state, 0u64..40).prop_map(|(state, length)| finished(state, length)),
        ];
        prop_oneof![
            2 => (0i64..40_000).prop_map(Move::Wait),
            3 => (0u8..2).prop_map(Move::Lease),
            1 => Just(Move::Cancel),
            2 => Just(Move::Reap),
            8 => (0u32..2, 0u8..2, report).prop_map(|(attempt_back, runner, report)| Move::Say {
                attempt_back, runner, report
            }),
        ]
    }

    fn runner(number: u8) -> String {
        format!("runner-{number}")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_order_of_events_breaks_a_run(
            moves in prop::collection::vec(moves(), 1..60),
            max_attempts in 1u32..4,
            timeout in prop::option::of(1_000i64..90_000),
        ) {
            let mut life = fresh(max_attempts, timeout);
            let mut now = 1_000_000;
            for step in moves {
                let before = life.clone();
                let mut stale = false;
                match step {
                    Move::Wait(ms) => now += ms,
                    Move::Lease(number) => {
                        let leased = life.lease(&runner(number), now, LEASE, ACCEPT);
                        prop_assert_eq!(leased, before.state == RunState::Queued);
                    }
                    Move::Cancel => {
                        let changed = life.cancel("enough", now);
                        prop_assert_eq!(changed, life != before);
                    }
                    Move::Reap => {
                        let changed = life.expire("x", now);
                        prop_assert_eq!(changed, life != before);
                        // A reaper that has gone by leaves nothing whose time is over.
                        prop_assert!(life.deadline().is_none_or(|deadline| deadline >= now));
                    }
                    Move::Say { attempt_back, runner: number, report } => {
                        let attempt = life.attempt.saturating_sub(attempt_back);
                        let by = runner(number);
                        stale = attempt != life.attempt || life.runner_id.as_ref() != Some(&by);
                        let heard = life.hear(attempt, &by, &report, now, LEASE);
                        if heard.verdict != Verdict::Done {
                            prop_assert_eq!(&life, &before);
                            prop_assert!(heard.chunk.is_none());
                        } else {
                            prop_assert!(!stale);
                            // A repeated report changes nothing. Only time renews. A repeated chunk is
                            // answered with the offset that the log has reached.
                            let after = life.clone();
                            if !matches!(report, Report::Declined { .. }) {
                                let again = life.hear(attempt, &by, &report, now, LEASE);
                                let expected = match report {
                                    Report::LogChunk { length: 1.., .. } => {
                                        Verdict::LogAt(life.log_length)
                                    }
                                    _ => Verdict::Done,
                                };
                                prop_assert_eq!(again.verdict, expected);
                                prop_assert_eq!(again.chunk, None);
                                prop_assert_eq!(&life, &after);
                            }
                        }
                        if let Some(stored) = heard.chunk {
                            prop_assert_eq!(stored.offset, before.log_length);
                            prop_assert_eq!(stored.offset + u64::from(stored.length), life.log_length);
                        }
                        if life.state == RunState::Succeeded && before.state != life.state {
                            let whole = matches!(report, Report::Finished { log_length, .. }
                                if log_length == life.log_length);
                            prop_assert!(whole);
                        }
                    }
                }
                if stale || before.state.is_final() {
                    prop_assert_eq!(&life, &before);
                }
                prop_assert_eq!(life.deadline().is_some(), life.is_leased());
                prop_assert_eq!(life.finished_at.is_some(), life.state.is_final());
                prop_assert!(!life.is_leased() || life.runner_id.is_some());
                prop_assert!(life.attempt >= before.attempt);
                prop_assert!(life.attempt > before.attempt || life.log_length >= before.log_length);
                prop_assert!(life.losses <= life.max_attempts);
                let unexplained = life.state.is_final() && life.state != RunState::Succeeded && life.reason.is_none();
                // Only a runner may leave the reason out.
                prop_assert!(!unexplained || life.log_sha256.is_some());
            }
        }
    }

    #[test]
    fn a_life_as_it_should_be() {
        let mut life = fresh(3, Some(60_000));
        assert!(life.lease("a", 0, LEASE, ACCEPT));
        assert_eq!(life.deadline(), Some(ACCEPT));
        let mut say = |report: &Report, now| life.hear(1, "a", report, now, LEASE).verdict;
        assert_eq!(say(&Report::Accepted, 10), Verdict::Done);
        assert_eq!(say(&Report::Renewed, 10_000), Verdict::Done);
        assert_eq!(say(&Report::Started, 11_000), Verdict::Done);
        assert_eq!(say(&chunk(0, 7), 12_000), Verdict::Done);
        assert_eq!(say(&chunk(9, 1), 12_000), Verdict::LogAt(7));
        assert_eq!(say(&chunk(5, 5), 12_000), Verdict::LogAt(7));
        let end = finished(RunState::Succeeded, 9);
        assert_eq!(say(&end, 13_000), Verdict::LogAt(7));
        assert_eq!(say(&chunk(7, 2), 14_000), Verdict::Done);
        assert_eq!(say(&end, 15_000), Verdict::Done);
        assert_eq!(say(&end, 16_000), Verdict::Done);
        assert_eq!(
            (life.state, life.finished_at),
            (RunState::Succeeded, Some(15_000))
        );
    }

    #[test]
    fn a_lease_that_is_not_accepted_costs_no_attempt() {
        let mut life = fresh(1, None);
        for round in 1..5 {
            assert!(life.lease("a", 0, LEASE, ACCEPT));
            assert!(!life.expire("a", ACCEPT));
            assert!(life.expire("a", ACCEPT + 1));
            assert_eq!(
                (life.state, life.attempt, life.losses),
                (RunState::Queued, round, 0)
            );
        }
        assert!(life.lease("a", 0, LEASE, ACCEPT));
        life.hear(5, "a", &Report::Accepted, 1, LEASE);
        assert!(life.expire("a", LEASE + 1));
        assert_eq!(life.state, RunState::Error);
        assert_eq!(
            life.reason.as_deref(),
            Some("runner a was lost, and no attempt is left")
        );
    }

    #[test]
    fn what_was_canceled_ends_canceled_unless_it_succeeded() {
        for (reported, stored) in [
            (RunState::Failed, RunState::Canceled),
            (RunState::TimedOut, RunState::Canceled),
            (RunState::Canceled, RunState::Canceled),
            (RunState::Succeeded, RunState::Succeeded),
        ] {
            let mut life = fresh(3, None);
            life.lease("a", 0, LEASE, ACCEPT);
            life.hear(1, "a", &Report::Started, 1, LEASE);
            assert!(life.cancel("by ann", 2));
            assert!(!life.cancel("by bob", 3));
            let heard = life.hear(1, "a", &finished(reported, 0), 4, LEASE);
            assert_eq!((heard.verdict, life.state), (Verdict::Done, stored));
            let by_ann = life.reason.as_deref() == Some("by ann");
            assert_eq!(by_ann, stored == RunState::Canceled);
        }
    }

    #[test]
    fn a_runner_that_never_cancels_is_not_waited_for() {
        let mut life = fresh(3, None);
        life.lease("a", 0, LEASE, ACCEPT);
        life.hear(1, "a", &Report::Started, 1, LEASE);
        life.cancel("enough", 2);
        life.hear(1, "a", &Report::Renewed, CANCEL_SLACK_MS, LEASE);
        assert!(!life.expire("a", CANCEL_SLACK_MS + 2));
        assert!(life.expire("a", CANCEL_SLACK_MS + 3));
        assert_eq!(life.state, RunState::Canceled);
    }

    #[test]
    fn a_run_past_its_timeout_is_ended_though_its_runner_lives() {
        let mut life = fresh(3, Some(5_000));
        life.lease("a", 0, LEASE, ACCEPT);
        life.hear(1, "a", &Report::Started, 1_000, LEASE);
        let end = 1_000 + 5_000 + TIMEOUT_SLACK_MS;
        life.hear(1, "a", &Report::Renewed, end, LEASE);
        assert!(!life.expire("a", end));
        assert!(life.expire("a", end + 1));
        assert_eq!(life.state, RunState::TimedOut);
    }
}
