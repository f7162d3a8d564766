//! Queue of requested files that are not read yet. Unbounded, because each takes four bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
pub(super) struct RequestQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ids: VecDeque<u32>,
    closed: bool,
}

impl RequestQueue {
    pub(super) fn push(&self, id: u32) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ids
            .push_back(id);
        self.changed.notify_one();
    }

    /// Closes the queue. Readers end, even if requests remain.
    pub(super) fn close(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.changed.notify_all();
    }

    /// Waits for a request. `None` if the queue is closed.
    pub(super) fn pop(&self) -> Option<u32> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.closed {
                return None;
            }
            if let Some(id) = state.ids.pop_front() {
                return Some(id);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
