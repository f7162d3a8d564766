//! Tests of the hub without a network.

use super::*;

fn facts(slots: u32) -> RunnerFacts {
    RunnerFacts {
        id: "one".into(),
        name: "one".into(),
        profile: Arc::default(),
        slots,
        features: BTreeMap::new(),
        version: String::new(),
    }
}

fn run(n: u32) -> RunId {
    RunId::new(format!("r{n}")).unwrap()
}

fn lease(attempt: u32) -> SlotLease {
    SlotLease {
        attempt,
        ..SlotLease::default()
    }
}

fn message() -> Message {
    Message::Drain(Drain {})
}

fn connect(
    hub: &Hub,
    slots: u32,
    queue: usize,
) -> (Connection, mpsc::Receiver<ToRunner>, EndSignal) {
    let (out, messages) = mpsc::channel(queue);
    let end = EndSignal::default();
    let connection = hub
        .connect(facts(slots), false, 0, HashMap::new(), out, end.clone())
        .0;
    (connection, messages, end)
}

#[tokio::test]
async fn runner_has_at_most_one_lease_per_slot() {
    let hub = Hub::default();
    let (_connection, _messages, _end) = connect(&hub, 2, 8);
    assert_eq!(hub.free_runners(LONGEST_PAUSE)[0].free, 2);
    hub.deliver("one", &run(1), lease(1), message()).unwrap();
    hub.deliver("one", &run(2), lease(1), message()).unwrap();
    assert!(hub.free_runners(LONGEST_PAUSE).is_empty());
    let third = hub.deliver("one", &run(3), lease(1), message());
    assert_eq!(third, Err(Undelivered::Full));
    assert!(hub.release("one", &run(1), 2).is_none(), "another attempt");
    assert!(hub.release("one", &run(1), 1).is_some());
    assert_eq!(hub.free_runners(LONGEST_PAUSE)[0].free, 1);
}

#[tokio::test]
async fn full_queue_ends_the_connection() {
    let hub = Hub::default();
    let (connection, _messages, end) = connect(&hub, 8, 1);
    assert!(hub.send("one", message()));
    assert_eq!(
        hub.deliver("one", &run(1), lease(1), message()),
        Err(Undelivered::Gone)
    );
    end.wait().await;
    let status = end.status().unwrap();
    assert_eq!(status.message(), "the runner does not read its messages");
    hub.disconnect("one", &connection);
    assert!(!hub.send("one", message()));
}

#[tokio::test]
async fn second_connection_ends_the_first_and_returns_lost_leases() {
    let hub = Hub::default();
    let (first, _messages, end) = connect(&hub, 4, 8);
    for n in 1..=3 {
        hub.deliver("one", &run(n), lease(1), message()).unwrap();
    }
    hub.mark_accepted("one", &run(2), 1);
    let (out, _second_messages) = mpsc::channel(8);
    let leases = HashMap::from([(run(1), lease(1))]);
    let (_second, lost) = hub.connect(facts(4), false, 0, leases, out, EndSignal::default());
    end.wait().await;
    assert_eq!(lost, [(run(3), 1)]);
    // The late end of the first connection changes nothing.
    hub.disconnect("one", &first);
    assert_eq!(hub.runner("one").unwrap().busy, 1);
}

#[tokio::test(start_paused = true)]
async fn declining_runner_is_paused_longer_each_time() {
    let hub = Hub::default();
    let (_connection, _messages, _end) = connect(&hub, 1, 8);
    hub.mark_declined("one");
    assert!(hub.free_runners(LONGEST_PAUSE).is_empty());
    tokio::time::advance(PAUSE).await;
    assert_eq!(hub.free_runners(LONGEST_PAUSE).len(), 1);
    hub.mark_declined("one");
    tokio::time::advance(PAUSE).await;
    assert!(
        hub.free_runners(LONGEST_PAUSE).is_empty(),
        "longer the second time"
    );
    tokio::time::advance(PAUSE).await;
    assert_eq!(hub.free_runners(LONGEST_PAUSE).len(), 1);
    assert!(hub.end_silent(PAUSE).contains(&"one".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn lease_is_removed_after_heartbeats_omit_it() {
    let hub = Hub::default();
    let (_connection, _messages, _end) = connect(&hub, 2, 8);
    let second = Duration::from_secs(1);
    hub.deliver("one", &run(1), lease(1), message()).unwrap();
    hub.deliver("one", &run(2), lease(1), message()).unwrap();
    let named = HashMap::from([(run(1), 1), (run(2), 7)]);
    for _ in 0..=10 {
        assert_eq!(hub.record_heartbeat("one", 0, &named, second * 10), 0);
        tokio::time::advance(second).await;
    }
    assert_eq!(hub.record_heartbeat("one", 0, &named, second * 10), 1);
    assert!(hub.has_lease("one", &run(1), 1));
    assert!(!hub.has_lease("one", &run(2), 1));
}
