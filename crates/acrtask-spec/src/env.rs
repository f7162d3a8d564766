//! Reads entries of `env` as `sh` reads a word, which is how ACR hands them to a container.
//!
//! An entry that `sh` would not read as one word stays as it is: `A=b c` sets `b c`. No variable and no command is
//! expanded.

use std::iter::Peekable;
use std::str::Chars;

/// Reads one entry, `NAME=VALUE`, without its quotes and escapes.
pub(crate) fn read_entry(entry: &str) -> String {
    read_word(entry).unwrap_or_else(|| entry.to_owned())
}

/// Reads an entry of the task's `env`, which may hold several, separated by commas outside of quotes.
pub(crate) fn read_entries(entry: &str) -> Vec<String> {
    split_at_commas(entry).into_iter().map(read_entry).collect()
}

/// Splits at commas that no quote contains. Quotes do not count if one of them stays open.
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

/// Returns the word that `sh` reads in `text`. `None` if there are several, or a quote stays open.
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

/// Reads up to the closing quote. `None` if there is none.
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
    fn entries_are_words_of_a_shell() {
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
            assert_eq!(read_entry(entry), read, "{entry}");
        }
    }

    #[test]
    fn entries_that_are_no_single_word_stay() {
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
            assert_eq!(read_entry(entry), entry);
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
            assert_eq!(read_entries(entry), read, "{entry}");
        }
    }
}
