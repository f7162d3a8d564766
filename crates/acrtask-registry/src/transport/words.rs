//! Names of hosts, and what to advise about them.

use url::Url;

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
        "{host} sends to the token server {realm}, another host, which is not given the password of {host}; if it may have it, give it with `--credential {realm}=USER:@FILE`"
    )
}
