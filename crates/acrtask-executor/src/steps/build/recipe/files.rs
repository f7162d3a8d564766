//! Git repositories and files that the builder of a runner may fetch for a build.
//!
//! BuildKit identifies a repository by its commit and a file by its checksum, regardless of their
//! URL. So a build could read or determine files of builds of another domain. This process
//! therefore fetches contexts and named contexts from git itself. It downloads a file of `ADD
//! --checksum` to compare its digest, and then allows BuildKit to use it.

use std::time::Duration;

use acrtask_buildkit::{SourceFiles, VerifiedFile};
use acrtask_registry::net::{self, AddressPolicy};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::Recipe;
use crate::{
    Reach,
    context::{RunContext, StepContext},
    error::error_chain,
    output::lock,
};

/// Maximum duration of the download of one file.
const DOWNLOAD_TIME: Duration = Duration::from_secs(30 * 60);
/// Maximum size of a file, in bytes.
const MAX_FILE: u64 = 16 << 30;

impl Recipe {
    /// Returns the repositories and files that the builder may fetch. On a runner these are no
    /// repositories, and only those files with a checksum that this run has downloaded.
    pub(super) fn allowed_files(&self, ctx: &StepContext) -> SourceFiles {
        if ctx.run.options.own_machine {
            return SourceFiles::Any;
        }
        SourceFiles::Verified(lock(&self.verified).clone())
    }

    /// Downloads a file of `ADD --checksum`, and allows the build to use it by its digest. Returns
    /// `false` if `url` is not the URL of a file or its address is not allowed.
    ///
    /// # Errors
    /// A sentence for the user if the file cannot be downloaded or its digest differs from the one
    /// in the Dockerfile.
    pub(crate) async fn allow_file(&self, run: &RunContext, url: &str) -> Result<bool, String> {
        let Ok(parsed) = Url::parse(url) else {
            return Ok(false);
        };
        if let Some(file) = lock(&self.verified).iter().find(|file| file.url == url) {
            return Err(format!(
                "ADD --checksum: {} has the digest {}, and the Dockerfile names another one",
                without_secrets(&parsed),
                file.digest
            ));
        }
        let policy = match run.reach {
            Reach::Public => AddressPolicy::PublicOnly,
            Reach::Everything => AddressPolicy::NoMetadata,
        };
        // The builder's own policy reports the reason with its help.
        if net::check_literal(policy, &parsed).is_err() {
            return Ok(false);
        }
        let downloaded = tokio::time::timeout(DOWNLOAD_TIME, digest_of(policy, &parsed)).await;
        let digest = downloaded
            .unwrap_or_else(|_| Err(format!("it took more than {} s", DOWNLOAD_TIME.as_secs())))
            .map_err(|why| {
                format!(
                    "ADD --checksum: cannot download {}: {why}",
                    without_secrets(&parsed)
                )
            })?;
        lock(&self.verified).push(VerifiedFile {
            url: url.to_owned(),
            digest,
        });
        Ok(true)
    }
}

/// Returns the digest of the file at a URL: `sha256:…`.
async fn digest_of(policy: AddressPolicy, url: &Url) -> Result<String, String> {
    let client = net::client(policy, true).map_err(|error| error_chain(&error))?;
    let response = client.get(url.clone()).send().await;
    let response = response.and_then(|response| response.error_for_status());
    let mut response = response.map_err(|error| error_chain(&error.without_url()))?;
    let mut hash = Sha256::new();
    let mut size = 0_u64;
    while let Some(bytes) = response
        .chunk()
        .await
        .map_err(|error| error_chain(&error.without_url()))?
    {
        size = size.saturating_add(bytes.len() as u64);
        if size > MAX_FILE {
            return Err(format!("it has more than {} GiB", MAX_FILE >> 30));
        }
        hash.update(&bytes);
    }
    Ok(format!("sha256:{:x}", hash.finalize()))
}

/// Returns the URL without its user, password and query, which may be secrets.
fn without_secrets(url: &Url) -> String {
    let mut shown = url.clone();
    // A URL without a host has neither user nor password.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.into()
}
