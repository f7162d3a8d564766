//! The values that templates compute with, with the identities that Go's have.
//!
//! Maps have reference semantics: `set` is seen through every variable that holds the map. They live in a [`Heap`] for
//! the length of one rendering and are named by index, so that a map that holds itself is neither a leak nor an endless
//! destructor. Lists do not change once made; a slice of one shares it.
//!
//! Left out: texts that are not UTF-8. Where Go would cut a character in two, the function is refused.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use crate::{
    error::Fault,
    funcs::{date::Time, semver::Version},
    limits::Meter,
    untrusted::MapSources,
};

/// How deep lists may nest in lists.
const MAX_LIST_DEPTH: u16 = 100;

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Nothing: Go's invalid `reflect.Value`.
    Nil,
    /// Nothing, read from an element of a map or list: Go's nil interface. A pipeline makes it `Nil`.
    NilField,
    Bool(bool),
    /// Go's `int`.
    Int(i64),
    Int64(i64),
    /// What `index` takes out of a text.
    Uint8(u8),
    Uint64(u64),
    Float(f64),
    Text(Arc<str>),
    List(List),
    Map(MapRef),
    Time(Rc<Time>),
    /// `time.Duration`, in nanoseconds.
    Duration(i64),
    /// `time.Month`, 1 to 12.
    Month(i8),
    /// `time.Weekday`, 0 (Sunday) to 6.
    Weekday(i8),
    Version(Rc<Version>),
}

/// The static element type of a list or map, as Go's `%T` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Any,
    Text,
    Int,
    AnyList,
}

impl Element {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Any => "interface {}",
            Self::Text => "string",
            Self::Int => "int",
            Self::AnyList => "[]interface {}",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct List {
    data: Rc<ListData>,
    start: u32,
    end: u32,
    pub(crate) element: Element,
    /// Go's nil slice: empty, but `null` in JSON.
    pub(crate) is_nil: bool,
}

#[derive(Debug)]
struct ListData {
    items: Vec<Value>,
    depth: u16,
}

impl List {
    /// A list of `items`. The caller has charged for their making; the list itself is charged here.
    pub(crate) fn new(
        meter: &mut Meter,
        element: Element,
        items: Vec<Value>,
    ) -> Result<Self, Fault> {
        meter.allocate(items.len() * size_of::<Value>() + size_of::<ListData>())?;
        let inner = items
            .iter()
            .map(|item| {
                if let Value::List(list) = item {
                    list.data.depth
                } else {
                    0
                }
            })
            .max();
        let depth = inner.unwrap_or(0) + 1;
        if depth > MAX_LIST_DEPTH {
            return Err(Fault::limit(format!(
                "lists nest deeper than {MAX_LIST_DEPTH}"
            )));
        }
        let end =
            u32::try_from(items.len()).map_err(|_| Fault::limit("a list has too many elements"))?;
        Ok(Self {
            data: Rc::new(ListData { items, depth }),
            start: 0,
            end,
            element,
            is_nil: false,
        })
    }

    pub(crate) fn nil(element: Element) -> Self {
        let data = Rc::new(ListData {
            items: Vec::new(),
            depth: 1,
        });
        Self {
            data,
            start: 0,
            end: 0,
            element,
            is_nil: true,
        }
    }

    pub(crate) fn items(&self) -> &[Value] {
        self.data
            .items
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.items().len()
    }

    /// How far a slice of this list may reach: Go's capacity, where nothing was appended in place.
    pub(crate) fn capacity(&self) -> usize {
        self.data.items.len() - self.start as usize
    }

    /// The part from `start` to `end`, which must not exceed the capacity.
    pub(crate) fn slice(&self, start: usize, end: usize) -> Self {
        let at =
            |offset: usize| u32::try_from(offset).map_or(self.end, |offset| self.start + offset);
        Self {
            start: at(start),
            end: at(end),
            ..self.clone()
        }
    }
}

/// A map in the [`Heap`]; all keys are texts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapRef {
    index: usize,
    pub(crate) element: Element,
}

impl MapRef {
    pub(crate) fn is_same(self, other: Self) -> bool {
        self.index == other.index
    }

    pub(crate) fn index(self) -> usize {
        self.index
    }
}

pub(crate) type Entries = BTreeMap<Arc<str>, Value>;

/// The maps of one rendering.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    maps: Vec<Entries>,
    /// The untrusted sources of their entries.
    pub(crate) sources: MapSources,
}

/// What a map entry costs beyond its key's text.
pub(crate) const ENTRY_BYTES: usize = 2 * size_of::<Value>() + 16;

impl Heap {
    /// Takes a new map. Charged by entry.
    pub(crate) fn add(
        &mut self,
        meter: &mut Meter,
        element: Element,
        entries: Entries,
    ) -> Result<MapRef, Fault> {
        meter.allocate(size_of::<Entries>() + 64 + entries.len() * ENTRY_BYTES)?;
        self.maps.push(entries);
        Ok(MapRef {
            index: self.maps.len() - 1,
            element,
        })
    }

