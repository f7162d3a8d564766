//! Untrusted data: which output of a rendering was computed from it.
//!
//! Each value, variable and map entry carries the [`Sources`] that it was computed from. A function's result has
//! those of all its arguments. Invariants: text that the template's author wrote has no sources; neither has a
//! boolean, so that a condition on an untrusted value chooses between texts of the author.

use std::{
    collections::{HashMap, HashSet},
    ops::{BitOr, BitOrAssign, Range},
    sync::Arc,
};

use crate::{
    error::Fault,
    limits::Meter,
    value::{Entries, MapRef, Value},
};

/// A set of numbered sources. All numbers from 63 on count as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Sources(u64);

impl Sources {
    /// No source.
    pub const NONE: Self = Self(0);

    /// The set that contains only the source with this number.
    pub fn of(number: usize) -> Self {
        Self(1 << number.min(63))
    }

    /// Returns `true` if the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns `true` if the set contains the source with this number.
    pub fn contains(self, number: usize) -> bool {
        self.0 & Self::of(number).0 != 0
    }
}

impl BitOr for Sources {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Sources {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The untrusted parts of a rendering's input.
#[derive(Debug, Clone, Default)]
pub struct Untrusted {
    /// Keys that lead from the root of the data to a value, and the source of that value.
    pub data: Vec<(Vec<String>, Sources)>,
    /// Byte ranges of the template's own text, in order, and the source of each.
    pub template: Vec<(Range<usize>, Sources)>,
}

impl Untrusted {
    /// Returns the sources of the template's own text in `range`.
    pub(crate) fn of_template(&self, range: &Range<usize>) -> Sources {
        let mut sources = Sources::NONE;
        for (part, of_part) in &self.template {
            if part.start < range.end && range.start < part.end {
                sources |= *of_part;
            }
        }
        sources
    }
}

/// The sources of the entries of maps.
#[derive(Debug, Default)]
pub(crate) struct MapSources {
    maps: HashMap<usize, OfMap>,
}

#[derive(Debug, Default)]
struct OfMap {
    all: Sources,
    keys: HashMap<Arc<str>, Sources>,
}

impl MapSources {
    pub(crate) fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// Adds sources to one entry of a map.
    pub(crate) fn add_to_entry(&mut self, map: MapRef, key: &Arc<str>, sources: Sources) {
        if !sources.is_empty() {
            let entry = self.maps.entry(map.index()).or_default();
            *entry.keys.entry(key.clone()).or_default() |= sources;
        }
    }

    /// Adds sources to all entries of a map.
    pub(crate) fn add_to_map(&mut self, map: MapRef, sources: Sources) {
        if !sources.is_empty() {
            self.maps.entry(map.index()).or_default().all |= sources;
        }
    }

    /// Returns the sources of one entry of a map.
    pub(crate) fn of_entry(&self, map: MapRef, key: &str) -> Sources {
        self.maps.get(&map.index()).map_or(Sources::NONE, |of_map| {
            of_map.all | of_map.keys.get(key).copied().unwrap_or_default()
        })
    }

    fn of_map(&self, map: MapRef) -> Sources {
        let mut sources = Sources::NONE;
        if let Some(of_map) = self.maps.get(&map.index()) {
            sources |= of_map.all;
            for of_key in of_map.keys.values() {
                sources |= *of_key;
            }
        }
        sources
    }
}

/// The maps in a value, and in the maps and lists inside it.
pub(crate) fn maps_in(
    maps: &[Entries],
    meter: &mut Meter,
    value: &Value,
) -> Result<Vec<MapRef>, Fault> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut rest = vec![value];
    while let Some(value) = rest.pop() {
        match value {
            Value::Map(map) if seen.insert(map.index()) => {
                meter.step(1)?;
                found.push(*map);
                rest.extend(maps[map.index()].values().filter(|value| nests(value)));
            }
            Value::List(list) => {
                meter.step(list.len() as u64 / 8)?;
                rest.extend(list.items().iter().filter(|value| nests(value)));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn nests(value: &Value) -> bool {
    matches!(value, Value::Map(_) | Value::List(_))
}

impl crate::value::Heap {
    /// Returns the sources of everything inside the value.
    pub(crate) fn sources_in(&self, meter: &mut Meter, value: &Value) -> Result<Sources, Fault> {
        let mut sources = Sources::NONE;
        if self.sources.is_empty() || !nests(value) {
            return Ok(sources);
        }
        for map in maps_in(self.maps(), meter, value)? {
            sources |= self.sources.of_map(map);
        }
        Ok(sources)
    }

    /// Adds sources to all maps inside the value.
    pub(crate) fn add_sources(
        &mut self,
        meter: &mut Meter,
        value: &Value,
        sources: Sources,
    ) -> Result<(), Fault> {
        if sources.is_empty() {
            return Ok(());
        }
        for map in maps_in(self.maps(), meter, value)? {
            self.sources.add_to_map(map, sources);
        }
        Ok(())
    }

    /// Marks what `untrusted` names in the data that was imported as `root`.
    pub(crate) fn mark(&mut self, root: &Value, untrusted: &Untrusted) {
        for (path, sources) in &untrusted.data {
            let Some((last, parents)) = path.split_last() else {
                continue;
            };
            let mut at = root.clone();
            for name in parents {
                at = match at {
                    Value::Map(map) => self.get(map).get(name.as_str()).cloned(),
                    _ => None,
                }
                .unwrap_or(Value::Nil);
            }
            if let Value::Map(map) = at {
                self.sources
                    .add_to_entry(map, &last.as_str().into(), *sources);
            }
        }
    }
}

impl crate::funcs::Env {
    /// Returns the sources of the result of a call, and records those of the maps that the call changed.
    /// `sources` are those of the arguments, without those of entries of maps among them.
    pub(crate) fn sources_of_call(
        &mut self,
        function: &str,
        arguments: &[Value],
        sources: &[Sources],
    ) -> Result<Sources, Fault> {
        let mut all = Sources::NONE;
        for of_argument in sources {
            all |= *of_argument;
        }
        if all.is_empty() && self.heap.sources.is_empty() {
            return Ok(all);
        }
        let of = |index: usize| sources.get(index).copied().unwrap_or_default();
        match (function, arguments) {
            ("index" | "get", [first @ Value::Map(_), keys @ ..]) => {
                let mut at = first.clone();
                for key in keys {
                    let (Value::Map(map), Value::Text(key)) = (&at, key) else {
                        break;
                    };
                    all |= self.heap.sources.of_entry(*map, key);
                    at = self.heap.get(*map).get(key).cloned().unwrap_or(Value::Nil);
                }
                Ok(all)
            }
            ("set", [Value::Map(map), Value::Text(key), value]) => {
                let of_value = of(2) | self.heap.sources_in(&mut self.meter, value)?;
                self.heap.sources.add_to_map(*map, of(1));
                self.heap.sources.add_to_entry(*map, key, of_value);
                Ok(of(0))
            }
            ("unset", _) => Ok(of(0)),
            _ => {
                for argument in arguments {
                    all |= self.heap.sources_in(&mut self.meter, argument)?;
                }
                if let (
                    "merge" | "mustMerge" | "mergeOverwrite" | "mustMergeOverwrite",
                    [target, ..],
                ) = (function, arguments)
                {
                    self.heap.add_sources(&mut self.meter, target, all)?;
                }
                Ok(all)
            }
        }
    }
}
