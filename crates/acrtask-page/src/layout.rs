//! Layered layout of a graph, from left to right.
//!
//! The rank of a box is the length of the longest path to it. Within a rank, boxes are ordered by
//! the barycenter of their neighbours, from a stable start. An edge that skips ranks gets a lane of
//! its own in each of them, so that it crosses no box.
//!
//! Invariants: no two boxes overlap, every drawn edge runs from left to right, and the same graph
//! always gets the same layout. An edge that closes a cycle is left out.

/// Width of a box, in units of the drawing.
pub const BOX_WIDTH: i32 = 190;
/// Height of a box.
pub const BOX_HEIGHT: i32 = 34;
/// Horizontal distance between ranks.
const COLUMN_GAP: i32 = 56;
/// Vertical distance between boxes.
const ROW_GAP: i32 = 14;
/// Height of the lane of an edge that skips a rank.
const LANE_HEIGHT: i32 = 10;
/// Number of sweeps that improve the order.
const SWEEPS: usize = 6;

/// Positions of boxes and edges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Left upper corner of each box.
    pub boxes: Vec<(i32, i32)>,
    /// Points of each edge, from left to right.
    pub edges: Vec<Vec<(i32, i32)>>,
    /// Width of the drawing.
    pub width: i32,
    /// Height of the drawing.
    pub height: i32,
}

/// A box, or the lane of an edge in a rank that it skips.
#[derive(Debug, Clone, Copy)]
struct Slot {
    rank: usize,
    /// Number of the box. `None` for a lane.
    node: Option<usize>,
}

/// Slots with their neighbours in the ranks beside them.
#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    before: Vec<Vec<usize>>,
    after: Vec<Vec<usize>>,
    /// Slots of each rank, from top to bottom.
    ranks: Vec<Vec<usize>>,
}

impl Slots {
    fn add(&mut self, slot: Slot) -> usize {
        let index = self.slots.len();
        self.slots.push(slot);
        self.before.push(Vec::new());
        self.after.push(Vec::new());
        if self.ranks.len() <= slot.rank {
            self.ranks.resize_with(slot.rank + 1, Vec::new);
        }
        self.ranks[slot.rank].push(index);
        index
    }

    fn connect(&mut self, from: usize, to: usize) {
        self.after[from].push(to);
        self.before[to].push(from);
    }

    /// Sorts the slots of a rank by the mean position of their neighbours in the rank beside it.
    fn sort_rank(&mut self, rank: usize, neighbours_before: bool) {
        let beside = if neighbours_before {
            rank.checked_sub(1)
        } else {
            Some(rank + 1)
        };
        let Some(beside) = beside.and_then(|rank| self.ranks.get(rank)) else {
            return;
        };
        let mut position = vec![0_usize; self.slots.len()];
        for (at, slot) in beside.iter().enumerate() {
            position[*slot] = at;
        }
        let neighbours = if neighbours_before {
            &self.before
        } else {
            &self.after
        };
        let own = &self.ranks[rank];
        let mut keyed: Vec<(u64, usize)> = own
            .iter()
            .enumerate()
            .map(|(at, slot)| {
                let all = &neighbours[*slot];
                let mean = match all.len() {
                    // A slot without neighbours keeps its position.
                    0 => (at as u64) << 16,
                    count => {
                        let sum: usize = all.iter().map(|one| position[*one]).sum();
                        ((sum as u64) << 16) / count as u64
                    }
                };
                (mean, *slot)
            })
            .collect();
        keyed.sort_by_key(|(mean, _)| *mean);
        self.ranks[rank] = keyed.into_iter().map(|(_, slot)| slot).collect();
    }
}

/// Lays out `count` boxes and the edges between them. Ignores edges of boxes that do not exist.
pub fn lay_out(count: usize, edges: &[(usize, usize)]) -> Layout {
    let edges = acyclic_edges(count, edges);
    let ranks = find_ranks(count, &edges);
    let mut slots = Slots::default();
    for (node, rank) in ranks.iter().enumerate() {
        slots.add(Slot {
            rank: *rank,
            node: Some(node),
        });
    }
    let mut paths = Vec::with_capacity(edges.len());
    for (from, to) in &edges {
        let mut path = vec![*from];
        for rank in ranks[*from] + 1..ranks[*to] {
            path.push(slots.add(Slot { rank, node: None }));
        }
        path.push(*to);
        for pair in path.windows(2) {
            slots.connect(pair[0], pair[1]);
        }
        paths.push(path);
    }
    for _ in 0..SWEEPS {
        for rank in 1..slots.ranks.len() {
            slots.sort_rank(rank, true);
        }
        for rank in (0..slots.ranks.len().saturating_sub(1)).rev() {
            slots.sort_rank(rank, false);
        }
    }
    place_slots(count, &slots, &paths)
}

