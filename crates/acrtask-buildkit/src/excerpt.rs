//! The lines of a Dockerfile that an error is about, as `docker build` shows them.

use std::fmt::Write;
use std::ops::RangeInclusive;

/// A piece of a source file with the lines that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceExcerpt {
    /// The file's name as the builder knows it.
    pub filename: String,
    /// The lines that matter, from 1.
    pub lines: Vec<RangeInclusive<usize>>,
    /// The whole file.
    pub data: String,
}

/// Lines shown around the ones that matter, in total.
const CONTEXT: usize = 2;
const CONTEXT_OF_ONE: usize = 4;

impl SourceExcerpt {
    /// The lines that matter with a few around them, each with its number, the ones that matter marked `>>>`.
    /// `None` when the ranges are not in the file.
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
        // Grows by turns above and below; a turn counts also where the file ends.
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
    fn one_line_has_two_around_it() {
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
    fn several_lines_have_one_around_them() {
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
    fn the_ends_of_the_file_end_the_excerpt() {
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
