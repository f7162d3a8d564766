//! Names of hosts, what they say of errors, and what to advise about them.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use url::Url;

use super::read_limited;

/// How much of an error's body is read, in bytes.
const MAX_MESSAGE: u64 = 64 << 10;
/// Longest wait for it.
const MESSAGE_TIME: Duration = Duration::from_secs(60);

/// Host and port of an address.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A registry's name without its port.
pub(super) fn host_name(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

pub(super) fn help_missing(host: &str) -> String {
    format!(
        "there is no credential for {host}: log in with `docker login {host}`, or give `--credential {host}=USER:@FILE`"
    )
}

pub(super) fn help_refused(host: &str) -> String {
    format!("check the credential for {host}: it is wrong or expired, or does not allow this")
}

pub(super) fn help_foreign(host: &str, realm: &str) -> String {
    format!(
        "{host} names the token server {realm}, another host, which is not given the login for {host}; if it may have it, give the same login for both: `--credential {host}=USER:@FILE --credential {realm}=USER:@FILE`"
    )
}

/// The registry's words on an error.
///
/// Source: distribution specification, "Error Codes".
pub(super) async fn message(response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let reading = read_limited(response, MAX_MESSAGE, "", "");
    let body = tokio::time::timeout(MESSAGE_TIME, reading).await;
    let body = body
        .unwrap_or_else(|_| Ok(Bytes::new()))
        .unwrap_or_default();
    let errors = serde_json::from_slice::<Errors>(&body)
        .map(|body| body.errors)
        .unwrap_or_default();
    let texts: Vec<String> = errors
        .into_iter()
        .map(|one| {
            if one.message.is_empty() {
                one.code
            } else {
                one.message
            }
        })
        .collect();
    // Nothing that a server says may steer a terminal.
    texts
        .join("; ")
        .chars()
        .filter(|c| !c.is_control())
        .take(500)
        .collect()
}
