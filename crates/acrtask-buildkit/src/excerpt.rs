//! Lines of a Dockerfile that an error concerns, in the format of `docker build`.

use std::fmt::Write;
use std::ops::RangeInclusive;

/// Source file with the lines that an error concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceExcerpt {
    /// Name of the file in the builder.
    pub filename: String,
    /// Ranges of relevant lines, counted from 1.
    pub lines: Vec<RangeInclusive<usize>>,
    /// Complete text of the file.
    pub data: String,
}

/// Total number of lines shown around several relevant lines.
const CONTEXT: usize = 2;
const CONTEXT_OF_ONE: usize = 4;

impl SourceExcerpt {
    /// Formats the relevant lines and a few lines around them, with line numbers. Marks the
    /// relevant lines with `>>>`. `None` if the ranges are outside of the file.
    pub fn render(&self) -> Option<String> {
        let text: Vec<&str> = self.data.split('\n').collect();
        let first = *self.lines.iter().map(RangeInclusive::start).min()?;
        let last = *self.lines.iter().map(RangeInclusive::end).max()?;
        if first == 0 || first > text.len() {
            return None;
        }
        let (mut start, mut end) = (first, last.clamp(first, text.len()));
        let wanted = if start == end {
            CONTEXT_OF_ONE
        } else {
            CONTEXT
        };
        // Grows alternately above and below. A turn also counts at the end of the file.
        let mut shown = 0;
        while shown < wanted {
            if start > 1 {
                start -= 1;
                shown += 1;
            }
            if end < text.len() {
                end += 1;
                shown += 1;
            }
            shown += 1;
        }
        let mut out = format!("{}:{first}\n--------------------\n", self.filename);
        for number in start..=end {
            let mark = if self.lines.iter().any(|range| range.contains(&number)) {
                ">>>"
            } else {
                "   "
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                " {number:3} | {mark} {}",
                text[number - 1].trim_end_matches('\r')
            );
        }
        out.push_str("--------------------\n");
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(lines: &[RangeInclusive<usize>], data: &str) -> Option<String> {
        SourceExcerpt {
            filename: "Dockerfile".into(),
            lines: lines.to_vec(),
            data: data.into(),
        }
        .render()
    }

    const FILE: &str = "FROM a\nRUN one\nRUN two\nRUN false\nRUN four\nRUN five\nCMD x";

    #[test]
    fn single_line_has_two_lines_around_it() {
        insta::assert_snapshot!(excerpt(&[4..=4], FILE).unwrap(), @r"
        Dockerfile:4
        --------------------
           2 |     RUN one
           3 |     RUN two
           4 | >>> RUN false
           5 |     RUN four
           6 |     RUN five
        --------------------
        ");
    }

    #[test]
    fn several_lines_have_one_line_around_them() {
        insta::assert_snapshot!(excerpt(&[2..=2, 4..=5], FILE).unwrap(), @r"
        Dockerfile:2
        --------------------
           1 |     FROM a
           2 | >>> RUN one
           3 |     RUN two
           4 | >>> RUN false
           5 | >>> RUN four
           6 |     RUN five
        --------------------
        ");
    }

    #[test]
    fn excerpt_stops_at_the_ends_of_the_file() {
        insta::assert_snapshot!(excerpt(&[1..=1], "FROM a").unwrap(), @r"
        Dockerfile:1
        --------------------
           1 | >>> FROM a
        --------------------
        ");
        assert_eq!(excerpt(&[9..=9], "FROM a"), None);
        assert_eq!(excerpt(&[], "FROM a"), None);
        assert_eq!(excerpt(&[0..=0], "FROM a"), None);
    }
}
