//! Messages between control plane and runners, defined in `proto/acrtask/runner/v1/runner.proto`.
//!
//! `cargo xtask codegen` generates everything in `generated`. The implementations of `Debug` in
//! this file omit secrets.

use std::fmt;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
#[rustfmt::skip]
#[path = "generated/acrtask.runner.v1.rs"]
pub mod runner;

/// Maximum size of a message in both directions, in bytes.
///
/// The limit allows a lease with a long task file and its secrets.
pub const MAX_MESSAGE: usize = 8 * 1024 * 1024;

/// Maximum size of the data of one [`runner::LogChunk`], in bytes.
pub const MAX_CHUNK: usize = 256 * 1024;

impl fmt::Debug for runner::Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("of", &self.of)
            .field("spec_json", &self.spec_json)
            .field("secrets", &self.secrets.keys())
            .field("credentials", &self.credentials)
            .field("traceparent", &self.traceparent)
            .field("context_size", &self.context_size)
            .field("context_digest", &self.context_digest)
            .field("trust_domain", &self.trust_domain)
            .field("vault_task", &self.vault_task)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for runner::Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("host", &self.host)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for runner::RegisterRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterRequest")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for runner::RegisterResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterResponse")
            .field("runner_id", &self.runner_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::runner::{Credential, Lease, ToRunner, to_runner::Message};

    #[test]
    fn debug_output_of_a_lease_omits_secrets() {
        let lease = Lease {
            secrets: [("name".to_owned(), "hush".to_owned())].into(),
            credentials: vec![Credential {
                host: "reg.example.com".into(),
                username: "ci".into(),
                password: "hush".into(),
            }],
            cache_namespace: "hush".into(),
            cache_seal_key: "hush".into(),
            ..Lease::default()
        };
        let message = ToRunner {
            message: Some(Message::Lease(lease)),
        };
        let shown = format!("{message:?}");
        assert!(shown.contains("name") && shown.contains("reg.example.com"));
        assert!(!shown.contains("hush"), "{shown}");
    }
}
