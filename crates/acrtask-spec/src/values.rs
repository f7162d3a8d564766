//! Values files, read like `yaml.v2`: the first document, the last of equal keys, numbers of YAML
//! 1.1.
//!
//! A scalar whose meaning differs from its look causes a warning. Left out: the merge order of
//! `yaml.v2`. A written key takes precedence over a merged one.

use std::{collections::HashMap, rc::Rc};

use serde_json::{Map, Number, Value};

use crate::{
    code::Code,
    diagnostic::Diagnostic,
    yaml::{self, Kind, Meaning, Node},
};

const CODE: Code = Code::Values;

/// A values file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValuesFile {
    /// Values by name.
    pub values: Map<String, Value>,
    /// Warnings, for example about a text that is read as a number.
    pub warnings: Vec<Diagnostic>,
}

/// Parses a values file, which is a map.
///
/// # Errors
///
/// Returns a diagnostic with spans of `text` if it is not YAML or not a map.
pub fn values_from_yaml(text: &str) -> Result<ValuesFile, Diagnostic> {
    let document = yaml::parse(text).map_err(|diagnostic| Diagnostic {
        code: CODE.as_str().into(),
        help: Some("write one value on each line: `name: value`".into()),
        ..diagnostic
    })?;
    let mut reader = Reader::default();
    if let Some(second) = document.second {
        reader.warnings.push(
            Diagnostic::warning(CODE, "a second document begins here, which is not read")
                .at(second, "the values end before this")
                .help("remove the line, or write these values to a separate file"),
        );
    }
    let root = match document.root.as_deref() {
        None => return Ok(reader.finish(Map::new())),
        Some(node) if node.is_null() => return Ok(reader.finish(Map::new())),
        Some(node) => node,
    };
    if !matches!(root.kind, Kind::Map(_)) {
        return Err(Diagnostic::error(
            CODE,
            format!("this is not a map of values, it is {}", root.describe()),
        )
        .at(root.span.clone(), "expected a map")
        .help("write one value on each line: `name: value`"));
    }
    let values = reader.read_map(root)?;
    Ok(reader.finish(values))
}

#[derive(Default)]
struct Reader {
    warnings: Vec<Diagnostic>,
}

impl Reader {
    fn finish(mut self, values: Map<String, Value>) -> ValuesFile {
        // A node with several aliases is read several times.
        self.warnings.sort_by_key(Diagnostic::start);
        self.warnings.dedup();
        ValuesFile {
            values,
            warnings: self.warnings,
        }
    }

    fn read_value(&mut self, node: &Node) -> Result<Value, Diagnostic> {
        match &node.kind {
            Kind::Map(_) => Ok(Value::Object(self.read_map(node)?)),
            Kind::List(items) => {
                let items = items.iter().map(|item| self.read_value(item));
                Ok(Value::Array(items.collect::<Result<_, _>>()?))
            }
            Kind::Scalar { text, .. } => Ok(self.read_scalar(node, text)),
        }
    }

    fn read_scalar(&mut self, node: &Node, text: &str) -> Value {
        let number = match node.meaning() {
            Some(Meaning::Null) => return Value::Null,
            Some(Meaning::Bool(value)) => return Value::Bool(value),
            Some(Meaning::Int(value)) => Number::from(value),
            Some(Meaning::Float(value)) => match (parse_unsigned(text), Number::from_f64(value)) {
                (Some(value), _) => Number::from(value),
                (None, Some(value)) => value,
                // Infinite values and NaN become texts, as Go prints them.
                (None, None) if value.is_nan() => return "NaN".into(),
                (None, None) if value > 0.0 => return "+Inf".into(),
                (None, None) => return "-Inf".into(),
            },
            Some(Meaning::Text) | None => {
                self.warn_of_large_number(node, text);
                return text.into();
            }
        };
        let shown = number.as_f64().filter(|_| number.is_f64());
        let shown = shown.map_or_else(|| number.to_string(), |value| value.to_string());
        if shown != text.trim_start_matches('+') {
            self.warnings.push(
                Diagnostic::warning(CODE, format!("`{text}` is read as the number {shown}"))
                    .at(node.span.clone(), "not text")
                    .help(format!(
                        "write `'{text}'` where it is text, such as a commit"
                    )),
            );
        }
        Value::Number(number)
    }

    /// Warns about a text that looks like a number, such as the commit `5e12345`.
    fn warn_of_large_number(&mut self, node: &Node, text: &str) {
        let is_plain = matches!(node.kind, Kind::Scalar { plain: true, .. });
        let digits = text.replace('_', "");
        if is_plain
            && text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
            && digits.parse::<f64>().is_ok_and(f64::is_infinite)
        {
            self.warnings.push(
                Diagnostic::warning(
                    CODE,
                    format!("`{text}` is too large for a number, and stays text"),
                )
                .at(node.span.clone(), "text")
                .help(format!("write `'{text}'`, which is text in any case")),
            );
        }
    }

