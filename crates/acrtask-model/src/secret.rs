//! Secret values, which must not appear in output.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A secret text. It cannot be printed, compared or serialized. Its memory is wiped on drop.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Stores `value` as a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// Returns the value. Each caller passes it only to the place that needs it: a secret mount, an
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
