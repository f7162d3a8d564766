//! Host names, error messages of hosts, and advice about them.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use url::Url;

use super::read_limited;

/// Maximum size of the body of an error, in bytes.
const MAX_MESSAGE: u64 = 64 << 10;
/// Maximum wait for the body of an error.
const MESSAGE_TIME: Duration = Duration::from_secs(60);

/// Returns the host and port of a URL.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns a registry's name without its port.
pub(super) fn host_name(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

pub(super) fn help_missing(host: &str) -> String {
    format!(
        "no credential was found for {host}: log in with `docker login {host}`, or give `--credential {host}=USER:@FILE`"
    )
}

pub(super) fn help_refused(host: &str) -> String {
    format!("check the credential for {host}: it is wrong or expired, or does not allow this")
}

pub(super) fn help_foreign(host: &str, realm: &str) -> String {
    format!(
        "{host} names the token server {realm}, another host, and acrtask does not send it the login for {host}; to allow this, give the same login for both: `--credential {host}=USER:@FILE --credential {realm}=USER:@FILE`"
    )
}

/// Reads the error message in a registry's response.
///
/// Source: distribution specification, "Error Codes".
pub(super) async fn read_error_message(response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<ErrorEntry>,
    }
    #[derive(serde::Deserialize)]
    struct ErrorEntry {
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
        .map(|entry| {
            if entry.message.is_empty() {
                entry.code
            } else {
                entry.message
            }
        })
        .collect();
    // Control characters of a server must not reach a terminal.
    texts
        .join("; ")
        .chars()
        .filter(|c| !c.is_control())
        .take(500)
        .collect()
}
