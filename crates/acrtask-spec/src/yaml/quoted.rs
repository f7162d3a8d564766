//! Quoted scalars whose next line is not deeper than their key.
//!
//! libyaml accepts any indentation inside quotes. The parser refuses an indentation that YAML 1.2
//! forbids. Such a scalar is parsed alone, where any indentation is deep enough. A text of the same
//! length on one line replaces it. Left out: a key of several lines, which libyaml refuses, too.

use std::ops::Range;

use granit_parser::{ErrorKind, Event, Parser, ScanError};

/// Returns the range and value of the quoted scalar that `error` refuses for its indentation.
///
/// `None` for other errors, or if libyaml would refuse the scalar, too.
pub(super) fn underindented(text: &str, error: &ScanError) -> Option<(Range<usize>, String)> {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidQuotedScalarIndent | ErrorKind::TabInIndentation
    ) {
        return None;
    }
    let start = start_of_scalar(text, error.marker().byte_offset()?)?;
    let end = start + quoted_length(&text[start..])?;
    let is_key = text[end..].trim_start_matches([' ', '\t']).starts_with(':');
    if is_key {
        return None;
    }
    let value = Parser::new_from_str(&text[start..end])
        .map_while(Result::ok)
        .find_map(|(event, _)| match event {
            Event::Scalar(value, ..) => Some(value.into_owned()),
            _ => None,
        })?;
    Some((start..end, value))
}

/// Returns a quoted scalar of `length` bytes on one line.
pub(super) fn placeholder(length: usize) -> String {
    format!("\"{}\"", "x".repeat(length.saturating_sub(2)))
}

/// Returns the start of the quoted scalar that continues on the line of `at`.
///
/// Without that line the scalar is not closed, and the parser reports its start.
fn start_of_scalar(text: &str, at: usize) -> Option<usize> {
    let before = &text[..text.floor_char_boundary(at)];
    let before = before[..before.rfind('\n')?].trim_end();
    let options = granit_parser::options! { emit_comments: false };
    let error = Parser::new_from_str_with_options(before, options).find_map(Result::err)?;
    (error.kind() == &ErrorKind::UnclosedQuotedScalar)
        .then(|| error.marker().byte_offset())
        .flatten()
}

/// Returns the length of the quoted scalar at the start of `text`. `None` if it is not closed.
fn quoted_length(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate().peekable();
    let (_, quote) = bytes.next()?;
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' if quote == b'"' => {
                bytes.next();
            }
            b'\'' if quote == b'\'' && bytes.next_if(|(_, next)| *next == b'\'').is_some() => {}
            _ if byte == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, parse};

    fn value_of(text: &str) -> Result<String, String> {
        let root = parse(text)
            .map_err(|diagnostic| diagnostic.message)?
            .root
            .unwrap();
        let Kind::Map(pairs) = &root.kind else {
            panic!("a map")
        };
        let value = &pairs.last().unwrap().1;
        let value = match &value.kind {
            Kind::List(items) => items.last().unwrap(),
            _ => value,
        };
        match &value.kind {
            Kind::Map(pairs) => Ok(pairs[0].1.scalar().unwrap().to_owned()),
            _ => Ok(value.scalar().unwrap().to_owned()),
        }
    }

    /// The expected values come from libyaml.
    #[test]
    fn continuation_lines_may_have_any_indentation() {
        for (text, expected) in [
            ("a: \"one\ntwo\"\n", "one two"),
            ("a: 'one\ntwo'\n", "one two"),
            ("a: 'it''s\n\n\ntwo'\nb: x\n", "x"),
            ("a: 'it''s\n\n\ntwo'\n", "it's\n\ntwo"),
            ("a: \"one \\\ntwo\"\n", "one two"),
            ("a: \"say \\\"one\n\\\"two\"\n", "say \"one \"two"),
            ("a: \"one\r\ntwo\"\r\n", "one two"),
            ("a: \"one  \n\ttwo\"\n", "one two"),
            (
                "# it's \"a\na:\n- b: \"one 'x\n  two' \"\n  c: d\n",
                "one 'x two' ",
            ),
            ("a:\n- b: \"one\ntwo\"\n", "one two"),
            ("a: &x \"ö\nü\" # it's\n", "ö ü"),
            ("a: \"one\ntwo\"\nb: 'three\nfour'\n", "three four"),
            ("a: [\"one\ntwo\"]\n", "one two"),
            ("a: \"one\nb: two\"\n", "one b: two"),
        ] {
            assert_eq!(value_of(text).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn scalars_that_libyaml_refuses_are_refused() {
        for text in [
            "a:\n  \"b\n  c\": d\n",
            "a: \"one\n--- two\"\n",
            "a: \"one\ntwo\n",
            "a: \"one\n\\q\"\n",
            "a: one\ntwo\n",
        ] {
            assert!(value_of(text).is_err(), "{text:?}");
        }
    }
}
