//! ANSI escape sequences of log lines as CSS classes.
//!
//! Colors and text styles become classes, and "erase line" drops the text before it. All other
//! sequences are dropped. Each line starts without a style.

use anstyle_parse::{Params, Parser, Perform, Utf8Parser};

/// Most characters of a line that a page shows.
pub const MAX_LINE_CHARS: usize = 2_000;
/// Most pieces of a line. Further styles are ignored.
const MAX_SPANS: usize = 100;

/// A piece of a line with one style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// CSS classes, separated by spaces. Empty for plain text.
    pub classes: String,
    /// Text of the piece, not escaped.
    pub text: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Style {
    foreground: Option<u8>,
    background: Option<u8>,
    bold: bool,
    dim: bool,
    italic: bool,
    underline: bool,
    inverse: bool,
}

impl Style {
    fn classes(self) -> String {
        let mut classes: Vec<String> = Vec::new();
        let (fore, back) = if self.inverse {
            (self.background, self.foreground)
        } else {
            (self.foreground, self.background)
        };
        classes.extend(fore.map(|color| format!("fg{color}")));
        classes.extend(back.map(|color| format!("bg{color}")));
        let marks = [
            (self.bold, "bold"),
            (self.dim, "dim"),
            (self.italic, "italic"),
            (self.underline, "underline"),
            (self.inverse && fore.is_none() && back.is_none(), "inverse"),
        ];
        for (on, class) in marks {
            if on {
                classes.push(class.to_owned());
            }
        }
        classes.join(" ")
    }
}

/// Converts one line to pieces. Returns them and the number of characters beyond
/// [`MAX_LINE_CHARS`], which they do not contain.
pub fn parse_line(line: &str) -> (Vec<Span>, usize) {
    let mut painter = Painter::default();
    let mut parser = Parser::<Utf8Parser>::new();
    for byte in line.bytes() {
        parser.advance(&mut painter, byte);
    }
    let spans = painter.spans.into_iter().map(|(style, text)| Span {
        classes: style.classes(),
        text,
    });
    (spans.collect(), painter.dropped)
}

#[derive(Debug, Default)]
struct Painter {
    style: Style,
    spans: Vec<(Style, String)>,
    shown: usize,
    dropped: usize,
}

impl Painter {
    fn push(&mut self, c: char) {
        if self.shown == MAX_LINE_CHARS {
            self.dropped += 1;
            return;
        }
        self.shown += 1;
        let last = self.spans.last().map(|(style, _)| *style);
        // The last piece is plain, unless the line ends with the style of the piece before it.
        let style = if last == Some(self.style) || self.spans.len() + 1 < MAX_SPANS {
            self.style
        } else {
            Style::default()
        };
        match self.spans.last_mut() {
            Some((last, text)) if *last == style => text.push(c),
            _ => self.spans.push((style, c.to_string())),
        }
    }

    fn set_style(&mut self, params: &Params) {
        let mut groups = params.iter();
        while let Some(group) = groups.next() {
            let code = group.first().copied().unwrap_or(0);
            match code {
                0 => self.style = Style::default(),
                1 => self.style.bold = true,
                2 => self.style.dim = true,
                3 => self.style.italic = true,
                4 => self.style.underline = group.get(1) != Some(&0),
                7 => self.style.inverse = true,
                22 => (self.style.bold, self.style.dim) = (false, false),
                23 => self.style.italic = false,
                24 => self.style.underline = false,
                27 => self.style.inverse = false,
                30..=37 => self.style.foreground = to_byte(code - 30),
                39 => self.style.foreground = None,
                40..=47 => self.style.background = to_byte(code - 40),
                49 => self.style.background = None,
                90..=97 => self.style.foreground = to_byte(code - 82),
                100..=107 => self.style.background = to_byte(code - 92),
                38 | 48 => {
                    let mut rest: Vec<u16> = group.iter().skip(1).copied().collect();
                    if rest.is_empty() {
                        // The older form separates the numbers by `;`.
                        let mut next = || groups.next().and_then(|group| group.first().copied());
                        let Some(kind) = next() else { return };
                        let count = if kind == 2 { 3 } else { 1 };
                        rest.push(kind);
                        rest.extend((0..count).filter_map(|_| next()));
                    }
                    let color = extended_color(&rest);
                    if code == 38 {
                        self.style.foreground = color;
                    } else {
                        self.style.background = color;
                    }
                }
                _ => {}
            }
        }
    }
}

fn to_byte(code: u16) -> Option<u8> {
    u8::try_from(code).ok()
}

