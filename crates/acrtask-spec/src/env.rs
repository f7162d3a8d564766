//! Parsing of `env` entries. ACR passes them to a container as words of `sh`.
//!
//! An entry of several words stays as it is: `A=b c` sets `b c`. Variables and commands are not
//! expanded. Unlike in `sh`, only quotes of the author count. A value from a template stays
//! unchanged, such as a password with a quote or a backslash.

use std::iter::Peekable;
use std::str::Chars;

/// Characters that start a quote or an escape.
const QUOTES: [char; 3] = ['\'', '"', '\\'];

/// The quotes that the author wrote in an entry, without those from templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quoting {
    /// Neither quotes nor escapes.
    None,
    /// A pair of quotes around a value from templates: `NAME='{{...}}'`.
    AroundTemplates,
    /// Any other quotes or escapes.
    Word,
}

impl Quoting {
    /// Classifies the quotes of an entry. `written` is the scalar as in the file, with its YAML
    /// quotes.
    pub(crate) fn of(written: &str) -> Self {
        let text = without_yaml_quotes(written.trim());
        let literal = without_templates(&text);
        if !literal.contains(QUOTES) {
            return Self::None;
        }
        match literal.split_once('=') {
            Some((name, "''" | "\"\"")) if literal != text && !name.contains(QUOTES) => {
                Self::AroundTemplates
            }
            _ => Self::Word,
        }
    }
}

/// Reads one entry, `NAME=VALUE`, and removes its quotes and escapes.
pub(crate) fn read_entry(entry: &str, quoting: Quoting) -> String {
    let read = match quoting {
        Quoting::None => None,
        Quoting::AroundTemplates => unquoted_value(entry).or_else(|| read_word(entry)),
        Quoting::Word => read_word(entry),
    };
    read.unwrap_or_else(|| entry.to_owned())
}

/// Reads an entry of the task's `env`. Commas outside of quotes separate several variables.
pub(crate) fn read_entries(entry: &str, quoting: Quoting) -> Vec<String> {
    let parts = match quoting {
        Quoting::None => entry.split(',').collect(),
        Quoting::AroundTemplates => vec![entry],
        Quoting::Word => split_at_commas(entry),
    };
    let parts = parts.into_iter();
    parts.map(|part| read_entry(part, quoting)).collect()
}

/// Removes the pair of quotes around the value of an entry.
fn unquoted_value(entry: &str) -> Option<String> {
    let (name, value) = entry.split_once('=')?;
    let quote = value.chars().next()?;
    let inner = value.strip_prefix(quote)?.strip_suffix(quote)?;
    Some(format!("{name}={inner}"))
}

/// Returns the text of a scalar without its YAML quotes and escapes.
fn without_yaml_quotes(written: &str) -> String {
    let inner = |quote: char| written.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(text) = inner('"') {
        text.replace("\\\"", "\"").replace("\\\\", "\\")
    } else if let Some(text) = inner('\'') {
        text.replace("''", "'")
    } else {
        written.to_owned()
    }
}

/// Returns a text without its template actions.
///
/// An action that quotes its value leaves quotes behind. At the start of the text it does not,
/// because YAML reads those quotes.
fn without_templates(text: &str) -> String {
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, action)) = rest.split_once("{{") {
        literal.push_str(before);
        let (action, after) = action.split_once("}}").unwrap_or((action, ""));
        let action = action.trim_end_matches('-').trim_end();
        match action.rsplit('|').next().map(str::trim) {
            _ if literal.is_empty() => {}
            // `quote` escapes the value between its quotes.
            Some("quote") => literal.push_str("\"_\""),
            Some("squote") => literal.push_str("''"),
            _ => {}
        }
        rest = after;
    }
    literal + rest
}

/// Splits at commas outside of quotes. If a quote is not closed, all commas count.
fn split_at_commas(entry: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut quote = None;
    let mut chars = entry.char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => drop(chars.next()),
            ('\'' | '"', None) => quote = Some(c),
            (_, Some(open)) if c == open => quote = None,
            (',', None) => {
                parts.push(&entry[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quote.is_some() {
        return entry.split(',').collect();
    }
    parts.push(&entry[start..]);
    parts
}

/// Returns the word that `sh` reads in `text`. `None` if there are several words, or a quote is not
/// closed.
fn read_word(text: &str) -> Option<String> {
    if !text.contains(['\'', '"', '\\']) {
        return None;
    }
    let mut word = String::with_capacity(text.len());
    let mut chars = text.trim_start().chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' => loop {
                match chars.next()? {
                    '\'' => break,
                    c => word.push(c),
                }
            },
            '"' => read_double_quoted(&mut chars, &mut word)?,
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.push(c),
                None => word.push('\\'),
            },
            c if c.is_ascii_whitespace() => {
                return chars.all(|c| c.is_ascii_whitespace()).then_some(word);
            }
            c => word.push(c),
        }
    }
    Some(word)
}

