//! Download of a context by URL.

use std::{io, path::Path};

use acrtask_registry::{AddressPolicy, net};
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::header;
use tokio_util::io::StreamReader;
use url::Url;

use crate::{
    Options, Origin, Progress, archive,
    error::{PRIVATE_ADDRESS_HELP, SourceError},
    spec::redact_url,
};

/// Downloads `url`, and unpacks it into `target` as it arrives.
pub(crate) async fn download(
    url: &Url,
    target: &Path,
    options: &Options,
) -> Result<(), SourceError> {
    let shown = redact_url(url);
    check_policy(url, options, &shown)?;
    let failed = |error: reqwest::Error| SourceError::Download {
        url: shown.clone(),
        source: Box::new(error.without_url()),
    };
    let client = net::client(options.address_policy(), true).map_err(failed)?;
    // The client sends the user and password of the URL as a header. A redirect to another host
    // drops it.
    let response = client.get(url.clone()).send().await.map_err(failed)?;
    let status = response.status();
    let unexpected = |reason: String| SourceError::UnexpectedResponse {
        url: shown.clone(),
        reason,
    };
    if !status.is_success() {
        return Err(unexpected(format!("the server responded with {status}")));
    }
    let content_type = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|text| text.starts_with("text/html")) {
        return Err(unexpected("it is a web page, neither an archive nor a Dockerfile; the URL of a git repository ends with `.git`".into()));
    }
    let total = response.content_length();
    if let Some(total) = total.filter(|total| *total > options.limits.download_bytes) {
        tracing::debug!(total, "refusing a download by its announced size");
        return Err(SourceError::TooLarge {
            context: shown,
            limit: options.limits.download_bytes,
            unit: "bytes to download",
        });
    }
    let mut bytes = 0;
    let stream = response
        .bytes_stream()
        .map_err(|error| io::Error::other(error.without_url()))
        .inspect_ok(move |chunk| {
            bytes += chunk.len() as u64;
            options.report(Progress::Received { bytes, total });
        });
    archive::unpack(
        StreamReader::new(stream.boxed()),
        target,
        &shown,
        &options.limits,
    )
    .await?;
    Ok(())
}

/// Checks that the policy of the origin permits `url`.
pub(crate) fn check_policy(url: &Url, options: &Options, shown: &str) -> Result<(), SourceError> {
    let refuse = |reason: String, help: &str| {
        Err(SourceError::Refused {
            context: shown.into(),
            reason,
            help: help.into(),
        })
    };
    let here = url.host_str().is_some_and(net::is_loopback);
    if url.scheme() == "http" && options.origin == Origin::TaskFile && !here {
        return refuse(
            "http:// has neither encryption nor server authentication".into(),
            "write https://",
        );
    }
    // A token without a password is in the place of the user name.
    let has_secret = !url.username().is_empty() || url.password().is_some();
    if url.scheme() == "http" && !here && has_secret {
        return refuse(
            "its password would be sent without encryption".into(),
            "write https://",
        );
    }
    // The client checks names when it resolves them.
    match net::check_literal(options.address_policy(), url) {
        Err(error) => refuse(error.to_string(), PRIVATE_ADDRESS_HELP),
        Ok(()) if here && options.address_policy() == AddressPolicy::PublicOnly => {
            refuse("it is on this machine".into(), PRIVATE_ADDRESS_HELP)
        }
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_policy_refuses_secrets_without_tls() {
        for (url, allowed) in [
            ("http://example.com/c.tar", true),
            ("http://user:hunter2@example.com/c.tar", false),
            ("http://hunter2@example.com/c.tar", false),
            ("https://hunter2@example.com/c.tar", true),
            ("http://hunter2@127.0.0.1/c.tar", true),
        ] {
            let parsed = Url::parse(url).unwrap();
            let checked = check_policy(&parsed, &Options::default(), "the context");
            assert_eq!(checked.is_ok(), allowed, "{url}");
        }
    }
}
