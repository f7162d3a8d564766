//! Mapping of derived texts back to the author's text.
//!
//! A task file is rewritten up to twice before YAML is parsed. First aliases are replaced, then the
//! template is rendered. Each later span maps back through both steps, so that a diagnostic shows
//! what the author wrote.

use std::ops::Range;

use acrtask_template::{SourceMap, Sources};

/// A piece of a text that is composed of pieces of another text.
#[derive(Debug, Clone, Copy)]
struct Piece {
    out: usize,
    source: usize,
    source_len: usize,
    /// `true` if copied byte for byte. Otherwise the whole piece maps to the whole source range.
    verbatim: bool,
}

/// A text that is composed of pieces of another text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patched {
    pub(crate) text: String,
    pieces: Vec<Piece>,
    /// Ranges of `text` that come from untrusted input, in order.
    pub(crate) untrusted: Vec<(Range<usize>, Sources)>,
}

impl Patched {
    /// Appends a copy of `range` of `source`.
    pub(crate) fn copy(&mut self, source: &str, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let follows = self.pieces.last().is_some_and(|last| {
            last.verbatim
                && last.source + last.source_len == range.start
                && self.text.len() - last.out == last.source_len
        });
        self.text.push_str(&source[range.clone()]);
        if let (true, Some(last)) = (follows, self.pieces.last_mut()) {
            last.source_len += range.len();
        } else {
            self.pieces.push(Piece {
                out: self.text.len() - range.len(),
                source: range.start,
                source_len: range.len(),
                verbatim: true,
            });
        }
    }

    /// Appends `replacement` for the source `range`.
    pub(crate) fn replace(&mut self, range: Range<usize>, replacement: &str) {
        if replacement.is_empty() {
            return;
        }
        self.pieces.push(Piece {
            out: self.text.len(),
            source: range.start,
            source_len: range.len(),
            verbatim: false,
        });
        self.text.push_str(replacement);
    }

    /// Returns the source range of the byte at `offset`.
    fn source_of(&self, offset: usize) -> Range<usize> {
        let after = self.pieces.partition_point(|piece| piece.out <= offset);
        let Some(piece) = after.checked_sub(1).and_then(|i| self.pieces.get(i)) else {
            return 0..0;
        };
        if piece.verbatim {
            let at = piece.source + (offset - piece.out).min(piece.source_len);
            at..at + 1
        } else {
            piece.source..piece.source + piece.source_len
        }
    }
}

/// Mapping from a derived text to the author's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin<'a> {
    /// Text as the author wrote it.
    author: &'a str,
    /// Rewritings, the last one first.
    layers: Vec<Layer<'a>>,
}

#[derive(Debug, Clone)]
enum Layer<'a> {
    Patched(&'a Patched),
    Rendered(&'a str, &'a SourceMap),
}

impl<'a> Origin<'a> {
    /// Creates the mapping of the author's text to itself.
    pub(crate) fn of(author: &'a str) -> Self {
        Self {
            author,
            layers: Vec::new(),
        }
    }

    /// Adds a rewriting by composition, after the existing ones.
    pub(crate) fn patched(&self, by: &'a Patched) -> Self {
        self.with(Layer::Patched(by))
    }

    /// Adds a rewriting by rendering `template`, after the existing ones.
    pub(crate) fn rendered(&self, template: &'a str, map: &'a SourceMap) -> Self {
        self.with(Layer::Rendered(template, map))
    }

    fn with(&self, layer: Layer<'a>) -> Self {
        let mut layers = vec![layer];
        layers.extend(self.layers.iter().cloned());
        Self {
            author: self.author,
            layers,
        }
    }

    /// Returns the author's text of `span`.
    pub(crate) fn written(&self, span: Range<usize>) -> &'a str {
        let span = self.span(span);
        self.author.get(span).unwrap_or_default()
    }

    /// Returns the author's text of `span`, from the start of its line. This includes an alias that
    /// became an empty text at the start of `span`.
    pub(crate) fn written_line(&self, span: Range<usize>) -> &'a str {
        let span = self.span(span);
        let before = self.author.get(..span.start).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        self.author.get(start..span.end).unwrap_or_default()
    }

    /// Returns the author's range of `span`. It is not empty unless `span` is.
    pub(crate) fn span(&self, span: Range<usize>) -> Range<usize> {
        let mut span = span;
        for layer in &self.layers {
            let last = span.end.max(span.start + 1) - 1;
            let (start, end) = match layer {
                Layer::Patched(patched) => (
                    patched.source_of(span.start).start,
                    patched.source_of(last).end,
                ),
                Layer::Rendered(template, map) => {
                    let end = map.source_of(last);
                    (map.source_of(span.start), end_of_action(template, end))
                }
            };
            span = start..end.max(start);
        }
        span
    }
}

/// Returns the end of the action or character at `start` of a template.
fn end_of_action(template: &str, start: usize) -> usize {
    let rest = template.get(start..).unwrap_or_default();
    let len = if rest.starts_with("{{") {
        rest.find("}}").map_or(rest.len(), |i| i + 2)
    } else {
        rest.chars().next().map_or(0, char::len_utf8)
    };
    start + len
}

/// Maximum distance in bytes at which [`align`] searches the next character. It exceeds any
/// indentation, and keeps the search linear.
const WINDOW: usize = 512;

/// Aligns a YAML scalar with its source. Returns for each byte of `value`, and for its end, the
/// byte of `source` that it was read from.
///
/// Skips quotes, indentation, folding and escapes. An escape that encodes other characters than it
/// shows shifts the following bytes by a few at most.
pub(crate) fn align(value: &str, source: &str) -> Vec<usize> {
    let mut map = Vec::with_capacity(value.len() + 1);
    let mut at = 0;
    for c in value.chars() {
        let rest = &source[at..source.floor_char_boundary(at + WINDOW)];
        let found = if c.is_whitespace() {
            rest.find(char::is_whitespace)
        } else {
            rest.find(c)
        };
        // A character that is not in the source comes from an escape, so the position stays.
        let start = found.map_or(at, |i| at + i);
        map.extend(std::iter::repeat_n(start, c.len_utf8()));
        if found.is_some() {
            at = start + source[start..].chars().next().map_or(0, char::len_utf8);
        }
    }
    map.push(at);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_map_back_to_the_author_text() {
        let source = "ab $X cd\n# gone\nef";
        let mut patched = Patched::default();
        patched.copy(source, 0..3);
        patched.replace(3..5, "replaced");
        patched.copy(source, 5..9);
        patched.copy(source, 16..18);
        assert_eq!(patched.text, "ab replaced cd\nef");
        let origin = Origin::of(source).patched(&patched);
        assert_eq!(origin.written(3..13), "$X c");
        assert_eq!(origin.span(0..2), 0..2);
        assert_eq!(origin.span(5..7), 3..5);
        assert_eq!(origin.span(0..14), 0..8);
        assert_eq!(origin.span(15..17), 16..18);
        assert_eq!(origin.span(99..99), 18..19);
    }

    #[test]
    fn scalars_align_with_their_source() {
        for (value, source, expected) in [
            ("a b", "a b", vec![0, 1, 2, 3]),
            ("a\nb", "|\n  a\n  b", vec![4, 5, 8, 9]),
            ("a b", "\"a\n   b\"", vec![1, 2, 6, 7]),
        ] {
            assert_eq!(align(value, source), expected, "{value:?}");
        }
    }
}
