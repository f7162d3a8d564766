//! Why a delivery is refused, and with which answer.

/// The longest body that is looked at.
pub const MAX_BODY: usize = 25 * 1024 * 1024;

/// Why a delivery is refused. Nothing of it may be stored but this fact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The body is longer than [`MAX_BODY`].
    #[error("the body has {size} bytes, and {MAX_BODY} are the most that is taken")]
    TooLarge {
        /// What it has.
        size: usize,
    },
    /// There is nothing to check the sender with.
    #[error(
        "no secret is set for this webhook, so nobody can be believed; set one here and at the sender"
    )]
    NoSecret,
    /// The sender did not prove itself.
    #[error("{missing} is missing; {help}")]
    MissingProof {
        /// What was looked for.
        missing: &'static str,
        /// What to set at the sender.
        help: &'static str,
    },
    /// The sender tried to prove itself, and failed.
    #[error(
        "{what} does not match any secret of this webhook; set the same secret here and at the sender"
    )]
    WrongProof {
        /// What was compared.
        what: &'static str,
    },
    /// The proof is too old, or from the future: a repeated delivery, or a wrong clock.
    #[error("the delivery was signed {seconds} s {}; {limit} s are the most, so check the clocks of both sides", if *.past { "ago" } else { "in the future" })]
    Stale {
        /// How far it is from now.
        seconds: u64,
        /// Before now, not after it.
        past: bool,
        /// What is allowed.
        limit: u64,
    },
    /// A header that says what the delivery is, is missing or not readable.
    #[error("the header `{header}` is missing or unreadable")]
    MissingHeader {
        /// The header.
        header: &'static str,
    },
    /// The body is not JSON.
    #[error("the body is not JSON: {reason}")]
    NotJson {
        /// The reader's words.
        reason: String,
    },
    /// The body is JSON, but not what the sender's documentation describes.
    #[error("the body is not a delivery of this kind: {reason}")]
    NotUnderstood {
        /// What is missing or wrong.
        reason: String,
    },
}

impl Rejection {
    /// The HTTP status to answer with: always a 4xx.
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
            reason: short(reason.into()),
        }
    }
}

impl From<serde_json::Error> for Rejection {
    fn from(error: serde_json::Error) -> Self {
        let reason = short(error.to_string());
        match error.classify() {
            serde_json::error::Category::Data => Self::NotUnderstood { reason },
            _ => Self::NotJson { reason },
        }
    }
}

/// Reasons quote what was sent, which may be long, or made to move a screen's cursor.
fn short(reason: String) -> String {
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