/// Assigns coordinates. Each rank is centered.
fn place_slots(count: usize, slots: &Slots, paths: &[Vec<usize>]) -> Layout {
    let size = |slot: &usize| match slots.slots[*slot].node {
        Some(_) => BOX_HEIGHT,
        None => LANE_HEIGHT,
    };
    let height_of = |rank: &Vec<usize>| -> i32 {
        let gaps = ROW_GAP * i32::try_from(rank.len().saturating_sub(1)).unwrap_or(0);
        rank.iter().map(size).sum::<i32>() + gaps
    };
    let height = slots.ranks.iter().map(height_of).max().unwrap_or(0);
    let mut corners = vec![(0, 0); slots.slots.len()];
    let mut left = 0;
    for rank in &slots.ranks {
        let mut top = (height - height_of(rank)) / 2;
        for slot in rank {
            corners[*slot] = (left, top);
            top += size(slot) + ROW_GAP;
        }
        left += BOX_WIDTH + COLUMN_GAP;
    }
    let middle = |slot: usize| corners[slot].1 + size(&slot) / 2;
    let edges = paths.iter().map(|path| {
        let mut points = Vec::new();
        for (at, slot) in path.iter().enumerate() {
            let (left, y) = (corners[*slot].0, middle(*slot));
            if at > 0 {
                points.push((left, y));
            }
            if at + 1 < path.len() {
                points.push((left + BOX_WIDTH, y));
            }
        }
        points
    });
    Layout {
        edges: edges.collect(),
        boxes: corners[..count].to_vec(),
        width: (left - COLUMN_GAP).max(0),
        height,
    }
}

/// Returns the edges between existing boxes without those that close a cycle, each once.
fn acyclic_edges(count: usize, edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (from, to) in edges {
        if *from < count && *to < count && from != to && !after[*from].contains(to) {
            after[*from].push(*to);
        }
    }
    let mut kept = Vec::new();
    // 0: new, 1: on the current path, 2: done.
    let mut state = vec![0_u8; count];
    for start in 0..count {
        if state[start] != 0 {
            continue;
        }
        state[start] = 1;
        let mut path = vec![(start, 0)];
        while let Some((node, next)) = path.last_mut() {
            let Some(to) = after[*node].get(*next).copied() else {
                state[*node] = 2;
                path.pop();
                continue;
            };
            *next += 1;
            if state[to] != 1 {
                kept.push((*node, to));
            }
            if state[to] == 0 {
                state[to] = 1;
                path.push((to, 0));
            }
        }
    }
    kept.sort_unstable();
    kept
}

/// Returns the length of the longest path to each box.
fn find_ranks(count: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut ranks = vec![0; count];
    let mut missing = vec![0_usize; count];
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (from, to) in edges {
        missing[*to] += 1;
        after[*from].push(*to);
    }
    let mut ready: Vec<usize> = (0..count).filter(|node| missing[*node] == 0).collect();
    while let Some(node) = ready.pop() {
        for to in &after[node] {
            ranks[*to] = ranks[*to].max(ranks[node] + 1);
            missing[*to] -= 1;
            if missing[*to] == 0 {
                ready.push(*to);
            }
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chain_is_a_row_and_a_diamond_has_three_ranks() {
        let chain = lay_out(3, &[(0, 1), (1, 2)]);
        assert!(chain.boxes.iter().all(|(_, top)| *top == 0));
        assert_eq!(chain.height, BOX_HEIGHT);
        let diamond = lay_out(4, &[(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)]);
        let columns: Vec<i32> = diamond.boxes.iter().map(|(left, _)| *left).collect();
        assert_eq!(columns[1], columns[2]);
        assert!(columns[0] < columns[1] && columns[1] < columns[3]);
        assert_eq!(lay_out(0, &[]).boxes, []);
    }

    #[test]
    fn cycle_is_broken() {
        let layout = lay_out(3, &[(0, 1), (1, 2), (2, 0), (1, 1), (0, 9)]);
        assert_eq!(layout.edges.len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn layout_of_any_graph_keeps_its_invariants(
            count in 1_usize..60,
            edges in prop::collection::vec((0_usize..60, 0_usize..60), 0..150),
        ) {
            let layout = lay_out(count, &edges);
            prop_assert_eq!(&layout, &lay_out(count, &edges));
            for (index, one) in layout.boxes.iter().enumerate() {
                prop_assert!(one.0 >= 0 && one.0 + BOX_WIDTH <= layout.width);
                prop_assert!(one.1 >= 0 && one.1 + BOX_HEIGHT <= layout.height);
                for other in &layout.boxes[index + 1..] {
                    let apart = (one.0 - other.0).abs() >= BOX_WIDTH
                        || (one.1 - other.1).abs() >= BOX_HEIGHT;
                    prop_assert!(apart, "{:?} overlaps {:?}", one, other);
                }
            }
            for points in &layout.edges {
                prop_assert!(points.len() >= 2);
                prop_assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
                // A lane crosses no box.
                for pair in points.windows(2).filter(|pair| pair[0].1 == pair[1].1) {
                    let inside = layout.boxes.iter().any(|(left, top)| {
                        pair[0].0 <= *left && left + BOX_WIDTH <= pair[1].0
                            && (*top..top + BOX_HEIGHT).contains(&pair[0].1)
                    });
                    prop_assert!(!inside, "{:?} crosses a box", points);
                }
            }
        }
    }

    #[test]
    fn layout_of_300_boxes_is_fast() {
        let edges: Vec<(usize, usize)> = (1..300)
            .flat_map(|node| [(node / 3, node), (node / 2, node), (node / 7, node)])
            .collect();
        let layout = lay_out(300, &edges);
        assert_eq!(layout.boxes.len(), 300);
    }
}
