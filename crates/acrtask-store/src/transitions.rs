//! State machine of a run: pure functions from the current state, an event and the time to the next
//! state. The rest of the crate reads rows, calls these functions and writes rows.
//!
//! Invariants, checked by the tests below:
//! - A final state never changes.
//! - A report about an earlier attempt, or from another runner, changes nothing.
//! - A run that is not final is queued or has a deadline.
//! - Attempts only grow, and a log only grows within its attempt.
//! - A run never succeeds with an incomplete log.

use acrtask_model::RunState;

use crate::{Ms, Report, Verdict};

/// Grace period of the reaper after a run's timeout, in milliseconds. The runner normally ends the
/// run earlier.
pub(crate) const TIMEOUT_SLACK_MS: i64 = 60_000;
/// Grace period of the reaper after a cancellation request, in milliseconds.
pub(crate) const CANCEL_SLACK_MS: i64 = 600_000;

/// State of a run, and the limits that its transitions depend on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunStateMachine {
    pub(crate) state: RunState,
    /// Queued, but not ready: the concurrency group has no free slot.
    pub(crate) blocked: bool,
    pub(crate) reason: Option<String>,
    pub(crate) attempt: u32,
    pub(crate) lost_attempts: u32,
    pub(crate) max_attempts: u32,
    pub(crate) timeout_ms: Option<i64>,
    pub(crate) runner_id: Option<String>,
    pub(crate) lease_until: Option<Ms>,
    /// Deadline for the runner to accept the run. `None` after it has accepted.
    pub(crate) accept_by: Option<Ms>,
    /// End of the timeout plus [`TIMEOUT_SLACK_MS`].
    pub(crate) run_until: Option<Ms>,
    pub(crate) leased_at: Option<Ms>,
    pub(crate) started_at: Option<Ms>,
    pub(crate) finished_at: Option<Ms>,
    pub(crate) cancel_requested_at: Option<Ms>,
    pub(crate) cancel_reason: Option<String>,
    pub(crate) log_length: u64,
    pub(crate) log_sha256: Option<String>,
    /// JSON of the result.
    pub(crate) result: Option<String>,
}

/// Log chunk to be stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) attempt: u32,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) blob: String,
}

/// Result of applying a report. If `verdict` is not `Done`, the run is unchanged.
#[derive(Debug, PartialEq)]
pub(crate) struct ReportOutcome {
    pub(crate) verdict: Verdict,
    pub(crate) chunk: Option<Chunk>,
}

impl RunStateMachine {
    pub(crate) fn is_leased(&self) -> bool {
        matches!(self.state, RunState::Leased | RunState::Running)
    }

    /// Returns `true` if the run occupies a slot of its concurrency group.
    pub(crate) fn occupies_group_slot(&self) -> bool {
        !self.state.is_final() && !self.blocked
    }

    /// Returns the time at which the reaper acts.
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

    /// Leases the run to `runner`. Returns `false` if the run is not ready.
    pub(crate) fn lease(&mut self, runner: &str, now: Ms, lease_ms: i64, accept_ms: i64) -> bool {
        if self.state != RunState::Queued || self.blocked {
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

    /// Requests the cancellation of the run. Returns `false` if nothing changed.
    pub(crate) fn cancel(&mut self, reason: &str, now: Ms) -> bool {
        if self.state.is_final() || self.cancel_requested_at.is_some() {
            return false;
        }
        self.cancel_requested_at = Some(now);
        self.cancel_reason = Some(reason.to_owned());
        if self.state == RunState::Queued {
            self.finish(RunState::Canceled, Some(reason.to_owned()), now);
        }
        true
    }

    /// Applies the deadlines. `runner` is the name of the runner that leases the run. Returns
    /// `false` if nothing changed.
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
            self.finish(RunState::Canceled, reason, now);
        } else if timed_out {
            let limit = self.timeout_ms.unwrap_or(0) / 1000;
            self.finish(
                RunState::TimedOut,
                Some(format!(
                    "it ran past its timeout of {limit} s and runner {runner} did not end it"
                )),
                now,
            );
        } else if accepted && self.lost_attempts + 1 >= self.max_attempts {
            self.lost_attempts += 1;
            self.finish(
                RunState::Error,
                Some(format!("{lost}, and no attempt is left")),
                now,
            );
        } else {
            self.lost_attempts += u32::from(accepted);
            self.requeue(lost);
        }
        true
    }

