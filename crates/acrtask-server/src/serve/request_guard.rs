//! Limits of one request: size, pace and memory of its body.
//!
//! The listener adds a [`RequestGuard`] to the extensions of each request and wraps the body. A new
//! request is anonymous: its slot can be evicted, and its body may have 32 KiB. The check of its
//! credential raises these limits.
//!
//! Invariants:
//! * Every body has a minimum pace.
//! * Buffered bytes are counted in one budget until the response is complete.
//! * A body that exceeds a limit ends with an error that names the limit.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Bytes, HttpBody},
    http::StatusCode,
};
use http::Extensions;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::{
    admission::{Evicted, Eviction, Slot},
    connection::ConnectionState,
};
use crate::api::ApiError;

/// Largest body of a request without a valid credential, in bytes.
pub(crate) const ANONYMOUS_BODY: u64 = 32 << 10;
/// Bytes per body that the memory budget does not count. The number of requests bounds them.
const UNCOUNTED: u64 = ANONYMOUS_BODY;
/// Time before the pace of a body counts.
const GRACE: Duration = Duration::from_secs(10);
/// Minimum average pace of a body after that time, in bytes per second.
const LEAST_RATE: u32 = 16 << 10;
/// Most buffered bytes of all bodies.
const BUDGET: u64 = 96 << 20;
/// Part of [`BUDGET`] for requests without a valid credential: large deliveries before their
/// signature check.
const ANONYMOUS_BUDGET: u64 = 48 << 20;
/// Part of [`ANONYMOUS_BUDGET`] for one address.
const ADDRESS_BUDGET: u64 = 32 << 20;

/// Reasons to refuse a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyRefusal {
    /// The body is larger than this number of bytes.
    TooLarge(u64),
    /// The body is slower than the minimum pace.
    TooSlow,
    /// The memory budget is exhausted.
    NoMemory,
}

impl BodyRefusal {
    /// Returns the refusal as a response of the API.
    pub(crate) fn to_problem(self) -> ApiError {
        match self {
            Self::TooLarge(limit) => ApiError::too_large(format!(
                "the body is larger than {} KiB, the limit of a request without a valid credential",
                limit >> 10
            )),
            Self::TooSlow => ApiError::with_code(
                StatusCode::REQUEST_TIMEOUT,
                "too-slow",
                format!(
                    "the body arrived slower than {} KiB per second after its first {} s",
                    LEAST_RATE >> 10,
                    GRACE.as_secs()
                ),
            ),
            Self::NoMemory => ApiError::unavailable(format!(
                "the bodies of all requests exceed {} MiB of memory; send the request again",
                BUDGET >> 20
            )),
        }
    }

    fn to_status(self) -> tonic::Status {
        let message = self.to_problem().problem().message.clone();
        match self {
            Self::TooLarge(_) => tonic::Status::out_of_range(message),
            Self::TooSlow => tonic::Status::deadline_exceeded(message),
            Self::NoMemory => tonic::Status::unavailable(message),
        }
    }
}

/// Error of a refused body. Its source is the gRPC status, which tonic extracts.
#[derive(Debug, thiserror::Error)]
#[error("{status}")]
struct RefusedBody {
    #[source]
    status: Box<tonic::Status>,
}

/// Memory budget of all buffered bodies.
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget {
    used: Mutex<UsedMemory>,
}

#[derive(Debug, Default)]
struct UsedMemory {
    all: u64,
    anonymous: u64,
    by_address: HashMap<IpAddr, u64>,
}

impl MemoryBudget {
    /// Reserves `bytes`. `anonymous` is the address of a request without a valid credential.
    fn reserve(&self, anonymous: Option<IpAddr>, bytes: u64) -> Result<(), BodyRefusal> {
        let mut used = self.used.lock().expect("never poisoned");
        let UsedMemory {
            all,
            anonymous: of_anonymous,
            by_address,
        } = &mut *used;
        if *all + bytes > BUDGET {
            return Err(BodyRefusal::NoMemory);
        }
        if let Some(address) = anonymous {
            let of_address = by_address.get(&address).copied().unwrap_or(0);
            if *of_anonymous + bytes > ANONYMOUS_BUDGET || of_address + bytes > ADDRESS_BUDGET {
                return Err(BodyRefusal::NoMemory);
            }
            *of_anonymous += bytes;
            by_address.insert(address, of_address + bytes);
        }
        *all += bytes;
        Ok(())
    }

