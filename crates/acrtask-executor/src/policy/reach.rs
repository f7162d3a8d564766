//! Whether a run failed only because a registry or the engine could not be reached: nothing is then known to be
//! wrong with the task.
//!
//! Engines and builders tell their own failures as text alone. Only the reasons of steps that no process of the
//! task ended are read, so that nothing a task prints decides.

use acrtask_model::StepState;

/// The exit code of a container that the engine did not start.
const ENGINE_REFUSED: i64 = 125;

/// How Go's network stack and our own client say that there was no connection.
const SIGNS: [&str; 8] = [
    "connection refused",
    "no such host",
    "no route to host",
    "network is unreachable",
    "i/o timeout",
    "tls handshake timeout",
    "cannot be reached",
    "server misbehaving",
];

/// Whether every failure that ended the run is one of reaching somebody.
pub(crate) fn only_unreachable<'a>(states: impl IntoIterator<Item = &'a StepState>) -> bool {
    let mut failures = states.into_iter().filter_map(|state| match state {
        StepState::Failed {
            reason,
            exit_code,
            ignored: false,
        } => {
            Some(exit_code.is_none_or(|code| code == ENGINE_REFUSED) && sounds_unreachable(reason))
        }
        StepState::TimedOut { .. } => Some(false),
        _ => None,
    });
    failures.next().is_some_and(|first| first) && failures.all(|one| one)
}

fn sounds_unreachable(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    SIGNS.iter().any(|sign| reason.contains(sign))
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
    fn only_what_failed_to_connect_counts() {
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