    /// Applies a runner's report about an attempt.
    pub(crate) fn apply_report(
        &mut self,
        attempt: u32,
        runner: &str,
        report: &Report,
        now: Ms,
        lease_ms: i64,
    ) -> ReportOutcome {
        let verdict = |verdict| ReportOutcome {
            verdict,
            chunk: None,
        };
        let refused = |reason: String| verdict(Verdict::Refused { reason });
        if attempt != self.attempt {
            return refused(format!(
                "attempt {attempt} has ended; the current one is {}",
                self.attempt
            ));
        }
        if self.runner_id.as_deref() != Some(runner) {
            return refused("another runner leases the run".into());
        }
        if self.state.is_final() {
            // The runner repeats the report if it did not receive the first verdict.
            let repeated = matches!(report, Report::Finished { log_length, log_sha256, .. }
                if self.log_sha256.as_ref() == Some(log_sha256) && self.log_length == *log_length);
            return if repeated {
                verdict(Verdict::Done)
            } else {
                refused(format!("the run has finished: {}", self.state))
            };
        }
        if !self.is_leased() {
            return refused("the lease has ended and the run is queued again".into());
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
                    return refused("the run has started already".into());
                }
                if self.cancel_requested_at.is_some() {
                    let reason = self.cancel_reason.clone();
                    self.finish(RunState::Canceled, reason, now);
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
                    return ReportOutcome {
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
                self.finish(RunState::Error, Some(reason.clone()), now);
                return ReportOutcome {
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
                        "the stored log has {}, more than the reported {log_length}",
                        acrtask_model::count(self.log_length, "byte")
                    ));
                }
                let Ok(json) = serde_json::to_string(result) else {
                    return refused("the result cannot be serialized".into());
                };
                self.log_sha256 = Some(log_sha256.clone());
                self.result = Some(json);
                if self.cancel_requested_at.is_some() && *state != RunState::Succeeded {
                    let reason = self.cancel_reason.clone();
                    self.finish(RunState::Canceled, reason, now);
                } else {
                    self.finish(*state, reason.clone(), now);
                }
            }
        }
        verdict(Verdict::Done)
    }

    fn finish(&mut self, state: RunState, reason: Option<String>, now: Ms) {
        self.state = state;
        self.blocked = false;
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

    fn queued_run(max_attempts: u32, timeout_ms: Option<i64>) -> RunStateMachine {
        RunStateMachine {
            state: RunState::Queued,
            blocked: false,
            reason: None,
            attempt: 0,
            lost_attempts: 0,
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
        Report {
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
            8 => (0u32..2, 0u8..2, report).prop_map(|(attempt_back, runner, report)| Move::Report {
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
        fn invariants_survive_any_order_of_events(
            moves in prop::collection::vec(moves(), 1..60),
            max_attempts in 1u32..4,
            timeout in prop::option::of(1_000i64..90_000),
        ) {
            let mut machine = queued_run(max_attempts, timeout);
            let mut now = 1_000_000;
            for step in moves {
                let before = machine.clone();
                let mut stale = false;
                match step {
                    Move::Wait(ms) => now += ms,
                    Move::Lease(number) => {
                        let leased = machine.lease(&runner(number), now, LEASE, ACCEPT);
                        prop_assert_eq!(leased, before.state == RunState::Queued);
                    }
                    Move::Cancel => {
                        let changed = machine.cancel("enough", now);
                        prop_assert_eq!(changed, machine != before);
                    }
                    Move::Reap => {
                        let changed = machine.expire("x", now);
                        prop_assert_eq!(changed, machine != before);
                        // The reaper leaves no deadline that has passed.
                        prop_assert!(machine.deadline().is_none_or(|deadline| deadline >= now));
                    }
                    Move::Report { attempt_back, runner: number, report } => {
                        let attempt = machine.attempt.saturating_sub(attempt_back);
                        let by = runner(number);
                        stale = attempt != machine.attempt || machine.runner_id.as_ref() != Some(&by);
                        let outcome = machine.apply_report(attempt, &by, &report, now, LEASE);
                        if outcome.verdict != Verdict::Done {
                            prop_assert_eq!(&machine, &before);
                            prop_assert!(outcome.chunk.is_none());
                        } else {
                            prop_assert!(!stale);
                            // A repeated report changes nothing, because only time renews a lease.
                            // The verdict on a repeated chunk contains the current length of the
                            // log.
                            let after = machine.clone();
                            if !matches!(report, Report::Declined { .. }) {
                                let repeated = machine.apply_report(attempt, &by, &report, now, LEASE);
                                let expected = match report {
                                    Report::LogChunk { length: 1.., .. } => {
                                        Verdict::LogAt(machine.log_length)
                                    }
                                    _ => Verdict::Done,
                                };
                                prop_assert_eq!(repeated.verdict, expected);
                                prop_assert_eq!(repeated.chunk, None);
                                prop_assert_eq!(&machine, &after);
                            }
                        }
                        if let Some(stored) = outcome.chunk {
                            prop_assert_eq!(stored.offset, before.log_length);
                            prop_assert_eq!(stored.offset + u64::from(stored.length), machine.log_length);
                        }
                        if machine.state == RunState::Succeeded && before.state != machine.state {
                            let whole = matches!(report, Report::Finished { log_length, .. }
                                if log_length == machine.log_length);
                            prop_assert!(whole);
                        }
                    }
                }
                if stale || before.state.is_final() {
                    prop_assert_eq!(&machine, &before);
                }
                prop_assert_eq!(machine.deadline().is_some(), machine.is_leased());
                prop_assert_eq!(machine.finished_at.is_some(), machine.state.is_final());
                prop_assert!(!machine.is_leased() || machine.runner_id.is_some());
                prop_assert!(machine.attempt >= before.attempt);
                prop_assert!(machine.attempt > before.attempt || machine.log_length >= before.log_length);
                prop_assert!(machine.lost_attempts <= machine.max_attempts);
                let unexplained = machine.state.is_final() && machine.state != RunState::Succeeded && machine.reason.is_none();
                // Only a runner may omit the reason.
                prop_assert!(!unexplained || machine.log_sha256.is_some());
            }
        }
    }

    #[test]
    fn run_passes_from_lease_to_success() {
        let mut machine = queued_run(3, Some(60_000));
        assert!(machine.lease("a", 0, LEASE, ACCEPT));
        assert_eq!(machine.deadline(), Some(ACCEPT));
        let mut report =
            |report: &Report, now| machine.apply_report(1, "a", report, now, LEASE).verdict;
        assert_eq!(report(&Report::Accepted, 10), Verdict::Done);
        assert_eq!(report(&Report::Renewed, 10_000), Verdict::Done);
        assert_eq!(report(&Report::Started, 11_000), Verdict::Done);
        assert_eq!(report(&chunk(0, 7), 12_000), Verdict::Done);
        assert_eq!(report(&chunk(9, 1), 12_000), Verdict::LogAt(7));
        assert_eq!(report(&chunk(5, 5), 12_000), Verdict::LogAt(7));
        let end = finished(RunState::Succeeded, 9);
        assert_eq!(report(&end, 13_000), Verdict::LogAt(7));
        assert_eq!(report(&chunk(7, 2), 14_000), Verdict::Done);
        assert_eq!(report(&end, 15_000), Verdict::Done);
        assert_eq!(report(&end, 16_000), Verdict::Done);
        assert_eq!(
            (machine.state, machine.finished_at),
            (RunState::Succeeded, Some(15_000))
        );
    }

    #[test]
    fn unaccepted_lease_is_not_a_lost_attempt() {
        let mut machine = queued_run(1, None);
        for round in 1..5 {
            assert!(machine.lease("a", 0, LEASE, ACCEPT));
            assert!(!machine.expire("a", ACCEPT));
            assert!(machine.expire("a", ACCEPT + 1));
            assert_eq!(
                (machine.state, machine.attempt, machine.lost_attempts),
                (RunState::Queued, round, 0)
            );
        }
        assert!(machine.lease("a", 0, LEASE, ACCEPT));
        machine.apply_report(5, "a", &Report::Accepted, 1, LEASE);
        assert!(machine.expire("a", LEASE + 1));
        assert_eq!(machine.state, RunState::Error);
        assert_eq!(
            machine.reason.as_deref(),
            Some("runner a was lost, and no attempt is left")
        );
    }

    #[test]
    fn canceled_run_ends_canceled_unless_it_succeeds() {
        for (reported, stored) in [
            (RunState::Failed, RunState::Canceled),
            (RunState::TimedOut, RunState::Canceled),
            (RunState::Canceled, RunState::Canceled),
            (RunState::Succeeded, RunState::Succeeded),
        ] {
            let mut machine = queued_run(3, None);
            machine.lease("a", 0, LEASE, ACCEPT);
            machine.apply_report(1, "a", &Report::Started, 1, LEASE);
            assert!(machine.cancel("by ann", 2));
            assert!(!machine.cancel("by bob", 3));
            let outcome = machine.apply_report(1, "a", &finished(reported, 0), 4, LEASE);
            assert_eq!((outcome.verdict, machine.state), (Verdict::Done, stored));
            let by_ann = machine.reason.as_deref() == Some("by ann");
            assert_eq!(by_ann, stored == RunState::Canceled);
        }
    }

    #[test]
    fn reaper_ends_canceled_run_after_grace_period() {
        let mut machine = queued_run(3, None);
        machine.lease("a", 0, LEASE, ACCEPT);
        machine.apply_report(1, "a", &Report::Started, 1, LEASE);
        machine.cancel("enough", 2);
        machine.apply_report(1, "a", &Report::Renewed, CANCEL_SLACK_MS, LEASE);
        assert!(!machine.expire("a", CANCEL_SLACK_MS + 2));
        assert!(machine.expire("a", CANCEL_SLACK_MS + 3));
        assert_eq!(machine.state, RunState::Canceled);
    }

    #[test]
    fn reaper_ends_run_past_timeout_despite_heartbeats() {
        let mut machine = queued_run(3, Some(5_000));
        machine.lease("a", 0, LEASE, ACCEPT);
        machine.apply_report(1, "a", &Report::Started, 1_000, LEASE);
        let end = 1_000 + 5_000 + TIMEOUT_SLACK_MS;
        machine.apply_report(1, "a", &Report::Renewed, end, LEASE);
        assert!(!machine.expire("a", end));
        assert!(machine.expire("a", end + 1));
        assert_eq!(machine.state, RunState::TimedOut);
    }
}
