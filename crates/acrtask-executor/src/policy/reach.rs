//! Detection of runs that failed only because a registry or the engine was unreachable. Such a
//! failure is not evidence against the task.
//!
//! Engines and builders report their own failures as text only. Only the reasons of steps that no
//! process of the task ended are used, so that the output of a task has no influence.

use acrtask_model::StepState;

/// Exit code of a container that the engine did not start.
const ENGINE_REFUSED: i64 = 125;

/// Messages of Go's network stack and of this program's client for a failed connection.
const UNREACHABLE_MESSAGES: [&str; 8] = [
    "connection refused",
    "no such host",
    "no route to host",
    "network is unreachable",
    "i/o timeout",
    "tls handshake timeout",
    "cannot be reached",
    "server misbehaving",
];

/// Returns `true` if every failure that ended the run was a failed connection.
pub(crate) fn only_unreachable<'a>(states: impl IntoIterator<Item = &'a StepState>) -> bool {
    let mut failures = states.into_iter().filter_map(|state| match state {
        StepState::Failed {
            reason,
            exit_code,
            ignored: false,
        } => Some(
            exit_code.is_none_or(|code| code == ENGINE_REFUSED) && is_unreachable_message(reason),
        ),
        StepState::TimedOut { .. } => Some(false),
        _ => None,
    });
    failures.next().is_some_and(|first| first) && failures.all(|one| one)
}

fn is_unreachable_message(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    UNREACHABLE_MESSAGES
        .iter()
        .any(|text| reason.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(reason: &str, exit_code: Option<i64>, ignored: bool) -> StepState {
        StepState::Failed {
            reason: reason.into(),
            exit_code,
            ignored,
        }
    }

    #[test]
    fn only_connection_failures_count() {
        let refused = || {
            failed(
                "dial tcp 127.0.0.1:1: connect: connection refused",
                None,
                false,
            )
        };
        let ordinary = || failed("exit code 1", Some(1), false);
        for (states, expected) in [
            (vec![], false),
            (vec![StepState::Succeeded], false),
            (vec![StepState::Succeeded, refused()], true),
            (vec![refused(), ordinary()], false),
            (vec![ordinary()], false),
            (vec![failed("connection refused", Some(1), false)], false),
            (vec![failed("connection refused", Some(125), false)], true),
            (vec![failed("connection refused", None, true)], false),
            (vec![failed("manifest unknown", None, false)], false),
            (
                vec![refused(), StepState::TimedOut { after_secs: 1 }],
                false,
            ),
        ] {
            assert_eq!(only_unreachable(&states), expected, "{states:?}");
        }
    }
}
