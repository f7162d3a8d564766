//! Runs of cascades beside those that others start, in groups in which the newest run ends those before it.

use acrtask_api::{
    cascade::{CascadeNodeState, CascadePhase},
    task::Concurrency,
};
use acrtask_cascade::cascade::{CascadeId, Event};
use acrtask_model::RunState;
use serde_json::json;

use crate::{
    BASE, begun, diamond, each, on_both,
    place::Place,
    world::{SECOND, World},
};

on_both!(
    other_runs_of_a_group_are_not_ended_and_may_end_those_of_a_cascade,
    a_run_that_was_superseded_in_vain_is_no_failed_try,
);

/// The diamond, without retries. Of the runs of its left side the newest wins.
async fn newest_wins(place: Place) -> World {
    let world = diamond(place, json!({"retries": 0})).await;
    world
        .change_task("left", |task| {
            task.queue.concurrency = Some(Concurrency {
                group: Some("left".into()),
                max: 1,
                cancel_superseded: true,
            });
        })
        .await;
    world
}

async fn other_runs_of_a_group_are_not_ended_and_may_end_those_of_a_cascade(place: Place) {
    let mut world = newest_wins(place).await;
    // A person's run is there first: it is not ended, and the cascade's waits its turn.
    let first = world.by_hand("left").await;
    begun(&mut world, "new").await;
    let mut tasks: Vec<&str> = world.held.iter().map(|run| run.trigger.as_str()).collect();
    tasks.sort_unstable();
    assert_eq!(tasks, ["cascade", "task"]);
    let run = world.app.store.run(&first).await.unwrap();
    assert_eq!(run.state, RunState::Running);
    // One that comes later ends it, and builds on the new base: nothing is left to do for the cascade.
    let second = world.by_hand("left").await;
    world.compare().await;
    let run = world.show(1).await.nodes[1].run.clone().unwrap();
    assert_eq!(
        world.states(1).await[1],
        format!("left running: its run {run} was superseded by {second}, which is waited for")
    );
    world.end_all(|_| true).await;
    assert_eq!(world.take_runs().await, ["left"]);
    // However long that takes, nothing comes behind it that would build the same again.
    world.wait(600 * SECOND);
    world.compare().await;
    assert_eq!(world.take_runs().await, [""; 0]);
    world.end_all(|_| true).await;
    world.compare().await;
    assert_eq!(
        world.states(1).await[1],
        "left skipped: it is not stale any more"
    );
    world.rest().await;
    world.assert_fresh();
    assert_eq!(world.counts().await, each(1, &["left", "right", "bottom"]));
}

/// The task is started again without having failed once, where what took its place has come to nothing.
async fn a_run_that_was_superseded_in_vain_is_no_failed_try(place: Place) {
    let mut world = newest_wins(place).await;
    world.moves(BASE, "new").await;
    world.compare().await;
    world.wait(30 * SECOND);
    world.tick().await;
    for start in 2..4 {
        // What the run waits for in the end is the last one.
        world.by_hand("left").await;
        let last = world.by_hand("left").await;
        world.compare().await;
        assert_eq!(world.state(1, "left").await, CascadeNodeState::Running);
        let taken = world.take_runs().await;
        assert!(taken.contains(&"left".to_owned()), "{taken:?}");
        assert!(world.held.iter().any(|run| run.id == last));
        world.tick().await;
        assert_eq!(world.state(1, "left").await, CascadeNodeState::Running);
        world.end_all(|name| name != "left").await;
        world.tick().await;
        let states = world.states(1).await;
        let looked_at = states[1].ends_with("; whether that has built it is looked at");
        assert!(looked_at, "{states:?}");
        world.compare().await;
        let left = world.show(1).await.nodes.remove(1);
        assert_eq!(
            (left.state, left.attempts),
            (CascadeNodeState::Running, start)
        );
    }
    // Nobody who cancels the cascade has to wait for what others do.
    world.by_hand("left").await;
    let cancel = Event::Cancel {
        cascade: CascadeId(1),
        by: "ann".into(),
    };
    world.tell(cancel).await.unwrap();
    world.tick().await;
    assert_eq!(world.show(1).await.summary.phase, CascadePhase::Over);
    assert_eq!(world.state(1, "left").await, CascadeNodeState::Canceled);
}
