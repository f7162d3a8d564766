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

/// Returns all pieces of the text that are ready.
fn take_text(lines: &mut Lines) -> String {
    std::iter::from_fn(|| lines.next_piece()).collect()
}

fn push(lines: &mut Lines, bytes: &[u8]) -> String {
    lines.push(Bytes::copy_from_slice(bytes));
    take_text(lines)
}

/// Returns the text of a log that arrives in parts.
fn convert(parts: &[&[u8]]) -> String {
    let mut lines = Lines::default();
    let mut text: String = parts.iter().map(|part| push(&mut lines, part)).collect();
    lines.finish();
    text += &take_text(&mut lines);
    text
}

#[test]
fn text_of_an_event_is_made_in_bounded_pieces() {
    let log = |step: &str| {
        let text = "\\n".repeat(32 << 10) + "end";
        format!(
            r#"{{"time":"2026-01-02T03:04:05Z","run":"r1","event":"output","step":"{step}","stream":"stdout","text":"{text}"}}"#
        )
    };
    let step = "s".repeat(StepId::MAX_LEN);
    let expected = format!("{step} | \n").repeat(32 << 10) + &format!("{step} | end\n");
    // An earlier version or a foreign runner may have stored a longer id.
    for log in [log(&step), log(&"s".repeat(100_000))] {
        for has_line_end in [true, false] {
            let mut lines = Lines::default();
            let bytes = if has_line_end {
                log.clone() + "\n"
            } else {
                log.clone()
            };
            lines.push(bytes.into());
            let mut pieces: Vec<String> = std::iter::from_fn(|| lines.next_piece()).collect();
            lines.finish();
            pieces.extend(std::iter::from_fn(|| lines.next_piece()));
            let longest = pieces.iter().map(String::len).max().unwrap();
            assert!(longest <= PIECE + step.len() + 10, "{longest}");
            assert_eq!(pieces.concat(), expected);
        }
    }
}

#[test]
fn events_become_lines() {
    insta::assert_snapshot!(convert(&[LOG.as_bytes()]));
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_chunks(cut in 0..LOG.len()) {
        let (before, after) = LOG.as_bytes().split_at(cut);
        prop_assert_eq!(convert(&[before, after]), convert(&[LOG.as_bytes()]));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        convert(&[&bytes]);
    }
}

#[test]
fn endless_line_is_skipped_with_bounded_memory() {
    let mut lines = Lines::default();
    let mut text = String::new();
    let endless = vec![b'x'; 8 << 20];
    for _ in 0..20 {
        text += &push(&mut lines, &endless);
        assert!(lines.splitter.buffered() <= 2 * MAX_EVENT);
    }
    assert_eq!(text, "skipped a line that is not an event\n");
    let event = LOG.lines().nth(2).unwrap();
    assert_eq!(push(&mut lines, b"the end of it\n"), "");
    assert_eq!(
        push(&mut lines, format!("{event}\n").as_bytes()),
        "fetching the context\n"
    );
}
