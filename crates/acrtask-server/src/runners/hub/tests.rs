//! The hub, without any network.

use super::*;

fn facts(slots: u32) -> Facts {
    Facts {
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

fn hold(attempt: u32) -> Hold {
    Hold {
        attempt,
        ..Hold::default()
    }
}

fn message() -> Message {
    Message::Drain(Drain {})
}

fn connect(hub: &Hub, slots: u32, queue: usize) -> (Connection, mpsc::Receiver<ToRunner>, End) {
    let (out, messages) = mpsc::channel(queue);
    let end = End::default();
    let connection = hub
        .connect(facts(slots), false, 0, HashMap::new(), out, end.clone())
        .0;
    (connection, messages, end)
}

#[tokio::test]
async fn a_runner_never_has_more_leases_than_slots() {
    let hub = Hub::default();
    let (_connection, _messages, _end) = connect(&hub, 2, 8);
    assert_eq!(hub.free(LONGEST_REST)[0].free, 2);
    hub.deliver("one", &run(1), hold(1), message()).unwrap();
    hub.deliver("one", &run(2), hold(1), message()).unwrap();
    assert!(hub.free(LONGEST_REST).is_empty());
    let third = hub.deliver("one", &run(3), hold(1), message());
    assert_eq!(third, Err(Undelivered::Full));
    assert!(hub.release("one", &run(1), 2).is_none(), "another attempt");
    assert!(hub.release("one", &run(1), 1).is_some());
    assert_eq!(hub.free(LONGEST_REST)[0].free, 1);
}

#[tokio::test]
async fn a_full_queue_ends_the_connection_at_once() {
    let hub = Hub::default();
    let (connection, _messages, end) = connect(&hub, 8, 1);
    assert!(hub.tell("one", message()));
    assert_eq!(
        hub.deliver("one", &run(1), hold(1), message()),
        Err(Undelivered::Gone)
    );
    end.reached().await;
    let status = end.status().unwrap();
    assert_eq!(status.message(), "the runner does not read what it is sent");
    hub.disconnect("one", &connection);
    assert!(!hub.tell("one", message()));
}

#[tokio::test]
async fn a_second_connection_ends_the_first_and_gives_back_what_never_arrived() {
    let hub = Hub::default();
    let (first, _messages, end) = connect(&hub, 4, 8);
    for n in 1..=3 {
        hub.deliver("one", &run(n), hold(1), message()).unwrap();
    }
    hub.accepted("one", &run(2), 1);
    let (out, _second_messages) = mpsc::channel(8);
    let held = HashMap::from([(run(1), hold(1))]);
    let (_second, lost) = hub.connect(facts(4), false, 0, held, out, End::default());
    end.reached().await;
    assert_eq!(lost, [(run(3), 1)]);
    // The first one's end, told late, changes nothing.
    hub.disconnect("one", &first);
    assert_eq!(hub.runner("one").unwrap().busy, 1);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_declines_is_left_alone_for_a_while() {
    let hub = Hub::default();
    let (_connection, _messages, _end) = connect(&hub, 1, 8);
    hub.declined("one");
    assert!(hub.free(LONGEST_REST).is_empty());
    tokio::time::advance(REST).await;
    assert_eq!(hub.free(LONGEST_REST).len(), 1);
    hub.declined("one");
    tokio::time::advance(REST).await;
    assert!(hub.free(LONGEST_REST).is_empty(), "longer the second time");
    tokio::time::advance(REST).await;
    assert_eq!(hub.free(LONGEST_REST).len(), 1);
    assert!(hub.end_silent(REST).contains(&"one".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_heartbeats_do_not_name_is_not_held_for_ever() {
    let hub = Hub::default();
    let (_connection, _messages, _end) = connect(&hub, 2, 8);
    let second = Duration::from_secs(1);
    hub.deliver("one", &run(1), hold(1), message()).unwrap();
    hub.deliver("one", &run(2), hold(1), message()).unwrap();
    let named = HashMap::from([(run(1), 1), (run(2), 7)]);
    for _ in 0..=10 {
        assert_eq!(hub.beat("one", 0, &named, second * 10), 0);
        tokio::time::advance(second).await;
    }
    assert_eq!(hub.beat("one", 0, &named, second * 10), 1);
    assert!(hub.holds("one", &run(1), 1));
    assert!(!hub.holds("one", &run(2), 1));
}
