//! Tests of patterns.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn output(text: &str) -> String {
    let event = json!({
        "time": "2026-01-02T03:04:05Z", "run": "r1", "event": "output", "step": "a",
        "stream": "stdout", "text": text,
    });
    format!("{event}\n")
}

proptest! {
    #[test]
    fn filter_of_bytes_never_loses_a_match(
        before in "[a-cA-É\"\\\\\t\u{1b}é]{0,6}",
        text in "[a-cA-É\"\\\\/é ]{1,4}",
        after in "\\PC{0,6}",
        ignores_case in any::<bool>(),
    ) {
        let pattern = Pattern::new(&text, false, ignores_case).unwrap();
        let line = format!("{before}{text}{after}");
        let events = output(&line);
        if pattern.matches(&line) {
            prop_assert!(pattern.may_match(events.as_bytes()), "{}", events);
            prop_assert!(pattern.may_match_event(events.trim_end().as_bytes()), "{}", events);
        }
        // Another program may write other escapes of JSON.
        let escaped: String = line.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let events = output("TEXT").replace("TEXT", &escaped);
        if pattern.matches(&line) {
            prop_assert!(pattern.may_match(events.as_bytes()), "{}", events);
        }
    }
}

#[test]
fn filter_of_bytes_skips_other_events() {
    let pattern = Pattern::new("error: x", false, false).unwrap();
    let other = output("warning: x\n\ttabs \"quotes\" \\ too");
    assert!(!pattern.may_match(other.repeat(3).as_bytes()));
    assert!(pattern.may_match(format!("{other}{}", output("an error: x")).as_bytes()));
    // Lines of other events are composed when they are rendered.
    let started = r#"{"time":"2026-01-02T03:04:05Z","run":"r1","event":"step_started","step":"a","attempt":1}"#;
    assert!(pattern.may_match(format!("{other}{started}\n").as_bytes()));
}

#[test]
fn escape_sequences_of_terminals_are_ignored() {
    let pattern = Pattern::new("error: gone", false, false).unwrap();
    let line = "\x1b[1;31merror\x1b[0m: gone";
    assert!(pattern.matches(line));
    assert!(pattern.may_match(output(line).as_bytes()));
}

#[test]
fn case_and_regular_expressions_are_options() {
    let matches = |text: &str, is_regex, ignores_case, line: &str| {
        Pattern::new(text, is_regex, ignores_case)
            .unwrap()
            .matches(line)
    };
    assert!(!matches("Error", false, false, "an error"));
    assert!(matches("Error", false, true, "an error"));
    assert!(!matches("e.r", false, false, "error"));
    assert!(matches("^e.r", true, false, "error"));
    assert!(Pattern::new("(", true, false).is_err());
    assert!(Pattern::new("(\\w{1000}){1000}", true, false).is_err());
}
