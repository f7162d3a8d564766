//! Tracking of output that was computed from untrusted data.
//!
//! Each value, variable and map entry has the [`Sources`] that it was computed from. The result of
//! a function has those of all its arguments.
//!
//! Invariants: text of the template's author has no sources. A boolean has none either, so a
//! condition on an untrusted value only chooses between texts of the author.

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

/// A set of numbered sources. All numbers from 63 count as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Sources(u64);

impl Sources {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// Creates the set that contains only the source with this number.
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

/// The untrusted parts of the input of a rendering.
#[derive(Debug, Clone, Default)]
pub struct Untrusted {
    /// Paths of keys from the root of the data to a value, with the source of that value.
    pub data: Vec<(Vec<String>, Sources)>,
    /// Byte ranges of the template's own text, in order, with the source of each.
    pub template: Vec<(Range<usize>, Sources)>,
}

impl Untrusted {
    /// Returns the sources of the template's own text in `range`.
    pub(crate) fn template_sources(&self, range: &Range<usize>) -> Sources {
        let mut sources = Sources::NONE;
        for (part, part_sources) in &self.template {
            if part.start < range.end && range.start < part.end {
                sources |= *part_sources;
            }
        }
        sources
    }
}

/// The sources of the entries of all maps.
#[derive(Debug, Default)]
pub(crate) struct MapSources {
    maps: HashMap<usize, EntrySources>,
}

#[derive(Debug, Default)]
struct EntrySources {
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
    pub(crate) fn entry_sources(&self, map: MapRef, key: &str) -> Sources {
        self.maps
            .get(&map.index())
            .map_or(Sources::NONE, |entries| {
                entries.all | entries.keys.get(key).copied().unwrap_or_default()
            })
    }

    fn map_sources(&self, map: MapRef) -> Sources {
        let mut sources = Sources::NONE;
        if let Some(entries) = self.maps.get(&map.index()) {
            sources |= entries.all;
            for key_sources in entries.keys.values() {
                sources |= *key_sources;
            }
        }
        sources
    }
}

/// Finds the maps in a value, including those in nested maps and lists.
pub(crate) fn find_maps(
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
                meter.charge_steps(1)?;
                found.push(*map);
                rest.extend(maps[map.index()].values().filter(|value| can_nest(value)));
            }
            Value::List(list) => {
                meter.charge_steps(list.len() as u64 / 8)?;
                rest.extend(list.items().iter().filter(|value| can_nest(value)));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn can_nest(value: &Value) -> bool {
    matches!(value, Value::Map(_) | Value::List(_))
}

impl crate::value::Heap {
    /// Returns the sources of all entries inside the value.
    pub(crate) fn collect_sources(
        &self,
        meter: &mut Meter,
        value: &Value,
    ) -> Result<Sources, Fault> {
        let mut sources = Sources::NONE;
        if self.sources.is_empty() || !can_nest(value) {
            return Ok(sources);
        }
        for map in find_maps(self.maps(), meter, value)? {
            sources |= self.sources.map_sources(map);
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
        for map in find_maps(self.maps(), meter, value)? {
            self.sources.add_to_map(map, sources);
        }
        Ok(())
    }

    /// Marks the paths of `untrusted` in the data that was imported as `root`.
    pub(crate) fn mark_untrusted(&mut self, root: &Value, untrusted: &Untrusted) {
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
    /// Returns the sources of the result of a call. Also records the sources of the maps that the
    /// call changed. `sources` are those of the arguments, without those of map entries inside
    /// them.
    pub(crate) fn call_sources(
        &mut self,
        function: &str,
        arguments: &[Value],
        sources: &[Sources],
    ) -> Result<Sources, Fault> {
        let mut all = Sources::NONE;
        for argument_sources in sources {
            all |= *argument_sources;
        }
        if all.is_empty() && self.heap.sources.is_empty() {
            return Ok(all);
        }
        let sources_at = |index: usize| sources.get(index).copied().unwrap_or_default();
        match (function, arguments) {
            ("index" | "get", [first @ Value::Map(_), keys @ ..]) => {
                let mut at = first.clone();
                for key in keys {
                    let (Value::Map(map), Value::Text(key)) = (&at, key) else {
                        break;
                    };
                    all |= self.heap.sources.entry_sources(*map, key);
                    at = self.heap.get(*map).get(key).cloned().unwrap_or(Value::Nil);
                }
                Ok(all)
            }
            ("set", [Value::Map(map), Value::Text(key), value]) => {
                let value_sources =
                    sources_at(2) | self.heap.collect_sources(&mut self.meter, value)?;
                self.heap.sources.add_to_map(*map, sources_at(1));
                self.heap.sources.add_to_entry(*map, key, value_sources);
                Ok(sources_at(0))
            }
            ("unset", _) => Ok(sources_at(0)),
            _ => {
                for argument in arguments {
                    all |= self.heap.collect_sources(&mut self.meter, argument)?;
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
