//! Verification of senders: signatures over the raw bytes, and shared tokens.
//!
//! Invariants: every comparison takes constant time. An empty secret verifies nothing. Any one of
//! several secrets suffices, so that operators can rotate them without losing deliveries.

use acrtask_model::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use http::HeaderMap;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::Rejection;

/// Maximum difference between a signed time and now, in seconds, in both directions.
const TOLERANCE: u64 = 5 * 60;

/// Prefix of keys of the Standard Webhooks specification. The rest of the key is base64.
const KEY_PREFIX: &str = "whsec_";

/// Returns the secrets that are not empty.
pub(crate) fn usable_secrets(secrets: &[Secret]) -> Result<Vec<&Secret>, Rejection> {
    let usable: Vec<_> = secrets
        .iter()
        .filter(|secret| !secret.expose().is_empty())
        .collect();
    if usable.is_empty() {
        return Err(Rejection::NoSecret);
    }
    Ok(usable)
}

/// Returns the text of a header. `None` if the header is missing, empty or not text.
pub(crate) fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers
        .get(name)?
        .to_str()
        .ok()
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

/// Verifies a signature of the form `sha256=HEX` or `HEX` over the body.
pub(crate) fn verify_hex(
    secrets: &[&Secret],
    body: &[u8],
    signature: &str,
    what: &'static str,
) -> Result<(), Rejection> {
    let hex = signature.strip_prefix("sha256=").unwrap_or(signature);
    let signed = decode_hex(hex).is_some_and(|given| {
        secrets
            .iter()
            .any(|secret| is_signature(secret.expose().as_bytes(), &[body], &given))
    });
    signed.then_some(()).ok_or(Rejection::WrongProof { what })
}

/// Verifies a signature of the Standard Webhooks specification: `v1,BASE64` over `id.time.body`.
/// Returns the id.
pub(crate) fn verify_standard_webhook(
    secrets: &[&Secret],
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<String, Rejection> {
    let signatures = header_text(headers, "webhook-signature").ok_or(Rejection::MissingProof {
        missing: "the header `webhook-signature`",
        help: "sign `ID.TIME.BODY` with HMAC-SHA256 and send `v1,` and the signature in base 64",
    })?;
    let need = |name| header_text(headers, name).ok_or(Rejection::MissingHeader { header: name });
    // An id with a dot would make the borders of the three parts ambiguous.
    let id = need("webhook-id")?;
    if id.contains('.') {
        return Err(Rejection::MissingHeader {
            header: "webhook-id",
        });
    }
    let time = need("webhook-timestamp")?;
    let signed = signatures.split_whitespace().any(|signature| {
        let given = signature
            .strip_prefix("v1,")
            .and_then(|text| STANDARD.decode(text).ok());
        given.is_some_and(|given| {
            let text = [id.as_bytes(), b".", time.as_bytes(), b".", body];
            secrets
                .iter()
                .any(|secret| is_signature(&decode_key(secret), &text, &given))
        })
    });
    if !signed {
        return Err(Rejection::WrongProof {
            what: "the signature in `webhook-signature`",
        });
    }
    let time: i64 = time.parse().map_err(|_| Rejection::MissingHeader {
        header: "webhook-timestamp",
    })?;
    let seconds = now.as_second().abs_diff(time);
    if seconds > TOLERANCE {
        return Err(Rejection::Stale {
            seconds,
            past: time < now.as_second(),
            limit: TOLERANCE,
        });
    }
    Ok(id.to_owned())
}

fn decode_key(secret: &Secret) -> Vec<u8> {
    let text = secret.expose();
    text.strip_prefix(KEY_PREFIX)
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .filter(|key| !key.is_empty())
        .unwrap_or_else(|| text.as_bytes().to_vec())
}

fn is_signature(key: &[u8], parts: &[&[u8]], given: &[u8]) -> bool {
    // HMAC accepts keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return false;
    };
    for part in parts {
        mac.update(part);
    }
    mac.verify_slice(given).is_ok()
}

/// Compares `given` with all secrets, as digests, so that timing reveals not even a length.
pub(crate) fn matches_any_secret(secrets: &[&Secret], given: &str) -> bool {
    let given = Sha256::digest(given);
    let mut found = subtle::Choice::from(0);
    for secret in secrets {
        found |= Sha256::digest(secret.expose()).ct_eq(&given);
    }
    found.into()
}

/// Returns the password of `Authorization: Basic`.
pub(crate) fn basic_password(authorization: &str) -> Option<String> {
    let encoded = strip_scheme(authorization, "basic")?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (_, password) = decoded.split_once(':')?;
    Some(password.to_owned())
}

/// Returns the token of `Authorization: Bearer`.
pub(crate) fn bearer_token(authorization: &str) -> Option<&str> {
    strip_scheme(authorization, "bearer")
}

fn strip_scheme<'a>(authorization: &'a str, name: &str) -> Option<&'a str> {
    let (scheme, rest) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case(name).then_some(rest.trim())
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok())
        .collect()
}

/// Returns the SHA-256 of `bytes` in hexadecimal digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Returns the SHA-256 of the parts in hexadecimal digits.
///
/// The digest covers the length of each part, so that no two lists of parts have the same digest.
pub(crate) fn digest_parts(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    format!("{:x}", hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source: GitHub's documentation, "Validating webhook deliveries".
    #[test]
    fn hex_signature_matches_githubs_example() {
        let secret = Secret::new("It's a Secret to Everybody");
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        verify_hex(&[&secret], b"Hello, World!", signature, "it").unwrap();
        assert!(verify_hex(&[&secret], b"Hello, World?", signature, "it").is_err());
        for bad in [
            "",
            "sha256=",
            "sha256=75",
            "sha1=00",
            "sha256=+7",
            "sha256=é",
        ] {
            assert!(
                verify_hex(&[&secret], b"Hello, World!", bad, "it").is_err(),
                "{bad}"
            );
        }
    }

    /// Source: the example of the Standard Webhooks specification.
    #[test]
    fn signature_matches_standard_webhooks_example() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let mut headers = HeaderMap::new();
        headers.insert(
            "webhook-id",
            "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap(),
        );
        headers.insert("webhook-timestamp", "1614265330".parse().unwrap());
        headers.insert(
            "webhook-signature",
            "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
                .parse()
                .unwrap(),
        );
        let body = br#"{"test": 2432232314}"#;
        let at = |seconds: i64| Timestamp::from_second(1_614_265_330 + seconds).unwrap();
        let check = |now| verify_standard_webhook(&[&secret], &headers, body, now);
        assert_eq!(check(at(0)).unwrap(), "msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert!(check(at(300)).is_ok());
        assert!(check(at(-300)).is_ok());
        assert_eq!(
            check(at(301)).unwrap_err().to_string(),
            "the delivery was signed 301 s ago; the limit is 300 s, so check the clocks of both sides"
        );
        assert!(check(at(-301)).is_err());
    }

    #[test]
    fn empty_secret_verifies_nothing() {
        assert_eq!(
            usable_secrets(&[Secret::new("")]).unwrap_err(),
            Rejection::NoSecret
        );
        assert!(matches_any_secret(
            &[&Secret::new("a"), &Secret::new("b")],
            "b"
        ));
        assert!(!matches_any_secret(&[&Secret::new("a")], ""));
        assert_eq!(basic_password("Basic dTpwOnc=").unwrap(), "p:w");
        assert_eq!(basic_password("Bearer dTpwOnc="), None);
    }
}
