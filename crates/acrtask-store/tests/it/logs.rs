//! Stored logs: consecutive chunks, separate for each attempt.

use acrtask_model::RunState;
use acrtask_store::{ChunkRow, LogState, Verdict};

use crate::support::{LEASE, NOW, TestDb, finished_report, log_chunk, on_both};

on_both!(log_is_stored_without_gaps, logs_of_attempts_are_separate,);

async fn log_is_stored_without_gaps(db: &TestDb) {
    let run = db.start_run("one", NOW).await;
    let verdicts = db
        .report_all(
            "a",
            &run,
            NOW,
            vec![
                log_chunk(0, 10),
                log_chunk(10, 5),
                log_chunk(20, 5),
                log_chunk(0, 10),
                log_chunk(12, 3),
                log_chunk(12, 4),
                log_chunk(15, 1),
                log_chunk(16, 0),
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
        let chunks = db.store.log_chunks(&run.id, 1, offset, limit).await;
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
        db.store.log_chunks(&run.id, 1, 15, 1).await.unwrap(),
        [ChunkRow {
            attempt: 1,
            offset: 15,
            length: 1,
            blob: "logs/x/15".into()
        }]
    );
    assert_eq!(
        db.store.log_state(&run.id).await.unwrap(),
        LogState {
            attempt: 1,
            length: 16,
            state: RunState::Running
        }
    );
    // A complete log cannot be shorter than the stored one.
    let verdict = db
        .report("a", &run, NOW, finished_report(RunState::Succeeded, 9))
        .await;
    assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    let verdict = db
        .report("a", &run, NOW, finished_report(RunState::Running, 16))
        .await;
    assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    assert_eq!(db.run_state("one").await, RunState::Running);
}

async fn logs_of_attempts_are_separate(db: &TestDb) {
    let run = db.start_run("one", NOW).await;
    db.report("a", &run, NOW, log_chunk(0, 10)).await;
    assert_eq!(db.store.attempts(&run.id).await.unwrap()[0].log_length, 10);
    db.store.expire_leases(NOW + LEASE + 1, 10).await.unwrap();
    assert_eq!(db.store.log_state(&run.id).await.unwrap().length, 10);
    let second = db.claim("b", 1, NOW + LEASE + 2).await.remove(0);
    assert_eq!((second.attempt, second.log_length), (2, 0));
    db.report("b", &second, NOW + LEASE + 3, log_chunk(0, 4))
        .await;
    let attempts = db.store.attempts(&run.id).await.unwrap();
    let lengths: Vec<_> = attempts.iter().map(|attempt| attempt.log_length).collect();
    assert_eq!(lengths, [10, 4]);
    assert_eq!(attempts[0].outcome.as_deref(), Some("lost"));
    assert_eq!(attempts[0].started_at, Some(NOW));
    for (attempt, length) in [(1, 10), (2, 4)] {
        let chunks = db.store.log_chunks(&run.id, attempt, 0, 10).await.unwrap();
        assert_eq!(chunks[0].length, length);
    }
}
