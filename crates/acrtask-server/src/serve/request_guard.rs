//! Limits of one request: the size and the pace of its body, and the memory that the body takes.
//!
//! The listener puts a [`RequestGuard`] into the extensions of each request and wraps the body. A request
//! begins as an anonymous one: it holds a slot that can be taken away, and its body may have 32 KiB. Whoever
//! checks its credential raises that. Invariants: every body has a least pace; bytes that wait in memory are
//! counted in one budget until the response is made; a body that breaks a limit ends with an error that names it.

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
/// Bytes of each body that the memory budget does not count: the number of requests bounds them.
const UNCOUNTED: u64 = ANONYMOUS_BODY;
/// How long a body may take before its pace counts.
const GRACE: Duration = Duration::from_secs(10);
/// Least pace of a body after that, in bytes per second on average.
const LEAST_RATE: u32 = 16 << 10;
/// Bytes of all bodies that may be in memory at once.
const BUDGET: u64 = 96 << 20;
/// Of these, for requests without a valid credential: large deliveries whose signature is not checked yet.
const ANONYMOUS_BUDGET: u64 = 48 << 20;
/// Of these, for one address.
const ADDRESS_BUDGET: u64 = 32 << 20;

/// Why a body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyRefusal {
    /// Larger than this number of bytes.
    TooLarge(u64),
    /// Slower than the least pace.
    TooSlow,
    /// The budget of memory is used up.
    NoMemory,
}

impl BodyRefusal {
    /// Returns the refusal as an answer of the API.
    pub(crate) fn to_problem(self) -> ApiError {
        match self {
            Self::TooLarge(limit) => ApiError::too_large(format!(
                "the body is larger than {} KiB, the limit of a request without a valid credential",
                limit >> 10
            )),
            Self::TooSlow => ApiError::of(
                StatusCode::REQUEST_TIMEOUT,
                "too-slow",
                format!(
                    "the body came slower than {} KiB per second after its first {} s",
                    LEAST_RATE >> 10,
                    GRACE.as_secs()
                ),
            ),
            Self::NoMemory => ApiError::unavailable(format!(
                "the bodies that are being read take more than their {} MiB of memory; send it again",
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

/// The error of a refused body. Its source is the gRPC status, which tonic looks for.
#[derive(Debug, thiserror::Error)]
#[error("{status}")]
struct RefusedBody {
    #[source]
    status: Box<tonic::Status>,
}

/// Memory for all bodies that are being read.
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u64,
    anonymous: u64,
    by_address: HashMap<IpAddr, u64>,
}

impl MemoryBudget {
    /// Takes `bytes`. `anonymous`: the address of a request without a valid credential.
    fn take(&self, anonymous: Option<IpAddr>, bytes: u64) -> Result<(), BodyRefusal> {
        let mut taken = self.taken.lock().expect("never poisoned");
        let Taken {
            all,
            anonymous: of_anonymous,
            by_address,
        } = &mut *taken;
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

    fn give_back(&self, address: IpAddr, charge: Charge) {
        let mut taken = self.taken.lock().expect("never poisoned");
        taken.all -= charge.all;
        taken.anonymous -= charge.anonymous;
        if let Some(of_address) = taken.by_address.get_mut(&address) {
            *of_address -= charge.anonymous;
            if *of_address == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Charge {
    all: u64,
    anonymous: u64,
}

/// How the bytes of a body are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Collected in memory.
    Buffered,
    /// Passed on as they come, at the least pace.
    Streamed,
    /// Messages of a session, with pauses of any length between them.
    Session,
}

/// The limits of one request, shared by the listener, the body and whoever checks credentials.
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
    of: Use,
    charge: Charge,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let charge = self.state.get_mut().expect("never poisoned").charge;
        if charge.all > 0 {
            self.budget.give_back(self.address, charge);
        }
    }
}

impl RequestGuard {
    /// Makes the guard of a new request. `slot`: `None` if its credential was valid a moment ago.
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
                of: Use::Buffered,
                charge: Charge::default(),
            }),
            refusal: OnceLock::new(),
        }))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock().expect("never poisoned"));
    }

    /// Shows when the request's slot is taken away. `None`: it has none.
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

    /// Counts bytes of the body that have come.
    fn receive(&self, received: u64, bytes: u64) -> Result<(), BodyRefusal> {
        let mut state = self.0.state.lock().expect("never poisoned");
        if received > state.limit {
            return Err(BodyRefusal::TooLarge(state.limit));
        }
        let counted = bytes.min(received.saturating_sub(UNCOUNTED));
        if state.of != Use::Buffered || counted == 0 {
            return Ok(());
        }
        let anonymous = (!state.authenticated).then_some(self.0.address);
        self.0.budget.take(anonymous, counted)?;
        state.charge.all += counted;
        if anonymous.is_some() {
            state.charge.anonymous += counted;
        }
        Ok(())
    }

    fn is_paced(&self) -> bool {
        self.0.state.lock().expect("never poisoned").of != Use::Session
    }
}