    fn read_map(&mut self, node: &Node) -> Result<Map<String, Value>, Diagnostic> {
        let Kind::Map(pairs) = &node.kind else {
            return Ok(Map::new());
        };
        let mut values = Map::new();
        let mut written: HashMap<String, &Rc<Node>> = HashMap::new();
        for (key, value) in pairs.iter().filter(|(key, _)| !is_merge(key)) {
            let Some(name) = key.scalar() else {
                return Err(Diagnostic::error(
                    CODE,
                    format!("the name of a value is text, this is {}", key.describe()),
                )
                .at(key.span.clone(), "expected text")
                .help("write `name: value`"));
            };
            if let Some(before) = written.insert(name.to_owned(), key) {
                self.warnings.push(
                    Diagnostic::warning(
                        CODE,
                        format!("`{name}` is written twice; the last one counts"),
                    )
                    .at(before.span.clone(), "this one is ignored"),
                );
            }
            let value = self.read_value(value)?;
            values.insert(name.to_owned(), value);
        }
        for (_, value) in pairs.iter().filter(|(key, _)| is_merge(key)) {
            let sources: Vec<&Node> = match &value.kind {
                Kind::List(items) => items.iter().map(Rc::as_ref).collect(),
                _ => vec![value],
            };
            for source in sources {
                if !matches!(source.kind, Kind::Map(_)) {
                    return Err(Diagnostic::error(
                        CODE,
                        format!("`<<` merges maps, this is {}", source.describe()),
                    )
                    .at(source.span.clone(), "expected an alias of a map")
                    .help("write `<<: *name`, where `&name` is written before a map"));
                }
                for (name, value) in self.read_map(source)? {
                    values.entry(name).or_insert(value);
                }
            }
        }
        Ok(values)
    }
}

fn is_merge(key: &Node) -> bool {
    matches!(&key.kind, Kind::Scalar { text, plain: true } if text == "<<")
}

/// Parses a whole number that fits only an unsigned type.
fn parse_unsigned(text: &str) -> Option<u64> {
    text.replace('_', "").trim_start_matches('+').parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_equal_those_of_yaml_v2() {
        for (text, value, warns) in [
            ("5e12345", json!("5e12345"), true),
            ("685_230.15", json!(685_230.15), true),
            ("1_", json!(1), true),
            ("1_000", json!(1000), true),
            ("010", json!(8), true),
            ("1.10", json!(1.1), true),
            ("1e3", json!(1000.0), true),
            ("1.", json!(1.0), true),
            ("18446744073709551615", json!(u64::MAX), false),
            ("+5", json!(5), false),
            ("-5", json!(-5), false),
            ("1.5", json!(1.5), false),
            ("'1_'", json!("1_"), false),
            ("1.0.0", json!("1.0.0"), false),
            ("2001-02-03", json!("2001-02-03"), false),
            ("abc1234", json!("abc1234"), false),
            ("yes", json!(true), false),
            ("~", json!(null), false),
            (".inf", json!("+Inf"), false),
            ("[1, two]", json!([1, "two"]), false),
            ("{a: 1}", json!({"a": 1}), false),
        ] {
            let file = values_from_yaml(&format!("v: {text}\n")).unwrap();
            assert_eq!(file.values["v"], value, "{text}");
            assert_eq!(
                !file.warnings.is_empty(),
                warns,
                "{text}: {:?}",
                file.warnings
            );
        }
    }

    #[test]
    fn first_document_and_last_duplicate_key_win() {
        let file = values_from_yaml("a: 1\nb: 2\na: 3\n---\nc: [\n").unwrap();
        assert_eq!(Value::Object(file.values), json!({"a": 3, "b": 2}));
        let messages: Vec<&str> = file.warnings.iter().map(|w| w.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "`a` is written twice; the last one counts",
                "a second document begins here, which is not read"
            ]
        );
        assert_eq!(file.warnings[0].start(), 0);
    }

    #[test]
    fn maps_are_merged() {
        let file = values_from_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n3: c\n").unwrap();
        assert_eq!(
            Value::Object(file.values),
            json!({"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "3": "c"})
        );
    }

    #[test]
    fn empty_files_have_no_values() {
        for text in ["", "# nothing\n", "---\n", "~\n"] {
            assert_eq!(
                values_from_yaml(text).unwrap(),
                ValuesFile::default(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn other_nodes_than_maps_are_refused_with_their_span() {
        for text in ["- a", "a: 1\nb: [\n", "text", "{[a]: b}", "a: {<<: 1}"] {
            let error = values_from_yaml(text).unwrap_err();
            assert_eq!(error.code, "values", "{text}");
            assert!(!error.labels.is_empty(), "{text}");
        }
    }
}
