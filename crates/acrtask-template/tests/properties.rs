//! Property tests with any text and data: no panic, spans inside the text, and the same bytes each
//! time.

use acrtask_template::{Limits, Template, TemplateErrorKind};
use proptest::prelude::*;

/// Small limits for fast cases.
fn limits() -> Limits {
    Limits {
        output_bytes: 1 << 16,
        steps: 5_000,
        memory_bytes: 1 << 20,
        now: Some("2026-01-02T03:04:05Z".parse().expect("a timestamp")),
        ..Limits::default()
    }
}

fn data() -> serde_json::Value {
    serde_json::json!({"a": {"b": "text", "c": null}, "l": [1, "\u{e9}", 2.5, [true]], "n": -3, "s": "h\u{e9}llo"})
}

fn check_rendering(text: &str) {
    let outcome = Template::parse("t", text).and_then(|template| {
        let first = template.render_mapped(&data(), &limits());
        assert_eq!(first, template.render_mapped(&data(), &limits()));
        first
    });
    match outcome {
        Ok(rendered) => {
            for byte in 0..rendered.text.len() {
                assert!(rendered.map.source_of(byte) < text.len());
            }
        }
        Err(error) => {
            assert!(
                text.get(error.span.clone()).is_some(),
                "{:?} in {text:?}: {error}",
                error.span
            );
            assert!(!error.message.is_empty());
        }
    }
}

/// Pieces of templates that the lexer distinguishes.
fn piece() -> impl Strategy<Value = String> {
    let names: Vec<&'static str> = acrtask_template::function_names().collect();
    prop_oneof![
        4 => prop::sample::select(names).prop_map(|name| format!(" {name} ")),
        4 => prop::sample::select(vec![
            "{{", "}}", "{{-", "-}}", " -}}", "{{- ", "(", ")", "|", ":=", "=", ",", " ", "\n", "$", "$x", "$x := ", ".",
            ".a", ".a.b", ".l", ".n", ".s", "$.a", "{{end}}", "{{else}}", "{{if ", "{{range ", "{{with ", "{{range $i, $e := ",
            "{{define \"d\"}}", "{{template \"d\" .}}", "{{block \"e\" .}}", "{{break}}", "{{continue}}", "{{/*", "*/}}",
            "\"", "\"text\"", "`raw`", "'c'", "1", "-2", "0x1F", "1.5", "1e9", "nil", "true", "\"%v %d %q %5.2f\"",
            "\"[a-z]+\"", "\"2006-01-02\"", "\"h\u{e9}\u{1F600}\"", "9223372036854775807", "-9223372036854775808", "\"\"",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,3}",
    ]
}

/// Actions that call a function with arguments of every type.
fn call() -> impl Strategy<Value = String> {
    let names: Vec<&'static str> = acrtask_template::function_names().collect();
    let argument = prop::sample::select(vec![
        "nil",
        ".zz",
        ".a",
        ".a.c",
        ".l",
        ".s",
        "true",
        "0",
        "1",
        "-1",
        "3",
        "1.5",
        "1e300",
        "9223372036854775807",
        "-9223372036854775808",
        "\"\"",
        "\"a\"",
        "\"a,b\"",
        "\"h\u{e9}llo w\u{f6}rld\"",
        "\"1.2.3\"",
        "\"[a-z]*\"",
        "\"2006 Jan _2 15:04:05.000 MST -07:00\"",
        "\"24h\"",
        "(list)",
        "(list 1 nil \"a\")",
        "(dict)",
        "(dict \"a\" (dict \"b\" 1))",
        "(until 3)",
        "(splitList \",\" \"b,a\")",
        "(split \",\" \"b,a\")",
        "now",
        "(semver \"1.2.3-a\")",
        "(index \"a\" 0)",
        "(int64 7)",
        "(float64 \"nan\")",
        "(float64 \"inf\")",
        "(now.Sub now)",
        "now.Month",
        "(rest (list))",
        "(chunk 1 (list 1 2))",
        "\"%[2]*.[1]*f %-+# 08.3d %U\"",
        "\"aGk=\"",
        "\"{\\\"a\\\":[1]}\"",
        "\"https://u:p@h:1/p?q#f\"",
        "\">=1, <2 || ~3\"",
    ]);
    (
        prop::sample::select(names),
        prop::collection::vec(argument, 0..5),
    )
        .prop_map(|(name, arguments)| format!("{{{{{name} {}}}}}", arguments.join(" ")))
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
        check_rendering(&text);
        check_rendering(&format!("{{{{{text}}}}}"));
    }

    #[test]
    fn arbitrary_pieces_never_panic(pieces in prop::collection::vec(piece(), 0..25)) {
        check_rendering(&pieces.concat());
        check_rendering(&format!("{{{{{}}}}}", pieces.concat()));
    }

    #[test]
    fn arbitrary_calls_never_panic(calls in prop::collection::vec(call(), 1..4)) {
        for call in &calls {
            check_rendering(call);
        }
    }

    /// Text without an action renders as itself, each byte from its own place.
    #[test]
    fn plain_text_renders_as_itself(text in "[^{]{0,60}") {
        let template = Template::parse("t", &text).expect("no action, no fault");
        let rendered = template.render_mapped(&serde_json::Value::Null, &Limits::default()).expect("nothing to refuse");
        prop_assert_eq!(&rendered.text, &text);
        for byte in 0..text.len() {
            prop_assert_eq!(rendered.map.source_of(byte), byte);
        }
    }

    /// Text from data is copied unchanged, and quoting it can be reversed.
    #[test]
    fn data_is_never_interpreted(text in "\\PC{0,40}") {
        let template = Template::parse("t", "<{{.x}}>{{toJson .x}}{{printf \"%s\" .x}}").expect("it parses");
        let out = template.render(&serde_json::json!({"x": text}), &Limits::default()).expect("it renders");
        let json = serde_json::to_string(&text).expect("a text");
        let json = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
        let json = json.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
        prop_assert_eq!(out, format!("<{text}>{json}{text}"));
    }

    /// Limits hold however small they are.
    #[test]
    fn limits_are_kept(bytes in 0_usize..200, steps in 0_u64..200, calls in prop::collection::vec(call(), 1..4)) {
        let limits = Limits { output_bytes: bytes, steps, ..limits() };
        if let Ok(template) = Template::parse("t", &calls.concat()) {
            match template.render(&data(), &limits) {
                Ok(text) => prop_assert!(text.len() <= bytes),
                Err(error) => prop_assert!(error.kind != TemplateErrorKind::Parse),
            }
        }
    }
}