/// What handlers do with the guard of their request. A request of a test without a listener has none.
pub(crate) trait Guarded {
    /// Returns the guard.
    fn guard(&self) -> Option<&RequestGuard>;

    /// The request has shown a valid credential: neither it nor its connection can be evicted any more.
    fn proved(&self) {
        if let Some(guard) = self.guard() {
            guard.0.connection.establish();
            guard.change(|state| state.slot = None);
        }
    }

    /// The request has shown a valid token or key, too: its body may be as large as its handler allows.
    fn authenticated(&self) {
        self.proved();
        if let Some(guard) = self.guard() {
            guard.change(|state| {
                state.authenticated = true;
                state.limit = u64::MAX;
            });
        }
    }

    /// Lets the body have up to `bytes`, of which the memory budget counts all but the first.
    fn allow_body(&self, bytes: usize) {
        if let Some(guard) = self.guard() {
            guard.change(|state| state.limit = bytes as u64);
        }
    }

    /// The body is passed on as it comes, and takes no memory.
    fn streams_body(&self) {
        if let Some(guard) = self.guard() {
            guard.change(|state| state.of = Use::Streamed);
        }
    }

    /// The body is a session, whose messages may pause.
    fn begins_session(&self) {
        if let Some(guard) = self.guard() {
            guard.change(|state| state.of = Use::Session);
        }
    }

    /// Returns why the body ended with an error, if a limit was the reason.
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

/// Returns what an evicted request is answered with.
pub(super) fn evicted(why: Eviction) -> ApiError {
    match why {
        Eviction::PerAddress(limit) => ApiError::too_many(
            format!(
                "more than {limit} requests without a valid credential are under way for this address"
            ),
            1,
        ),
        Eviction::Total(limit) => ApiError::unavailable(format!(
            "more than {limit} requests without a valid credential are under way"
        )),
    }
}

/// The body of a request, which keeps to its limits.
pub(super) struct GuardedBody {
    inner: Incoming,
    guard: RequestGuard,
    received: u64,
    /// When the next bytes have to be there; set by the first poll.
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

    /// Returns whether the body is later than the least pace allows.
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
                match self.guard.receive(self.received, bytes) {
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
    fn memory_is_shared_between_addresses_and_given_back() {
        let budget = MemoryBudget::default();
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        budget.take(Some(one), ADDRESS_BUDGET).unwrap();
        assert_eq!(budget.take(Some(one), 1), Err(BodyRefusal::NoMemory));
        budget
            .take(Some(two), ANONYMOUS_BUDGET - ADDRESS_BUDGET)
            .unwrap();
        assert_eq!(budget.take(Some(two), 1), Err(BodyRefusal::NoMemory));
        budget.take(None, BUDGET - ANONYMOUS_BUDGET).unwrap();
        assert_eq!(budget.take(None, 1), Err(BodyRefusal::NoMemory));
        let charge = Charge {
            all: ADDRESS_BUDGET,
            anonymous: ADDRESS_BUDGET,
        };
        budget.give_back(one, charge);
        budget.take(Some(two), 1).unwrap();
        assert_eq!(budget.taken.lock().unwrap().by_address.len(), 1);
    }
}
