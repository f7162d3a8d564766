//! Functions that a template can call: Go's built-in ones and Sprig's.
//!
//! # Selection
//!
//! The names are those of Sprig 3's `TxtFuncMap`, without the ones in [`LEFT_OUT`]. They include
//! those of 2.22, the version of the reference executor. `b64enc` of a missing value gives the
//! empty text, like in the reference executor. If Sprig 2.22 and 3 read a text as different numbers
//! (`int "08"`), 2.22 decides.
//!
//! # Rules for a function
//!
//! The number and types of the arguments are checked before a call. A function charges the meter
//! before it makes anything larger than its arguments.

pub(crate) mod builtins;
pub(crate) mod case;
pub(crate) mod date;
pub(crate) mod dicts;
pub(crate) mod encoding;
pub(crate) mod json;
pub(crate) mod layout;
pub(crate) mod lists;
pub(crate) mod math;
pub(crate) mod path;
pub(crate) mod regex;
pub(crate) mod semver;
pub(crate) mod strings;
pub(crate) mod types;
pub(crate) mod url;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use crate::{
    error::Fault,
    format::Writer,
    limits::Meter,
    value::{Element, Entries, Heap, List, MapRef, Value},
};

/// The state that functions use besides their arguments.
pub(crate) struct Env {
    pub(crate) heap: Heap,
    pub(crate) meter: Meter,
    pub(crate) now: Option<jiff::Timestamp>,
}

pub(crate) type Outcome = Result<Value, Fault>;

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Param {
    Any,
    Text,
    Int,
    Bool,
    Float,
    /// `map[string]interface {}`
    Dict,
    Time,
    Duration,
    Version,
}

impl Param {
    pub(crate) fn type_name(self) -> &'static str {
        match self {
            Self::Any => "interface {}",
            Self::Text => "string",
            Self::Int => "int",
            Self::Bool => "bool",
            Self::Float => "float64",
            Self::Dict => "map[string]interface {}",
            Self::Time => "time.Time",
            Self::Duration => "time.Duration",
            Self::Version => "*semver.Version",
        }
    }

    /// Returns the placeholder of this parameter in a usage line.
    fn word(self) -> &'static str {
        match self {
            Self::Any => "VALUE",
            Self::Text => "TEXT",
            Self::Int => "INT",
            Self::Bool => "BOOL",
            Self::Float => "FLOAT",
            Self::Dict => "DICT",
            Self::Time => "DATE",
            Self::Duration => "DURATION",
            Self::Version => "VERSION",
        }
    }
}

type Call = fn(&mut Env, &[Value]) -> Outcome;

#[derive(Clone, Copy)]
pub(crate) enum Body {
    Plain(Call),
    /// Body of `and` and `or`. Arguments are evaluated until one has the truth `stops_at`.
    ShortCircuit {
        stops_at: bool,
    },
}

pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) params: &'static [Param],
    /// Type of any number of further arguments.
    pub(crate) rest: Option<Param>,
    pub(crate) body: Body,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Function {
    /// Returns the usage of the function for messages.
    pub(crate) fn usage(&self) -> String {
        let mut usage = format!("usage: `{}", self.name);
        for param in self.params {
            usage.push(' ');
            usage.push_str(param.word());
        }
        if let Some(rest) = self.rest {
            usage.push_str(&format!(" [{}...]", rest.word()));
        }
        usage.push('`');
        usage
    }
}

/// Defines a table of functions: `"name" (Types; Rest) body`.
macro_rules! functions {
    ($($name:literal ($($param:ident),* $(; $rest:ident)?) $body:expr;)*) => {
        &[$($crate::funcs::Function {
            name: $name,
            params: &[$($crate::funcs::Param::$param),*],
            rest: functions!(@rest $($rest)?),
            body: $crate::funcs::Body::Plain($body),
        }),*]
    };
    (@rest) => { None };
    (@rest $rest:ident) => { Some($crate::funcs::Param::$rest) };
}
pub(crate) use functions;

static TABLES: [&[Function]; 15] = [
    builtins::TABLE,
    builtins::SHORT_CIRCUIT,
    strings::TABLE,
    case::TABLE,
    lists::TABLE,
    dicts::TABLE,
    math::TABLE,
    types::TABLE,
    json::TABLE,
    encoding::TABLE,
    date::TABLE,
    regex::TABLE,
    semver::TABLE,
    path::TABLE,
    url::TABLE,
];

static BY_NAME: LazyLock<BTreeMap<&'static str, &'static Function>> = LazyLock::new(|| {
    let mut functions = BTreeMap::new();
    for function in TABLES.into_iter().flatten() {
        // Sprig's functions replace Go's of the same name. The only such name is `slice`.
        functions.insert(function.name, function);
    }
    functions
});

/// Returns the function with this name.
pub(crate) fn find_function(name: &str) -> Option<&'static Function> {
    BY_NAME.get(name).copied()
}

/// Returns the method of a value's type with this name. Its first parameter is the value.
pub(crate) fn find_method(receiver: &Value, name: &str) -> Option<&'static Function> {
    let table: &'static [Function] = match receiver {
        Value::Time(_) => date::TIME_METHODS,
        Value::Duration(_) => date::DURATION_METHODS,
        Value::Month(_) | Value::Weekday(_) => date::NAME_METHODS,
        Value::Version(_) => semver::METHODS,
        _ => return None,
    };
    table.iter().find(|method| method.name == name)
}

/// Returns the names of all functions that a template can call, in alphabetical order.
pub fn function_names() -> impl Iterator<Item = &'static str> {
    BY_NAME.keys().copied()
}

const READS_THE_MACHINE: &str = "it would let a task file read the machine that renders it";
const MAKES_SECRETS: &str =
    "keys and passwords are not made while a file is rendered; give them to the run as secrets";
