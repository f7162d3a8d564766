//! Signed links to blobs: uploads of contexts, and logs.
//!
//! A link authorizes one operation on one blob until it expires. Its signature is a MAC with a key
//! that is derived from the key file.

use acrtask_arm::Host;
use acrtask_store::Ms;
use axum::http::Uri;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{find_parameter, parse_query};
use crate::{App, api::ApiError};

/// Operation that a link authorizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// Upload of a context.
    Upload,
    /// Reading of the log of a run.
    Log,
}

impl LinkKind {
    /// Returns the folder of the blob in the path.
    fn folder(self) -> &'static str {
        match self {
            Self::Upload => "contexts",
            Self::Log => "logs",
        }
    }

    /// Returns the lifetime in milliseconds. A log link lasts as long as the longest usual run.
    fn lifetime(self) -> Ms {
        match self {
            Self::Upload => 2 * 3_600_000,
            Self::Log => 24 * 3_600_000,
        }
    }
}

/// Returns the text that a signature covers.
fn signed_text(kind: LinkKind, id: &str, expiry: &str) -> String {
    format!("{}\n{id}\n{expiry}", kind.folder())
}

/// Returns the URL of a blob with its expiry and signature.
pub(super) fn create_link(app: &App, host: &Host, kind: LinkKind, id: &str) -> String {
    let expiry = acrtask_store::timestamp(app.clock.now_ms() + kind.lifetime());
    let expiry = expiry.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let signature = app.vault.sign_link(&signed_text(kind, id, &expiry));
    format!(
        "{}/blobs/{}/{id}?sv=2021-08-06&sr=b&se={expiry}&sig={}",
        host.url(),
        kind.folder(),
        URL_SAFE_NO_PAD.encode(signature)
    )
}

/// Checks the signature and the expiry of a link.
///
/// # Errors
/// Returns 403 if the link is not valid.
pub(super) fn verify_link(app: &App, uri: &Uri, kind: LinkKind, id: &str) -> Result<(), ApiError> {
    let query = parse_query(uri);
    let expiry = find_parameter(&query, "se").unwrap_or_default();
    let signature = find_parameter(&query, "sig").unwrap_or_default();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
    if !app
        .vault
        .verify_link(&signed_text(kind, id, expiry), &signature)
    {
        return Err(ApiError::forbidden("the signature of the link is wrong"));
    }
    let expired = match expiry.parse::<jiff::Timestamp>() {
        Ok(expiry) => expiry.as_millisecond() <= app.clock.now_ms(),
        Err(_) => true,
    };
    if expired {
        return Err(ApiError::forbidden("the link is expired").help("request a new one"));
    }
    Ok(())
}
