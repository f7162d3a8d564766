//! Reasons to reject a delivery, each with its HTTP status.

/// Maximum size of a body, in bytes.
pub const MAX_BODY: usize = 25 * 1024 * 1024;

/// Reason to reject a delivery. Nothing of the delivery except this reason may be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The body is longer than [`MAX_BODY`].
    #[error("the body has {size} bytes; the limit is {MAX_BODY}")]
    TooLarge {
        /// Size of the body, in bytes.
        size: usize,
    },
    /// No secret is configured to verify the sender with.
    #[error(
        "this webhook has no secret, so the server cannot verify any sender; set one here and at the sender"
    )]
    NoSecret,
    /// The request contains no proof of its sender.
    #[error("{missing} is missing; {help}")]
    MissingProof {
        /// The missing proof.
        missing: &'static str,
        /// The setting to correct at the sender.
        help: &'static str,
    },
    /// The proof does not match any secret.
    #[error(
        "{what} does not match any secret of this webhook; set the same secret here and at the sender"
    )]
    WrongProof {
        /// The proof that was compared.
        what: &'static str,
    },
    /// The time of the proof is too far from now: a repeated delivery or a wrong clock.
    #[error("the delivery was signed {seconds} s {}; the limit is {limit} s, so check the clocks of both sides", if *.past { "ago" } else { "in the future" })]
    Stale {
        /// Difference to now, in seconds.
        seconds: u64,
        /// `true` if the time is before now.
        past: bool,
        /// Allowed difference, in seconds.
        limit: u64,
    },
    /// A header that identifies the delivery is missing or unreadable.
    #[error("the header `{header}` is missing or unreadable")]
    MissingHeader {
        /// The name of the header.
        header: &'static str,
    },
    /// The body is not JSON.
    #[error("the body is not JSON: {reason}")]
    NotJson {
        /// The message of the JSON parser.
        reason: String,
    },
    /// The body is JSON of another form than the sender's documentation describes.
    #[error("the body is not a delivery of this kind: {reason}")]
    NotUnderstood {
        /// The missing or wrong part.
        reason: String,
    },
}

impl Rejection {
    /// Returns the HTTP status of the response, always a 4xx.
    pub fn status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 413,
            Self::MissingProof { .. } => 401,
            Self::NoSecret | Self::WrongProof { .. } | Self::Stale { .. } => 403,
            Self::MissingHeader { .. } | Self::NotJson { .. } => 400,
            Self::NotUnderstood { .. } => 422,
        }
    }

    pub(crate) fn not_understood(reason: impl Into<String>) -> Self {
        Self::NotUnderstood {
            reason: shorten(reason.into()),
        }
    }
}

impl From<serde_json::Error> for Rejection {
    fn from(error: serde_json::Error) -> Self {
        let reason = shorten(error.to_string());
        match error.classify() {
            serde_json::error::Category::Data => Self::NotUnderstood { reason },
            _ => Self::NotJson { reason },
        }
    }
}

/// Shortens a reason and replaces control characters.
///
/// A reason quotes the body, which may be long or contain sequences that move a terminal's cursor.
fn shorten(reason: String) -> String {
    const LONGEST: usize = 300;
    let mut reason = if reason.contains(char::is_control) {
        reason.replace(char::is_control, "\u{fffd}")
    } else {
        reason
    };
    if reason.len() > LONGEST {
        let cut = reason.floor_char_boundary(LONGEST);
        reason.truncate(cut);
        reason.push('…');
    }
    reason
}