const IS_RANDOM: &str =
    "the same file must render to the same steps each time; for a name of its own use `.Run.ID`";

/// Functions of Sprig that are not supported, with the reason.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("bcrypt", MAKES_SECRETS),
    ("buildCustomCert", MAKES_SECRETS),
    ("call", "a value cannot be a function"),
    ("decryptAES", MAKES_SECRETS),
    ("derivePassword", MAKES_SECRETS),
    ("encryptAES", MAKES_SECRETS),
    ("env", READS_THE_MACHINE),
    ("expandenv", READS_THE_MACHINE),
    ("genCA", MAKES_SECRETS),
    ("genCAWithKey", MAKES_SECRETS),
    ("genPrivateKey", MAKES_SECRETS),
    ("genSelfSignedCert", MAKES_SECRETS),
    ("genSelfSignedCertWithKey", MAKES_SECRETS),
    ("genSignedCert", MAKES_SECRETS),
    ("genSignedCertWithKey", MAKES_SECRETS),
    ("getHostByName", "rendering makes no network requests"),
    ("htpasswd", MAKES_SECRETS),
    ("randAlpha", IS_RANDOM),
    ("randAlphaNum", IS_RANDOM),
    ("randAscii", IS_RANDOM),
    ("randBytes", MAKES_SECRETS),
    ("randInt", IS_RANDOM),
    ("randNumeric", IS_RANDOM),
    ("shuffle", IS_RANDOM),
    ("uuidv4", IS_RANDOM),
];

/// Returns help for an unknown function. `path_follows`: a field follows, as in `Values.x`.
pub(crate) fn help_for_unknown(name: &str, path_follows: bool) -> String {
    if let Some((_, reason)) = LEFT_OUT.iter().find(|(left_out, _)| *left_out == name) {
        return format!("`{name}` is left out: {reason}");
    }
    if path_follows {
        return format!("a value begins with a dot: `.{name}`");
    }
    // A comparison takes memory in proportion to the length. Every function has a shorter name.
    let comparable = if name.len() <= 40 { name } else { "" };
    let nearest = function_names()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&candidate.to_lowercase(), &comparable.to_lowercase()),
                candidate,
            )
        })
        .min()
        .filter(|(distance, candidate)| {
            *distance <= 2 && *distance * 2 < candidate.len().min(comparable.len())
        });
    match nearest {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None => format!(
            "a value of the run begins with a dot: `{{{{.Values.{name}}}}}`; write braces for another \
             program as ``{{{{`{{{{{name}}}}}`}}}}``"
        ),
    }
}

// The following functions read arguments. Types are already checked, so the fallbacks are never
// used.

/// Returns the text at `index`.
pub(crate) fn text_at(args: &[Value], index: usize) -> &Arc<str> {
    static EMPTY: LazyLock<Arc<str>> = LazyLock::new(|| "".into());
    match args.get(index) {
        Some(Value::Text(text)) => text,
        _ => &EMPTY,
    }
}

/// Returns the integer at `index`.
pub(crate) fn int_at(args: &[Value], index: usize) -> i64 {
    match args.get(index) {
        Some(Value::Int(value) | Value::Int64(value)) => *value,
        _ => 0,
    }
}

/// Returns the value at `index`.
pub(crate) fn value_at(args: &[Value], index: usize) -> &Value {
    args.get(index).unwrap_or(&Value::Nil)
}

/// Returns the map at `index`. `None` if it is nil.
pub(crate) fn map_at(args: &[Value], index: usize) -> Option<MapRef> {
    match args.get(index) {
        Some(Value::Map(map)) => Some(*map),
        _ => None,
    }
}

/// Converts a length to Go's `int`.
pub(crate) fn int_value(length: usize) -> Value {
    Value::Int(i64::try_from(length).unwrap_or(i64::MAX))
}

impl Env {
    /// Creates a text value and charges its memory.
    pub(crate) fn new_text(&mut self, text: impl AsRef<str>) -> Outcome {
        self.meter.charge_text(text.as_ref().len())?;
        Ok(Value::text(text.as_ref()))
    }

    /// Creates a list value and charges its memory.
    pub(crate) fn new_list(&mut self, element: Element, items: Vec<Value>) -> Outcome {
        Ok(Value::List(List::new(&mut self.meter, element, items)?))
    }

    /// Creates a list of texts and charges its memory.
    pub(crate) fn new_texts<'t>(&mut self, texts: impl IntoIterator<Item = &'t str>) -> Outcome {
        let mut items = Vec::new();
        for text in texts {
            self.meter.charge_memory(text.len() + size_of::<Value>())?;
            items.push(Value::text(text));
        }
        self.new_list(Element::Text, items)
    }

    /// Creates a map value and charges its memory.
    pub(crate) fn new_map(&mut self, element: Element, entries: Entries) -> Outcome {
        Ok(Value::Map(self.heap.add_map(
            &mut self.meter,
            element,
            entries,
        )?))
    }

    /// Copies the entries of a map, for a loop during which the map may change.
    pub(crate) fn copy_entries(&mut self, map: MapRef) -> Result<Vec<(Arc<str>, Value)>, Fault> {
        let entries = self.heap.get(map);
        self.meter
            .charge_memory(entries.len() * size_of::<(Arc<str>, Value)>())?;
        Ok(entries
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    /// Creates a text that `write` adds piece by piece.
    pub(crate) fn write_text(
        &mut self,
        write: impl FnOnce(&mut Writer<'_>) -> Result<(), Fault>,
    ) -> Outcome {
        let mut writer = Writer::new(&mut self.meter);
        write(&mut writer)?;
        Ok(Value::Text(writer.text.into()))
    }
}