/// Reads up to the closing quote. `None` if it is missing.
fn read_double_quoted(chars: &mut Peekable<Chars<'_>>, word: &mut String) -> Option<()> {
    loop {
        match chars.next()? {
            '"' => return Some(()),
            '\\' => match chars.peek() {
                Some('\n') => drop(chars.next()),
                Some(c @ ('$' | '`' | '"' | '\\')) => {
                    word.push(*c);
                    chars.next();
                }
                _ => word.push('\\'),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_words_of_a_shell() {
        for (entry, read) in [
            ("MY_SECRET='pa55word'", "MY_SECRET=pa55word"),
            (r#"A="b c""#, "A=b c"),
            (r"C=a\ b", "C=a b"),
            ("E=''", "E="),
            (r#"E="""#, "E="),
            (r#"'A=b c'"#, "A=b c"),
            (r#"A=x"y z"'1 2'w"#, "A=xy z1 2w"),
            (r"A='it'\''s'", "A=it's"),
            (r#"A="a \"b\" \$c \d \\""#, r#"A=a "b" $c \d \"#),
            (r#"A='a"b\n'"#, r#"A=a"b\n"#),
            (r#"A="$HOME`date`""#, "A=$HOME`date`"),
            (r#"A="b" "#, "A=b"),
            ("A='one\ntwo'", "A=one\ntwo"),
            (r"A=\\", r"A=\"),
            (r"A=b\", r"A=b\"),
            ("A='ä ö'", "A=ä ö"),
        ] {
            assert_eq!(read_entry(entry, Quoting::Word), read, "{entry}");
        }
    }

    #[test]
    fn entries_of_several_words_stay_unchanged() {
        for entry in [
            "A=b c",
            "A=b ",
            "A= b",
            "A=1;b|c",
            "A=it's fine",
            r#"A={"a": "b"}"#,
            r#"A="open"#,
            "A",
            "",
            "A=",
            "A=b #c",
        ] {
            assert_eq!(read_entry(entry, Quoting::Word), entry);
        }
    }

    #[test]
    fn commas_end_entries_outside_of_quotes() {
        for (entry, read) in [
            ("A=1,B=2", &["A=1", "B=2"][..]),
            ("A='1,2',B=\"3,4\"", &["A=1,2", "B=3,4"]),
            (r"A=1\,2,B=3", &["A=1,2", "B=3"]),
            (r#"A="\",",B=1"#, &["A=\",", "B=1"]),
            ("A=it's,B=2", &["A=it's", "B=2"]),
            ("A=b c,B='d e'", &["A=b c", "B=d e"]),
            ("A=1,", &["A=1", ""]),
        ] {
            assert_eq!(read_entries(entry, Quoting::Word), read, "{entry}");
        }
    }

    #[test]
    fn quotes_count_where_the_author_wrote_them() {
        for (written, quoting) in [
            ("A={{.Secrets.a}}", Quoting::None),
            (r#""A={{.Secrets.a}}""#, Quoting::None),
            (r#"A={{ index .Values "a" }}"#, Quoting::None),
            ("A='{{.Secrets.a}}'", Quoting::AroundTemplates),
            (r#""A='{{.Secrets.a}}'""#, Quoting::AroundTemplates),
            (r#""A=\"{{.Secrets.a}}\"""#, Quoting::AroundTemplates),
            (r#"'A="{{.Secrets.a}}"'"#, Quoting::AroundTemplates),
            ("'A=''{{.Secrets.a}}'''", Quoting::AroundTemplates),
            ("A={{ .Secrets.a | squote -}}", Quoting::AroundTemplates),
            ("A={{ .Secrets.a | quote }}", Quoting::Word),
            (r#"{{printf "A=%s" .Secrets.a | quote}}"#, Quoting::None),
            ("A=''", Quoting::Word),
            ("A='x {{.Secrets.a}}'", Quoting::Word),
            ("A='1',B='{{.Secrets.a}}'", Quoting::Word),
            (r"A=a\ b", Quoting::Word),
        ] {
            assert_eq!(Quoting::of(written), quoting, "{written}");
        }
        let password = r#"A=p'a"s\s,w"#;
        assert_eq!(read_entry(password, Quoting::None), password);
        let quoted = r#"A='p'a"s\s,w'"#;
        assert_eq!(read_entry(quoted, Quoting::AroundTemplates), password);
        assert_eq!(read_entries(quoted, Quoting::AroundTemplates), [password]);
    }
}
