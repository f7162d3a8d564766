//! Text from outside: escaped, isolated in its writing direction, with hidden characters shown.

use std::fmt;

use acrtask_model::printable::is_printable;

/// Text that a user, a forge, a registry or a build wrote. Templates print it as a `<bdi>` element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    text: String,
    has_lines: bool,
}

impl Foreign {
    /// Creates a text of one line. Line ends are shown as symbols.
    pub fn line(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            has_lines: false,
        }
    }

    /// Creates a text of several lines, for `<pre>`. Line ends and tabs stay as they are.
    pub fn block(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            has_lines: true,
        }
    }
}

impl Foreign {
    /// Returns `true` if the text is empty.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Returns the text with symbols for hidden characters. The result is not escaped for HTML.
    pub fn text(&self) -> String {
        show_hidden(&self.text)
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<bdi>")?;
        write_escaped(f, &self.text, self.has_lines)?;
        f.write_str("</bdi>")
    }
}

impl askama::filters::HtmlSafe for Foreign {}

/// Returns `text` with symbols for control, bidi and invisible characters. The result is not
/// escaped for HTML.
pub fn show_hidden(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_visible(&mut out, c);
    }
    out
}

/// Returns the beginning of a digest: `sha256:` and 12 digits.
pub fn short_digest(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

fn push_visible(out: &mut String, c: char) {
    match c {
        '\0'..='\x1f' => out.extend(char::from_u32(0x2400 + u32::from(c))),
        '\x7f' => out.push('\u{2421}'),
        c if is_printable(c) => out.push(c),
        c => out.push_str(&format!("[U+{:04X}]", u32::from(c))),
    }
}

/// Appends a character of a log line. A tab stays as it is.
pub(crate) fn push_visible_in_line(out: &mut String, c: char) {
    match c {
        '\t' => out.push(c),
        c => push_visible(out, c),
    }
}

/// Writes `text` for HTML, with symbols for hidden characters. Keeps line ends and tabs if
/// `has_lines` is set.
pub(crate) fn write_escaped(out: &mut impl fmt::Write, text: &str, has_lines: bool) -> fmt::Result {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '&' => out.write_str("&amp;")?,
            '"' => out.write_str("&quot;")?,
            '\'' => out.write_str("&#39;")?,
            '\n' | '\t' if has_lines => out.write_char(c)?,
            c => {
                shown.clear();
                push_visible(&mut shown, c);
                out.write_str(&shown)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped_and_shows_hidden_characters() {
        let text = "<script>\"'&\u{202e}\x1b[31m\n\t\u{200b}é";
        assert_eq!(
            Foreign::line(text).to_string(),
            "<bdi>&lt;script&gt;&quot;&#39;&amp;[U+202E]␛[31m␊␉[U+200B]é</bdi>"
        );
        assert_eq!(Foreign::block("a\n\tb\r").to_string(), "<bdi>a\n\tb␍</bdi>");
        assert_eq!(show_hidden("a\u{7f}<"), "a␡<");
    }
}
