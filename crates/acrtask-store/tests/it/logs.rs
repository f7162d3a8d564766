//! Logs as they are stored: chunk behind chunk, each attempt for itself.

use acrtask_model::RunState;
use acrtask_store::{ChunkRow, LogState, Verdict};

use crate::support::{Fixture, LEASE, NOW, chunk, finished, on_both};

on_both!(
    a_log_is_stored_without_gaps,
    what_a_lost_attempt_logged_stays_apart,
);

async fn a_log_is_stored_without_gaps(fixture: &Fixture) {
    let run = fixture.running("one", NOW).await;
    let verdicts = fixture
        .say_all(
            "a",
            &run,
            NOW,
            vec![
                chunk(0, 10),
                chunk(10, 5),
                chunk(20, 5),
                chunk(0, 10),
                chunk(12, 3),
                chunk(12, 4),
                chunk(15, 1),
                chunk(16, 0),
            ],
        )
        .await;
    assert_eq!(
        verdicts,
        [
            Verdict::Done,
            Verdict::Done,
            Verdict::LogAt(15),
            Verdict::LogAt(15),
            Verdict::LogAt(15),
            Verdict::LogAt(15),
            Verdict::Done,
            Verdict::Done,
        ]
    );
    let from = async |offset, limit| {
        let chunks = fixture.store.log_chunks(&run.id, 1, offset, limit).await;
        let chunks = chunks.unwrap();
        chunks.iter().map(|chunk| chunk.offset).collect::<Vec<_>>()
    };
    assert_eq!(from(0, 10).await, [0, 10, 15]);
    assert_eq!(from(9, 10).await, [0, 10, 15]);
    assert_eq!(from(10, 1).await, [10]);
    assert_eq!(from(14, 10).await, [10, 15]);
    assert_eq!(from(15, 10).await, [15]);
    assert_eq!(from(16, 10).await, Vec::<u64>::new());
    assert_eq!(
        fixture.store.log_chunks(&run.id, 1, 15, 1).await.unwrap(),
        [ChunkRow {
            attempt: 1,
            offset: 15,
            length: 1,
            blob: "logs/x/15".into()
        }]
    );
    assert_eq!(
        fixture.store.log_state(&run.id).await.unwrap(),
        LogState {
            attempt: 1,
            length: 16,
            state: RunState::Running
        }
    );
    // A log that is shorter than what is stored cannot be the whole one.
    let verdict = fixture
        .say("a", &run, NOW, finished(RunState::Succeeded, 9))
        .await;
    assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    let verdict = fixture
        .say("a", &run, NOW, finished(RunState::Running, 16))
        .await;
    assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    assert_eq!(fixture.state("one").await, RunState::Running);
}

async fn what_a_lost_attempt_logged_stays_apart(fixture: &Fixture) {
    let run = fixture.running("one", NOW).await;
    fixture.say("a", &run, NOW, chunk(0, 10)).await;
    assert_eq!(
        fixture.store.attempts(&run.id).await.unwrap()[0].log_length,
        10
    );
    fixture.store.reap(NOW + LEASE + 1, 10).await.unwrap();
    assert_eq!(fixture.store.log_state(&run.id).await.unwrap().length, 10);
    let second = fixture.claim("b", 1, NOW + LEASE + 2).await.remove(0);
    assert_eq!((second.attempt, second.log_length), (2, 0));
    fixture
        .say("b", &second, NOW + LEASE + 3, chunk(0, 4))
        .await;
    let attempts = fixture.store.attempts(&run.id).await.unwrap();
    let lengths: Vec<_> = attempts.iter().map(|attempt| attempt.log_length).collect();
    assert_eq!(lengths, [10, 4]);
    assert_eq!(attempts[0].outcome.as_deref(), Some("lost"));
    assert_eq!(attempts[0].started_at, Some(NOW));
    for (attempt, length) in [(1, 10), (2, 4)] {
        let chunks = fixture
            .store
            .log_chunks(&run.id, attempt, 0, 10)
            .await
            .unwrap();
        assert_eq!(chunks[0].length, length);
    }
}
