//! The functions that a template can call: Go's built-in ones and Sprig's.
//!
//! # Which
//!
//! The names are those of Sprig 3's `TxtFuncMap` (a superset of 2.22, which the reference executor uses), less the ones
//! in [`LEFT_OUT`]. `b64enc` of nothing gives the empty text, as the reference executor has it. Where Sprig 2.22 and 3
//! read the same text as different numbers (`int "08"`), 2.22's reading is taken.
//!
//! # Rules for a function
//!
//! Its arguments were counted and have the types of its parameters. It charges the meter before it makes anything
//! larger than what it was given.

pub(crate) mod builtins;
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
pub(crate) mod words;

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

/// What functions work with besides their arguments.
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

    /// The word for this parameter in a usage line.
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
    /// `and`, `or`: arguments are evaluated until one has this truth.
    ShortCircuit {
        stops_at: bool,
    },
}

pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) params: &'static [Param],
    /// The type of any number of further arguments.
    pub(crate) rest: Option<Param>,
    pub(crate) body: Body,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Function {
    /// How it is called, for messages.
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

/// A table of functions: `"name" (Types; Rest) body`.
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
    words::TABLE,
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
        // Sprig's function of a name stands before Go's own: `slice` is the one such name.
        functions.insert(function.name, function);
    }
    functions
});

/// The function of this name.
pub(crate) fn find(name: &str) -> Option<&'static Function> {
    BY_NAME.get(name).copied()
}

/// The method of this name of a value's type; its first parameter is the value.
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

/// The names of all functions that a template can call, in alphabetical order.
pub fn function_names() -> impl Iterator<Item = &'static str> {
    BY_NAME.keys().copied()
}

const READS_THE_MACHINE: &str = "it would let a task file read the machine that renders it";
const MAKES_SECRETS: &str =
    "keys and passwords are not made while a file is rendered; give them to the run as secrets";
const IS_RANDOM: &str =
    "the same file must render to the same steps each time; for a name of its own use `.Run.ID`";

/// Functions of Sprig that do not exist here, with the reason.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("bcrypt", MAKES_SECRETS),
    ("buildCustomCert", MAKES_SECRETS),
    ("call", "there are no values that are functions"),
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

/// What to do about a function that does not exist. `path_follows`: a field follows, as in `Values.x`.
pub(crate) fn help_for_unknown(name: &str, path_follows: bool) -> String {
    if let Some((_, reason)) = LEFT_OUT.iter().find(|(left_out, _)| *left_out == name) {
        return format!("`{name}` is left out: {reason}");
    }
    if path_follows {
        return format!("a value begins with a dot: `.{name}`");
    }
    // Comparing takes memory in proportion to the length; no function has a longer name.
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
            "a value of the run begins with a dot: `{{{{.Values.{name}}}}}`; braces that another program is to see are \
             written ``{{{{`{{{{{name}}}}}`}}}}``"
        ),
    }
}

// What follows reads arguments. Their types were checked against the parameters, so that the fallbacks are never met.

/// The text at `index`.
pub(crate) fn text_at(args: &[Value], index: usize) -> &Arc<str> {
    static EMPTY: LazyLock<Arc<str>> = LazyLock::new(|| "".into());
    match args.get(index) {
        Some(Value::Text(text)) => text,
        _ => &EMPTY,
    }
}

/// The integer at `index`.
pub(crate) fn int_at(args: &[Value], index: usize) -> i64 {
    match args.get(index) {
        Some(Value::Int(value) | Value::Int64(value)) => *value,
        _ => 0,
    }
}

/// The value at `index`.
pub(crate) fn value_at(args: &[Value], index: usize) -> &Value {
    args.get(index).unwrap_or(&Value::Nil)
}

/// The map at `index`; nothing where it is nil.
pub(crate) fn map_at(args: &[Value], index: usize) -> Option<MapRef> {
    match args.get(index) {
        Some(Value::Map(map)) => Some(*map),
        _ => None,
    }
}

/// A length as Go's `int`.
pub(crate) fn int(length: usize) -> Value {
    Value::Int(i64::try_from(length).unwrap_or(i64::MAX))
}

impl Env {
    /// A new text value, charged for.
    pub(crate) fn text(&mut self, text: impl AsRef<str>) -> Outcome {
        self.meter.text(text.as_ref().len())?;
        Ok(Value::text(text.as_ref()))
    }

    /// A new list value, charged for.
    pub(crate) fn list(&mut self, element: Element, items: Vec<Value>) -> Outcome {
        Ok(Value::List(List::new(&mut self.meter, element, items)?))
    }

    /// A new list of texts.
    pub(crate) fn texts<'t>(&mut self, texts: impl IntoIterator<Item = &'t str>) -> Outcome {
        let mut items = Vec::new();
        for text in texts {
            self.meter.allocate(text.len() + size_of::<Value>())?;
            items.push(Value::text(text));
        }
        self.list(Element::Text, items)
    }

    /// A new map value, charged for.
    pub(crate) fn map(&mut self, element: Element, entries: Entries) -> Outcome {
        Ok(Value::Map(self.heap.add(
            &mut self.meter,
            element,
            entries,
        )?))
    }

    /// The entries of a map as they are now, for a walk during which the map may change.
    pub(crate) fn entries(&mut self, map: MapRef) -> Result<Vec<(Arc<str>, Value)>, Fault> {
        let entries = self.heap.get(map);
        self.meter
            .allocate(entries.len() * size_of::<(Arc<str>, Value)>())?;
        Ok(entries
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    /// A text written piece by piece.
    pub(crate) fn write(
        &mut self,
        write: impl FnOnce(&mut Writer<'_>) -> Result<(), Fault>,
    ) -> Outcome {
        let mut writer = Writer::new(&mut self.meter);
        write(&mut writer)?;
        Ok(Value::Text(writer.text.into()))
    }
}
