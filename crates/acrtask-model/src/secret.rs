//! A value that must not be seen.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A secret text. It cannot be printed, compared or serialized; its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes `value` in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The value itself. Each caller hands it to the one place that needs it: a secret mount, an
    /// `Authorization` header, the text of a rendered task.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
