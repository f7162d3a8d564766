//! Keys of JSON objects that two parsers read differently.
//!
//! Go's `encoding/json` ignores the case of keys, and takes the last of two equal ones. An engine, a builder and most
//! registries are written in Go. A document that they read differently from this program would be checked here with
//! one content and used there with another. So such a document is refused.
//!
//! Source: `foldName` in Go's `encoding/json`; RFC 8259, section 4 (names within an object should be unique).

use std::{collections::HashSet, fmt};

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// The keys that a reader of a document looks up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    /// The keys, at every depth.
    pub(crate) known: &'static [&'static str],
    /// Returns `true` for a key whose value holds names of the author. They may have any case.
    pub(crate) is_free: fn(&str) -> bool,
}

/// Refuses a document with two equal keys in one object, or with a key that is a known one in another case.
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

/// A value of the document. Returns `()`.
#[derive(Clone, Copy)]
struct Value {
    keys: Keys,
    /// Set inside of a value of [`Keys::is_free`].
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
            let mut known = self.keys.known.iter().filter(|_| !self.free);
            if let Some(known) = known.find(|known| key != **known && folds_to(&key, known)) {
                return Err(A::Error::custom(format!(
                    "the key {key:?} is {known:?} for some programs; write it in one way"
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

/// Returns `true` if Go takes `key` for `known`, which is ASCII.
fn folds_to(key: &str, known: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(known.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = Keys {
        known: &["layers", "mediaType", "annotations", "kind"],
        is_free: |key| key == "annotations",
    };

    #[test]
    fn refuses_keys_that_go_reads_differently() {
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
