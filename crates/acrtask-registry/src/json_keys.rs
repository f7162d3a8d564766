//! Check for keys of JSON objects that two parsers read differently.
//!
//! Go's `encoding/json` ignores the case of keys, and takes the last of two equal ones. Engines,
//! builders and most registries are written in Go. This program could check a document with one
//! content, and an engine could use it with another. The check refuses such a document.
//!
//! Source: `foldName` in Go's `encoding/json`; RFC 8259, section 4 (names within an object should
//! be unique).

use std::{collections::HashSet, fmt};

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Keys that readers of a document look up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    /// Names of the keys, at every depth.
    pub(crate) names: &'static [&'static str],
    /// Returns `true` for a key whose value contains names that the author chose. Those may have
    /// any case.
    pub(crate) is_free: fn(&str) -> bool,
}

/// Refuses a document with two equal keys in one object, or with a looked-up key in another case.
///
/// # Errors
/// A sentence that names the key, or the syntax error.
pub(crate) fn check(document: &[u8], keys: Keys) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_slice(document);
    let value = Value { keys, free: false };
    serde::de::DeserializeSeed::deserialize(value, &mut reader)
        .map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())
}

/// Visitor of one value of the document.
#[derive(Clone, Copy)]
struct Value {
    keys: Keys,
    /// `true` inside a value of [`Keys::is_free`].
    free: bool,
}

impl<'de> serde::de::DeserializeSeed<'de> for Value {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let mut names = self.keys.names.iter().filter(|_| !self.free);
            if let Some(name) = names.find(|name| key != **name && folds_to(&key, name)) {
                return Err(A::Error::custom(format!(
                    "the key {key:?} means {name:?} to some programs; write {name:?}"
                )));
            }
            let free = self.free || (self.keys.is_free)(&key);
            if let Some(key) = seen.replace(key) {
                return Err(A::Error::custom(format!("the key {key:?} is given twice")));
            }
            map.next_value_seed(Self { free, ..self })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Returns `true` if Go reads `key` as `name`, which is ASCII.
fn folds_to(key: &str, name: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = Keys {
        names: &["layers", "mediaType", "annotations", "kind"],
        is_free: |key| key == "annotations",
    };

    #[test]
    fn check_refuses_keys_that_go_reads_differently() {
        for (document, accepted) in [
            (r#"{"layers":[{"mediaType":"x"}]}"#, true),
            (r#"{"Layers":[]}"#, false),
            (r#"{"layers":[],"LAYERS":[]}"#, false),
            (r#"{"layerſ":[]}"#, false),
            (r#"{"layer\u017f":[]}"#, false),
            ("{\"\u{212a}ind\":1}", false),
            (r#"{"layers":[{"mediatype":"x"}]}"#, false),
            (r#"{"layers":[[{"a":{"Layers":1}}]]}"#, false),
            (r#"{"layers":1,"layers":2}"#, false),
            (r#"{"other":1,"Other":2}"#, true),
            (r#"{"other":{"a":1,"a":2}}"#, false),
            (r#"{"annotations":{"Layers":"mine","kind":"2"}}"#, true),
            (r#"{"annotations":{"a":"mine","a":"2"}}"#, false),
            (r#"{"layers":[1,-2,3.5,null,true,"x"]}"#, true),
            (r#"{"layers":[]}{"Layers":[]}"#, false),
            ("{", false),
        ] {
            let checked = check(document.as_bytes(), KEYS);
            assert_eq!(checked.is_ok(), accepted, "{document} {checked:?}");
        }
    }
}