    pub(crate) fn maps(&self) -> &[Entries] {
        &self.maps
    }

    pub(crate) fn get(&self, map: MapRef) -> &Entries {
        &self.maps[map.index]
    }

    pub(crate) fn get_mut(&mut self, map: MapRef) -> &mut Entries {
        &mut self.maps[map.index]
    }

    /// The value of JSON data, as Go holds what it reads from YAML: whole numbers are `int`.
    pub(crate) fn import(
        &mut self,
        meter: &mut Meter,
        json: &serde_json::Value,
    ) -> Result<Value, Fault> {
        meter.step(1)?;
        Ok(match json {
            serde_json::Value::Null => Value::Nil,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => {
                if let Some(value) = number.as_i64() {
                    Value::Int(value)
                } else if let Some(value) = number.as_u64() {
                    Value::Uint64(value)
                } else {
                    Value::Float(number.as_f64().unwrap_or_default())
                }
            }
            serde_json::Value::String(text) => {
                meter.allocate(text.len())?;
                Value::Text(text.as_str().into())
            }
            serde_json::Value::Array(items) => {
                let items = items
                    .iter()
                    .map(|item| self.import(meter, item))
                    .collect::<Result<Vec<_>, _>>()?;
                Value::List(List::new(meter, Element::Any, items)?)
            }
            serde_json::Value::Object(object) => {
                let mut entries = Entries::new();
                for (key, value) in object {
                    meter.allocate(key.len())?;
                    entries.insert(key.as_str().into(), self.import(meter, value)?);
                }
                Value::Map(self.add(meter, Element::Any, entries)?)
            }
        })
    }
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn is_nil(&self) -> bool {
        matches!(self, Self::Nil | Self::NilField)
    }

    /// `Nil` where nothing was read from an element.
    pub(crate) fn settled(self) -> Self {
        if matches!(self, Self::NilField) {
            Self::Nil
        } else {
            self
        }
    }

    /// What reading this value out of a map or list gives.
    pub(crate) fn as_field(&self) -> Self {
        if self.is_nil() {
            Self::NilField
        } else {
            self.clone()
        }
    }

    /// Go's truth: everything but nothing, false, zero, and what is empty.
    pub(crate) fn truth(&self, heap: &Heap) -> bool {
        match self {
            Self::Nil | Self::NilField => false,
            Self::Bool(value) => *value,
            Self::Int(value) | Self::Int64(value) | Self::Duration(value) => *value != 0,
            Self::Uint8(value) => *value != 0,
            Self::Uint64(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => list.len() > 0,
            Self::Map(map) => !heap.get(*map).is_empty(),
            Self::Month(value) | Self::Weekday(value) => *value != 0,
            Self::Time(_) | Self::Version(_) => true,
        }
    }

    /// The type as Go's `%T` writes it.
    pub(crate) fn type_name(&self) -> String {
        match self {
            Self::Nil | Self::NilField => "<nil>".to_owned(),
            Self::Bool(_) => "bool".to_owned(),
            Self::Int(_) => "int".to_owned(),
            Self::Int64(_) => "int64".to_owned(),
            Self::Uint8(_) => "uint8".to_owned(),
            Self::Uint64(_) => "uint64".to_owned(),
            Self::Float(_) => "float64".to_owned(),
            Self::Text(_) => "string".to_owned(),
            Self::List(list) => format!("[]{}", list.element.name()),
            Self::Map(map) => format!("map[string]{}", map.element.name()),
            Self::Time(_) => "time.Time".to_owned(),
            Self::Duration(_) => "time.Duration".to_owned(),
            Self::Month(_) => "time.Month".to_owned(),
            Self::Weekday(_) => "time.Weekday".to_owned(),
            Self::Version(_) => "*semver.Version".to_owned(),
        }
    }

    /// The kind as Go's `reflect.Kind` names it.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self {
            Self::Nil | Self::NilField => "invalid",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Month(_) | Self::Weekday(_) => "int",
            Self::Int64(_) | Self::Duration(_) => "int64",
            Self::Uint8(_) => "uint8",
            Self::Uint64(_) => "uint64",
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
            Self::List(_) => "slice",
            Self::Map(_) => "map",
            Self::Time(_) => "struct",
            Self::Version(_) => "ptr",
        }
    }

    /// Bytes that a function reads when it is given this value, not counting what is inside elements.
    pub(crate) fn shallow_bytes(&self, heap: &Heap) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::List(list) => list.len() * size_of::<Value>(),
            Self::Map(map) => heap.get(*map).len() * size_of::<Value>(),
            // It is read part by part.
            Self::Version(version) => version.bytes() * 8,
            _ => 0,
        }
    }
}
