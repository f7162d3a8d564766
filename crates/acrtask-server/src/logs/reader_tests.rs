//! Tests of `reader.rs`.

use super::*;

/// Collects 100 lines of 10 bytes and returns the numbers of the first and the last line.
fn collect(cost: usize, target: u64, cost_to_target: usize) -> (u64, u64) {
    let size = WindowSize {
        lines: 50,
        cost,
        cost_of: |line| line.text.len(),
    };
    let mut window = WindowLines {
        size,
        target,
        cost_to_target,
        cost: 0,
        lines: VecDeque::new(),
        dropped: 0,
    };
    for number in 1..=100 {
        let line = LogLine {
            step: "a".into(),
            number,
            time: None,
            text: "0123456789".into(),
            is_cut: false,
        };
        if window.push(number, line).is_break() {
            break;
        }
    }
    let numbers = [window.lines.front(), window.lines.back()];
    let [first, last] = numbers.map(|line| line.map_or(0, |(_, line)| line.number));
    assert_eq!(first, window.dropped + 1);
    assert_eq!(last - first + 1, window.lines.len() as u64);
    (first, last)
}

#[test]
fn window_is_bounded_by_lines_and_cost_and_contains_its_target() {
    assert_eq!(collect(1000, 0, 500), (1, 50));
    assert_eq!(collect(95, 0, 47), (1, 9));
    assert_eq!(collect(5, 0, 2), (1, 1));
    assert_eq!(collect(95, u64::MAX, 95), (42, 50));
    assert_eq!(collect(5, u64::MAX, 5), (50, 50));
    assert_eq!(collect(1000, 25, 500), (1, 50));
    assert_eq!(collect(100, 25, 50), (21, 30));
    assert_eq!(collect(5, 25, 2), (25, 25));
}
