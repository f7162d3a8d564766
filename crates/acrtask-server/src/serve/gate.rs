//! Limits of connections, requests and memory that all listeners of a server share.

use std::sync::{Arc, atomic::AtomicU64};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;

use super::{admission::Admission, request_guard::MemoryBudget};

/// Limit of open files that the server requests from the system.
const FILES: u64 = 65_536;
/// Most connections, regardless of the limit of open files.
const CONNECTIONS: usize = 20_000;
/// Most anonymous connections of all addresses together.
const ANONYMOUS_CONNECTIONS: usize = 1024;
/// Most anonymous requests of all addresses together.
const ANONYMOUS_REQUESTS: usize = 2048;
/// Divisor for the anonymous limits of one address.
const ADDRESS_SHARE: usize = 2;

/// Limits that all listeners share.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// Permits for connections, well below the limit of open files.
    pub(super) all: Arc<Semaphore>,
    /// Number of accepted connections.
    pub(super) accepted: Arc<AtomicU64>,
    /// Permits for connections with a valid credential.
    pub(super) established: Arc<Semaphore>,
    pub(super) connections: Arc<Admission>,
    pub(super) requests: Arc<Admission>,
    pub(super) bodies: Arc<MemoryBudget>,
}

impl Gate {
    /// Creates limits that leave a quarter of the open files to the database, blobs and outgoing
    /// requests.
    pub(super) fn new(files: usize) -> Self {
        let all = (files / 4 * 3).clamp(64, CONNECTIONS);
        let anonymous = (all / 4).min(ANONYMOUS_CONNECTIONS);
        // Recently evicted connections are still open.
        let closing = anonymous / 2;
        Self {
            all: Arc::new(Semaphore::new(all)),
            accepted: Arc::default(),
            established: Arc::new(Semaphore::new(all - anonymous - closing)),
            connections: Admission::new(anonymous, anonymous / ADDRESS_SHARE),
            requests: Admission::new(ANONYMOUS_REQUESTS, ANONYMOUS_REQUESTS / ADDRESS_SHARE),
            bodies: Arc::default(),
        }
    }
}

/// Raises the limit of open files of this process. Returns the new limit.
pub(super) fn raise_file_limit() -> usize {
    let wanted = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let raised = soft.max(hard.min(FILES));
        if raised > soft {
            setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
        }
        Ok::<_, nix::Error>(raised)
    };
    let files = wanted().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of open files");
        getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
    });
    usize::try_from(files).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn established_connections_have_a_reserve_below_the_limit_of_files() {
        for files in [256, 1024, 20_000, 1 << 20] {
            let gate = Gate::new(files);
            let all = gate.all.available_permits();
            assert!(all <= files / 4 * 3 && all <= CONNECTIONS, "{files}: {all}");
            assert!(
                gate.established.available_permits() * 2 >= all,
                "{files}: {all}"
            );
        }
    }
}
