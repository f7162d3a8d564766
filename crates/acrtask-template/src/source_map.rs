//! Mapping of a rendering's bytes to the template.
//!
//! Invariants: segments are in order of their output start, and none is empty. The first one starts
//! at output byte 0, unless the output is empty.

/// A map from byte offsets of the rendered text to byte offsets of the template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceMap {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    output_start: usize,
    source_start: usize,
    /// `true` for literal text, which keeps its distance from the segment's start. Output of an
    /// action maps to the action's start.
    literal: bool,
}

impl SourceMap {
    /// Returns the byte offset in the template that produced `output_byte`.
    ///
    /// Literal text maps exactly. Output of an action maps to the start of the action (its `{{`).
    /// An offset at or past the end maps as if the last piece continued.
    #[must_use]
    pub fn source_of(&self, output_byte: usize) -> usize {
        let after = self
            .segments
            .partition_point(|segment| segment.output_start <= output_byte);
        let Some(segment) = after
            .checked_sub(1)
            .and_then(|index| self.segments.get(index))
        else {
            return 0;
        };
        if segment.literal {
            segment.source_start + (output_byte - segment.output_start)
        } else {
            segment.source_start
        }
    }

    /// Records that output from `output_start` is the template's own text from `source_start`.
    pub(crate) fn push_literal(&mut self, output_start: usize, source_start: usize) {
        let continues = self.segments.last().is_some_and(|last| {
            last.literal && last.source_start + (output_start - last.output_start) == source_start
        });
        if !continues {
            self.segments.push(Segment {
                output_start,
                source_start,
                literal: true,
            });
        }
    }

    /// Records that the action at `source_start` wrote the output from `output_start`.
    pub(crate) fn push_action(&mut self, output_start: usize, source_start: usize) {
        let continues = self
            .segments
            .last()
            .is_some_and(|last| !last.literal && last.source_start == source_start);
        if !continues {
            self.segments.push(Segment {
                output_start,
                source_start,
                literal: false,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_map_points_at_the_start() {
        assert_eq!(SourceMap::default().source_of(7), 0);
    }

    #[test]
    fn literal_text_maps_byte_by_byte_and_actions_to_their_start() {
        let mut map = SourceMap::default();
        map.push_literal(0, 0);
        map.push_action(3, 3);
        map.push_literal(10, 20);
        let sources: Vec<usize> = [0, 2, 3, 9, 10, 14, 99]
            .into_iter()
            .map(|byte| map.source_of(byte))
            .collect();
        assert_eq!(sources, [0, 2, 3, 3, 20, 24, 109]);
    }
}
