//! Where the bytes of a derived text came from.
//!
//! A task file goes through up to two rewritings before YAML is read: aliases are replaced, then the
//! template is rendered. Every place found afterwards is carried back through both, so that a
//! diagnostic points at what the author wrote.

use std::ops::Range;

use acrtask_template::{SourceMap, Sources};

/// A piece of a text that was put together from pieces of another one.
#[derive(Debug, Clone, Copy)]
struct Piece {
    out: usize,
    source: usize,
    source_len: usize,
    /// Copied byte for byte; otherwise the whole piece stands for the whole source range.
    verbatim: bool,
}

/// A text put together from pieces of another one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patched {
    pub(crate) text: String,
    pieces: Vec<Piece>,
    /// The ranges of `text` that came from untrusted input, in order.
    pub(crate) untrusted: Vec<(Range<usize>, Sources)>,
}

impl Patched {
    /// Copies `range` of `source`.
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

    /// Puts `replacement` where `range` stood.
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

    /// The bytes of the source that the byte at `offset` stands for.
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

/// The way from a text back to the author's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin<'a> {
    /// What the author wrote.
    author: &'a str,
    /// The rewritings, the last one first.
    layers: Vec<Layer<'a>>,
}

#[derive(Debug, Clone)]
enum Layer<'a> {
    Patched(&'a Patched),
    Rendered(&'a str, &'a SourceMap),
}

impl<'a> Origin<'a> {
    /// The author's own text.
    pub(crate) fn of(author: &'a str) -> Self {
        Self {
            author,
            layers: Vec::new(),
        }
    }

    /// One more rewriting, after those so far: pieces put together.
    pub(crate) fn patched(&self, by: &'a Patched) -> Self {
        self.with(Layer::Patched(by))
    }

    /// One more rewriting, after those so far: `template` rendered.
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

    /// What the author wrote for `span`.
    pub(crate) fn written(&self, span: Range<usize>) -> &'a str {
        let span = self.span(span);
        self.author.get(span).unwrap_or_default()
    }

    /// Returns what the author wrote for `span`, from the beginning of its line on. An alias without a text at the start of
    /// `span` is in it.
    pub(crate) fn written_line(&self, span: Range<usize>) -> &'a str {
        let span = self.span(span);
        let before = self.author.get(..span.start).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        self.author.get(start..span.end).unwrap_or_default()
    }

    /// The author's bytes behind `span`; never empty where the span is not.
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

/// The end of what stands at `start` of a template: of the whole action, or of one character.
fn end_of_action(template: &str, start: usize) -> usize {
    let rest = template.get(start..).unwrap_or_default();
    let len = if rest.starts_with("{{") {
        rest.find("}}").map_or(rest.len(), |i| i + 2)
    } else {
        rest.chars().next().map_or(0, char::len_utf8)
    };
    start + len
}

/// How far [`align`] looks for the next character: farther than any indentation, near enough to stay linear.
const WINDOW: usize = 512;

/// For each byte of `value` (and its end) the byte of `source` that it was read from, for a YAML scalar
/// `value` written as `source`: quotes, indentation, folding and escapes are skipped over. An escape that
/// stands for other characters than it shows moves what follows by a few bytes at most.
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
        // A character that stands nowhere came out of an escape: stay.
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
    fn carries_places_back() {
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
    fn aligns_scalars() {
        for (value, source, expected) in [
            ("a b", "a b", vec![0, 1, 2, 3]),
            ("a\nb", "|\n  a\n  b", vec![4, 5, 8, 9]),
            ("a b", "\"a\n   b\"", vec![1, 2, 6, 7]),
        ] {
            assert_eq!(align(value, source), expected, "{value:?}");
        }
    }
}
