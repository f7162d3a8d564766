//! A context by URL.

use std::{io, path::Path};

use acrtask_registry::{AddressPolicy, net};
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::header;
use tokio_util::io::StreamReader;
use url::Url;

use crate::{
    Options, Origin, Progress, archive,
    error::{PRIVATE_ADDRESS_HELP, SourceError},
    spec::shown_url,
};

/// Downloads `url` and unpacks it into `target` as it comes.
pub(crate) async fn download(
    url: &Url,
    target: &Path,
    options: &Options,
) -> Result<(), SourceError> {
    let shown = shown_url(url);
    check_policy(url, options, &shown)?;
    let failed = |error: reqwest::Error| SourceError::Download {
        url: shown.clone(),
        source: Box::new(error.without_url()),
    };
    let client = net::client(options.addresses(), true).map_err(failed)?;
    // User and password of the URL become a header, which a redirect to another host does not get.
    let response = client.get(url.clone()).send().await.map_err(failed)?;
    let status = response.status();
    let answer = |reason: String| SourceError::Answer {
        url: shown.clone(),
        reason,
    };
    if !status.is_success() {
        return Err(answer(format!("the server answers {status}")));
    }
    let content_type = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|text| text.starts_with("text/html")) {
        return Err(answer("it is a web page, neither an archive nor a Dockerfile; a git repository's URL ends with `.git`".into()));
    }
    let total = response.content_length();
    if let Some(total) = total.filter(|total| *total > options.limits.download_bytes) {
        tracing::debug!(total, "refused by its announced size");
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

/// Refuses what the origin may not do.
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
            "http:// has neither encryption nor a way to know the server".into(),
            "write https://",
        );
    }
    // A token alone stands where the user does.
    let has_secret = !url.username().is_empty() || url.password().is_some();
    if url.scheme() == "http" && !here && has_secret {
        return refuse(
            "its password would go over the network in clear".into(),
            "write https://",
        );
    }
    // Names are checked by the client when it resolves them.
    match net::check_literal(options.addresses(), url) {
        Err(error) => refuse(error.to_string(), PRIVATE_ADDRESS_HELP),
        Ok(()) if here && options.addresses() == AddressPolicy::PublicOnly => {
            refuse("it is on this machine".into(), PRIVATE_ADDRESS_HELP)
        }
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_password_nor_a_token_goes_in_clear() {
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
