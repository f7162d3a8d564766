//! Tests of `glob.rs`.

use globset::GlobBuilder;
use proptest::prelude::*;

use super::*;

/// Checks a pattern against the crate `globset`.
fn compare(pattern: &str, texts: &[String]) -> Result<(), TestCaseError> {
    let reference = GlobBuilder::new(pattern).literal_separator(true).build();
    let own = Glob::new(pattern);
    match (reference, own) {
        (Ok(reference), Ok(own)) => {
            let reference = reference.compile_matcher();
            for text in texts {
                let found = own.is_match(text, &mut u64::MAX.clone());
                prop_assert_eq!(
                    found,
                    Some(reference.is_match(text)),
                    "{:?} {:?}",
                    pattern,
                    text
                );
            }
        }
        (Err(reference), Err(own)) => {
            prop_assert_eq!(
                reference.kind().to_string(),
                own.to_string(),
                "{:?}",
                pattern
            );
        }
        (reference, own) => prop_assert!(false, "{:?}: {:?} {:?}", pattern, reference, own),
    }
    Ok(())
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[ab/]".prop_map(String::from),
        4 => prop_oneof![
            Just("*"), Just("**"), Just("/**"), Just("**/"), Just("/**/"), Just("?"), Just("{"),
            Just("}"), Just(","), Just("{a,b}"), Just("{,a}"), Just("{a*,b/**,}"), Just("\\"),
            Just("[ab]"), Just("[!a]"), Just("[^/b]"), Just("[a-c]"), Just("[-a]"), Just("[a-]"),
            Just("[]a]"), Just("[+-1]"), Just("["), Just("]"), Just("-"), Just("[[:alpha:]]"),
            Just("[[:x:]]"), Just("[[:"), Just("é"), Just("[é-ü]"), Just("[aé]"), Just("!"),
        ].prop_map(str::to_owned),
        1 => "\\PC".prop_map(String::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn patterns_match_as_those_of_globset(
        pieces in proptest::collection::vec(piece(), 0..8),
        texts in proptest::collection::vec("[ab/]{0,6}|[abcé/.0:\\[\\]-]{0,5}", 12),
    ) {
        compare(&pieces.concat(), &texts)?;
    }
}

#[test]
fn named_classes_are_those_of_globset() {
    let texts: Vec<String> = (0..=127_u8)
        .map(|byte| char::from(byte).to_string())
        .collect();
    for name in [
        "alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
        "upper", "xdigit", "word", "",
    ] {
        compare(&format!("[[:{name}:]]"), &texts).unwrap();
        compare(&format!("[![:{name}:]-]"), &texts).unwrap();
    }
}

#[test]
fn deep_alternatives_are_refused() {
    for depth in [MAX_DEPTH, MAX_DEPTH + 1] {
        let pattern = "{".repeat(depth) + "a" + &"}".repeat(depth);
        compare(&pattern, &["a".into(), "b".into()]).unwrap();
    }
}

#[test]
fn matching_is_linear_in_pattern_and_text() {
    let text = "a".repeat(200);
    for pattern in ["*a".repeat(200), "{a*,a?}".repeat(70), "**/".repeat(150)] {
        let glob = Glob::new(&pattern).unwrap();
        let mut steps = u64::MAX;
        glob.is_match(&text, &mut steps);
        let most = (glob.program.len() * (text.len() + 1)) as u64;
        assert!(u64::MAX - steps <= most, "{pattern}");
        assert_eq!(glob.is_match(&text, &mut 100), None, "{pattern}");
    }
}

/// 400 patterns of 450 bytes took 19 MB as regular expressions.
#[test]
fn program_is_small() {
    for pattern in ["{a*,b?}", "*?", "[ab]", "{a,{b,c}}", "**/"] {
        let pattern = pattern.repeat(450 / pattern.len());
        let glob = Glob::new(&pattern).unwrap();
        let size = size_of_val(&*glob.program) + size_of_val(&*glob.classes);
        assert!(size <= 16 * pattern.len(), "{pattern}: {size}");
    }
}