/// Returns the nearest of the 16 basic colors. `numbers` is `5, INDEX` or `2, R, G, B`.
fn extended_color(numbers: &[u16]) -> Option<u8> {
    let rgb = match numbers {
        [5, index @ 0..=15] => return to_byte(*index),
        [5, index @ 16..=231] => {
            let level = |value: u16| if value == 0 { 0 } else { 55 + value * 40 };
            let cube = index - 16;
            [level(cube / 36), level(cube / 6 % 6), level(cube % 6)]
        }
        [5, index @ 232..=255] => [8 + (index - 232) * 10; 3],
        // The form with colons may contain a color space before the numbers.
        [2, r, g, b] | [2, _, r, g, b] => [*r, *g, *b],
        _ => return None,
    };
    let peak = rgb.into_iter().max().unwrap_or(0);
    let least = rgb.into_iter().min().unwrap_or(0);
    if peak.saturating_sub(least) < 32 {
        return Some(match peak {
            0..=63 => 0,
            64..=159 => 8,
            160..=223 => 7,
            _ => 15,
        });
    }
    let bit = |value: u16, mask: u8| if value > peak / 2 { mask } else { 0 };
    let bright = if peak > 191 { 8 } else { 0 };
    Some(bright + bit(rgb[0], 1) + bit(rgb[1], 2) + bit(rgb[2], 4))
}

impl Perform for Painter {
    fn print(&mut self, c: char) {
        self.push(c);
    }

    fn execute(&mut self, byte: u8) {
        if byte == b'\t' {
            self.push('\t');
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: u8) {
        if ignore || !intermediates.is_empty() {
            return;
        }
        match action {
            b'm' => self.set_style(params),
            b'K' => {
                let part = params
                    .iter()
                    .next()
                    .and_then(|group| group.first().copied());
                if matches!(part, Some(1 | 2)) {
                    self.spans.clear();
                    (self.shown, self.dropped) = (0, 0);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paint(line: &str) -> String {
        let (spans, _) = parse_line(line);
        let spans = spans.iter().map(|span| {
            if span.classes.is_empty() {
                span.text.clone()
            } else {
                format!("[{}:{}]", span.classes, span.text)
            }
        });
        spans.collect()
    }

    #[test]
    fn colors_and_styles_become_classes() {
        for (line, painted) in [
            ("plain\ttext", "plain\ttext"),
            ("\x1b[31mred\x1b[0m end", "[fg1:red] end"),
            ("\x1b[1;92mgood\x1b[22m!", "[fg10 bold:good][fg10:!]"),
            ("\x1b[38;5;196mcube", "[fg9:cube]"),
            ("\x1b[38;2;0;0;255mblue", "[fg12:blue]"),
            ("\x1b[48:5:3mback", "[bg3:back]"),
            ("\x1b[7mswapped", "[inverse:swapped]"),
            ("\x1b[38;5mx", "x"),
        ] {
            assert_eq!(paint(line), painted, "{line:?}");
        }
    }

    #[test]
    fn other_sequences_are_dropped() {
        for (line, painted) in [
            ("\x1b[2J\x1b[Ha", "a"),
            ("\x1b]0;title\x07a", "a"),
            (
                "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
                "link",
            ),
            ("old\x1b[2Knew", "new"),
            ("\x1b[?25lhidden cursor", "hidden cursor"),
            ("a\x08\x07b", "ab"),
            ("\x1bPq#0;2;0;0;0\x1b\\a", "a"),
            ("\x1b[3", ""),
        ] {
            assert_eq!(paint(line), painted, "{line:?}");
        }
    }

    #[test]
    fn line_with_many_styles_ends_without_styles() {
        let line: String = (0..MAX_LINE_CHARS)
            .map(|n| format!("\x1b[1;2;3;4;9{};10{}m{}", n % 8, (n + 1) % 8, n % 10))
            .collect();
        let (spans, dropped) = parse_line(&line);
        assert_eq!((spans.len(), dropped), (MAX_SPANS, 0));
        let texts: String = spans.iter().map(|span| &*span.text).collect();
        assert_eq!(texts, "0123456789".repeat(MAX_LINE_CHARS / 10));
        assert_eq!(
            spans[MAX_SPANS - 2].classes,
            "fg10 bg11 bold dim italic underline"
        );
        assert_eq!(spans[MAX_SPANS - 1].classes, "");
    }

    #[test]
    fn long_line_is_cut() {
        let (spans, dropped) = parse_line(&"é".repeat(MAX_LINE_CHARS + 3));
        assert_eq!(spans[0].text.chars().count(), MAX_LINE_CHARS);
        assert_eq!(dropped, 3);
    }
}