    fn release(&self, address: IpAddr, charge: Charge) {
        let mut used = self.used.lock().expect("never poisoned");
        used.all -= charge.all;
        used.anonymous -= charge.anonymous;
        if let Some(of_address) = used.by_address.get_mut(&address) {
            *of_address -= charge.anonymous;
            if *of_address == 0 {
                used.by_address.remove(&address);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Charge {
    all: u64,
    anonymous: u64,
}

/// Use of the bytes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyUse {
    /// Buffered in memory.
    Buffered,
    /// Forwarded on arrival, at the minimum pace.
    Streamed,
    /// Messages of a session, with pauses of any length.
    Session,
}

/// Limits of one request, shared by the listener, the body and the check of the credential.
#[derive(Debug, Clone)]
pub(crate) struct RequestGuard(Arc<Guard>);

#[derive(Debug)]
struct Guard {
    address: IpAddr,
    connection: Arc<ConnectionState>,
    budget: Arc<MemoryBudget>,
    state: Mutex<State>,
    refusal: OnceLock<BodyRefusal>,
}

#[derive(Debug)]
struct State {
    slot: Option<Slot>,
    limit: u64,
    authenticated: bool,
    body_use: BodyUse,
    charge: Charge,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let charge = self.state.get_mut().expect("never poisoned").charge;
        if charge.all > 0 {
            self.budget.release(self.address, charge);
        }
    }
}

impl RequestGuard {
    /// Creates the guard of a new request. `slot` is `None` for a recently valid credential.
    pub(super) fn new(
        address: IpAddr,
        slot: Option<Slot>,
        connection: Arc<ConnectionState>,
        budget: Arc<MemoryBudget>,
    ) -> Self {
        Self(Arc::new(Guard {
            address,
            connection,
            budget,
            state: Mutex::new(State {
                slot,
                limit: ANONYMOUS_BODY,
                authenticated: false,
                body_use: BodyUse::Buffered,
                charge: Charge::default(),
            }),
            refusal: OnceLock::new(),
        }))
    }

    fn update(&self, update: impl FnOnce(&mut State)) {
        update(&mut self.0.state.lock().expect("never poisoned"));
    }

    /// Returns the eviction signal of the request's slot. `None` if it has no slot.
    pub(super) fn evicted(&self) -> Option<Evicted> {
        let state = self.0.state.lock().expect("never poisoned");
        state.slot.as_ref().map(Slot::evicted)
    }

    fn refuse(&self, refusal: BodyRefusal) -> axum::Error {
        let _ = self.0.refusal.set(refusal);
        axum::Error::new(RefusedBody {
            status: Box::new(refusal.to_status()),
        })
    }

    /// Counts received bytes of the body.
    fn count_received(&self, received: u64, bytes: u64) -> Result<(), BodyRefusal> {
        let mut state = self.0.state.lock().expect("never poisoned");
        if received > state.limit {
            return Err(BodyRefusal::TooLarge(state.limit));
        }
        let counted = bytes.min(received.saturating_sub(UNCOUNTED));
        if state.body_use != BodyUse::Buffered || counted == 0 {
            return Ok(());
        }
        let anonymous = (!state.authenticated).then_some(self.0.address);
        self.0.budget.reserve(anonymous, counted)?;
        state.charge.all += counted;
        if anonymous.is_some() {
            state.charge.anonymous += counted;
        }
        Ok(())
    }

    fn is_paced(&self) -> bool {
        self.0.state.lock().expect("never poisoned").body_use != BodyUse::Session
    }
}

/// Operations of handlers on the guard of their request. Requests in tests without a listener have
/// no guard.
pub(crate) trait Guarded {
    /// Returns the guard. `None` in tests without a listener.
    fn guard(&self) -> Option<&RequestGuard>;

    /// Marks the request as proven by a valid credential. It and its connection can no longer be
    /// evicted.
    fn mark_proven(&self) {
        if let Some(guard) = self.guard() {
            guard.0.connection.establish();
            guard.update(|state| state.slot = None);
        }
    }

    /// Marks the request as authenticated by a token or key. Only the handler limits its body from
    /// now on.
    fn mark_authenticated(&self) {
        self.mark_proven();
        if let Some(guard) = self.guard() {
            guard.update(|state| {
                state.authenticated = true;
                state.limit = u64::MAX;
            });
        }
    }

    /// Allows a body of up to `bytes`. The memory budget counts all but the first [`UNCOUNTED`]
    /// bytes.
    fn allow_body(&self, bytes: usize) {
        if let Some(guard) = self.guard() {
            guard.update(|state| state.limit = bytes as u64);
        }
    }

    /// Marks the body as forwarded on arrival, so that it uses no memory budget.
    fn mark_streaming(&self) {
        if let Some(guard) = self.guard() {
            guard.update(|state| state.body_use = BodyUse::Streamed);
        }
    }

    /// Marks the body as a session, whose messages may pause.
    fn mark_session(&self) {
        if let Some(guard) = self.guard() {
            guard.update(|state| state.body_use = BodyUse::Session);
        }
    }

    /// Returns the refusal of the body. `None` if no limit was exceeded.
    fn refusal(&self) -> Option<BodyRefusal> {
        self.guard()?.0.refusal.get().copied()
    }
}

impl Guarded for Extensions {
    fn guard(&self) -> Option<&RequestGuard> {
        self.get()
    }
}

impl Guarded for Option<RequestGuard> {
    fn guard(&self) -> Option<&RequestGuard> {
        self.as_ref()
    }
}

/// Returns the response to an evicted request.
pub(super) fn eviction_response(cause: Eviction) -> ApiError {
    match cause {
        Eviction::PerAddress(limit) => ApiError::too_many(
            format!(
                "more than {limit} requests without a valid credential are open for this address"
            ),
            1,
        ),
        Eviction::Total(limit) => ApiError::unavailable(format!(
            "more than {limit} requests without a valid credential are open"
        )),
    }
}

/// Body of a request, with enforced limits.
pub(super) struct GuardedBody {
    inner: Incoming,
    guard: RequestGuard,
    received: u64,
    /// Deadline of the next bytes. Set by the first poll.
    due: Option<(Instant, Pin<Box<Sleep>>)>,
    refused: bool,
}

impl GuardedBody {
    pub(super) fn new(inner: Incoming, guard: RequestGuard) -> Self {
        Self {
            inner,
            guard,
            received: 0,
            due: None,
            refused: false,
        }
    }

    fn refuse(&mut self, refusal: BodyRefusal) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.refused = true;
        Poll::Ready(Some(Err(self.guard.refuse(refusal))))
    }

    /// Returns `true` if the body is slower than the minimum pace.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        if !self.guard.is_paced() {
            return false;
        }
        let received = self.received;
        let (began, due) = self.due.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + GRACE)))
        });
        let seconds = received / u64::from(LEAST_RATE);
        let deadline = *began + GRACE + Duration::from_secs(seconds);
        if due.deadline() != deadline {
            due.as_mut().reset(deadline);
        }
        due.as_mut().poll(context).is_ready()
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.refused {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Pending if self.is_late(context) => self.refuse(BodyRefusal::TooSlow),
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.received += bytes;
                match self.guard.count_received(self.received, bytes) {
                    Ok(()) => Poll::Ready(Some(Ok(frame))),
                    Err(refusal) => self.refuse(refusal),
                }
            }
            Poll::Ready(other) => Poll::Ready(other.map(|frame| frame.map_err(axum::Error::new))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.refused || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_budget_is_limited_per_address_and_released() {
        let budget = MemoryBudget::default();
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        budget.reserve(Some(one), ADDRESS_BUDGET).unwrap();
        assert_eq!(budget.reserve(Some(one), 1), Err(BodyRefusal::NoMemory));
        budget
            .reserve(Some(two), ANONYMOUS_BUDGET - ADDRESS_BUDGET)
            .unwrap();
        assert_eq!(budget.reserve(Some(two), 1), Err(BodyRefusal::NoMemory));
        budget.reserve(None, BUDGET - ANONYMOUS_BUDGET).unwrap();
        assert_eq!(budget.reserve(None, 1), Err(BodyRefusal::NoMemory));
        let charge = Charge {
            all: ADDRESS_BUDGET,
            anonymous: ADDRESS_BUDGET,
        };
        budget.release(one, charge);
        budget.reserve(Some(two), 1).unwrap();
        assert_eq!(budget.used.lock().unwrap().by_address.len(), 1);
    }
}
