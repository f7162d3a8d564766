//! The values that templates compute with, with the identity semantics of Go.
//!
//! Maps have reference semantics: every variable of a map sees the effect of `set`. A [`Heap`] owns
//! the maps for one rendering, and values refer to them by index. So a map that contains itself
//! causes neither a leak nor endless recursion in a destructor. Lists are immutable, and a slice
//! shares the list.
//!
//! Left out: texts that are not UTF-8. If Go would cut a character in two, the function is refused.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use crate::{
    error::Fault,
    funcs::{date::Time, semver::Version},
    limits::Meter,
    untrusted::MapSources,
};

/// Maximum nesting of lists in lists.
const MAX_LIST_DEPTH: u16 = 100;

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// A missing value: Go's invalid `reflect.Value`.
    Nil,
    /// A missing value from an element of a map or list: Go's nil interface. A pipeline converts it
    /// to `Nil`.
    NilField,
    Bool(bool),
    /// Go's `int`.
    Int(i64),
    Int64(i64),
    /// Result of `index` on a text.
    Uint8(u8),
    Uint64(u64),
    Float(f64),
    Text(Arc<str>),
    List(List),
    Map(MapRef),
    Time(Rc<Time>),
    /// `time.Duration` in nanoseconds.
    Duration(i64),
    /// `time.Month`, 1 to 12.
    Month(i8),
    /// `time.Weekday`, 0 (Sunday) to 6.
    Weekday(i8),
    Version(Rc<Version>),
}

/// Static element type of a list or map, as in Go's `%T`.
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
    /// `true` for Go's nil slice: empty, but `null` in JSON.
    pub(crate) is_nil: bool,
}

#[derive(Debug)]
struct ListData {
    items: Vec<Value>,
    depth: u16,
}

impl List {
    /// Creates a list of `items` and charges its memory. The caller charges the work of making the
    /// items.
    pub(crate) fn new(
        meter: &mut Meter,
        element: Element,
        items: Vec<Value>,
    ) -> Result<Self, Fault> {
        meter.charge_memory(items.len() * size_of::<Value>() + size_of::<ListData>())?;
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

    /// Returns how far a slice of this list may reach: Go's capacity if nothing was appended in
    /// place.
    pub(crate) fn capacity(&self) -> usize {
        self.data.items.len() - self.start as usize
    }

    /// Returns the part from `start` to `end`, which must be within the capacity.
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

/// A reference to a map in the [`Heap`]. All keys are texts.
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
    /// Untrusted sources of the map entries.
    pub(crate) sources: MapSources,
}

/// Memory of a map entry in bytes, without the text of its key.
pub(crate) const ENTRY_BYTES: usize = 2 * size_of::<Value>() + 16;

impl Heap {
    /// Adds a map and charges its memory by entry.
    pub(crate) fn add_map(
        &mut self,
        meter: &mut Meter,
        element: Element,
        entries: Entries,
    ) -> Result<MapRef, Fault> {
        meter.charge_memory(size_of::<Entries>() + 64 + entries.len() * ENTRY_BYTES)?;
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

    /// Converts JSON data to a value, as Go reads it from YAML. Whole numbers become `int`.
    pub(crate) fn import_json(
        &mut self,
        meter: &mut Meter,
        json: &serde_json::Value,
    ) -> Result<Value, Fault> {
        meter.charge_steps(1)?;
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
                meter.charge_memory(text.len())?;
                Value::Text(text.as_str().into())
            }
            serde_json::Value::Array(items) => {
                let items = items
                    .iter()
                    .map(|item| self.import_json(meter, item))
                    .collect::<Result<Vec<_>, _>>()?;
                Value::List(List::new(meter, Element::Any, items)?)
            }
            serde_json::Value::Object(object) => {
                let mut entries = Entries::new();
                for (key, value) in object {
                    meter.charge_memory(key.len())?;
                    entries.insert(key.as_str().into(), self.import_json(meter, value)?);
                }
                Value::Map(self.add_map(meter, Element::Any, entries)?)
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

    /// Converts a missing element to `Nil`.
    pub(crate) fn nil_field_to_nil(self) -> Self {
        if matches!(self, Self::NilField) {
            Self::Nil
        } else {
            self
        }
    }

    /// Returns the value as an element of a map or list, where a missing value becomes `NilField`.
    pub(crate) fn as_field(&self) -> Self {
        if self.is_nil() {
            Self::NilField
        } else {
            self.clone()
        }
    }

    /// Returns the truth of the value in Go. False are missing values, false, zero, and empty
    /// values.
    pub(crate) fn is_truthy(&self, heap: &Heap) -> bool {
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

    /// Returns the type as in Go's `%T`.
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

    /// Returns the kind as in Go's `reflect.Kind`.
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

    /// Returns the bytes that a function reads from this value, without the content of its
    /// elements.
    pub(crate) fn shallow_bytes(&self, heap: &Heap) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::List(list) => list.len() * size_of::<Value>(),
            Self::Map(map) => heap.get(*map).len() * size_of::<Value>(),
            // A version is read part by part.
            Self::Version(version) => version.bytes() * 8,
            _ => 0,
        }
    }
}
