//! Tests of `text.rs`.

use proptest::prelude::*;

use super::*;
use crate::logs::split::MAX_EVENT;

const LOG: &str = r#"{"time":"2026-01-02T03:04:05Z","run":"r1","event":"task_file","name":"acr-task.yaml","text":"x","problems":[{"code":"unknown-key","error":false,"message":"a step has no key `wen`","help":"write `when`"}]}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"run_started","steps":[{"id":"build","type":"build","line":"-t app .","after":[]}],"engine":"Docker 26","builder":"BuildKit"}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"progress","message":"fetching the context"}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"step_started","step":"build","attempt":1}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"vertex","step":"build","vertex":"sha256:1","name":"[1/2] FROM alpine","started":"2026-01-02T03:04:05Z","completed":null,"cached":true}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"output","step":"build","stream":"stdout","text":"one\ntwo\r\n 10 %\r100 %\n"}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"transfer","step":"build","vertex":"v","id":"x","current":1,"total":2,"done":false}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"from_the_future","what":1}
this is not JSON
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"step_retrying","step":"build","attempt":1,"delay_secs":5,"reason":"exit code 1"}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"step_started","step":"build","attempt":2}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"warning","step":null,"message":"it is slow","help":"be patient"}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"step_finished","step":"build","state":"failed","reason":"exit code 1","exit_code":1,"ignored":false,"elapsed_ms":1234,"excerpt":"> RUN false"}
{"time":"2026-01-02T03:04:05Z","run":"r1","event":"run_finished","state":"failed","reason":"step build failed","elapsed_ms":2345,"remaining":["container x"]}
"#;

#[test]
fn events_become_lines() {
    let mut lines = Lines::default();
    let text = lines.push(LOG.as_bytes());
    assert_eq!(lines.finish(), "");
    insta::assert_snapshot!(text);
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_chunks(cut in 0..LOG.len()) {
        let mut whole = Lines::default();
        let mut cut_up = Lines::default();
        let mut text = cut_up.push(&LOG.as_bytes()[..cut]);
        text += &cut_up.push(&LOG.as_bytes()[cut..]);
        prop_assert_eq!(text, whole.push(LOG.as_bytes()));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut lines = Lines::default();
        lines.push(&bytes);
        lines.finish();
    }
}

#[test]
fn endless_line_is_skipped_with_bounded_memory() {
    let mut lines = Lines::default();
    let mut text = String::new();
    let endless = vec![b'x'; 8 << 20];
    for _ in 0..20 {
        text += &lines.push(&endless);
        assert!(lines.splitter.buffered() <= 2 * MAX_EVENT);
    }
    assert_eq!(text, "skipped a line that is not an event\n");
    let event = LOG.lines().nth(2).unwrap();
    assert_eq!(lines.push(b"the end of it\n"), "");
    assert_eq!(
        lines.push(format!("{event}\n").as_bytes()),
        "fetching the context\n"
    );
}
