//! Send window of one log: sent, acknowledged and sendable bytes. Pure: the caller passes the time.
//!
//! Bytes are sent in order. A limit bounds the unacknowledged bytes. It grows with fast
//! acknowledgements and shrinks with slow ones, so that on a slow connection heartbeats and
//! keep-alives do not wait behind minutes of log. After a gap, the window sends again from the last
//! acknowledged byte: the offset shows what the control plane has stored.

use std::{collections::VecDeque, time::Duration};

use acrtask_proto::MAX_CHUNK;

/// Initial, minimum and maximum limit of unacknowledged bytes.
const INITIAL_LIMIT: u64 = 512 << 10;
const MIN_LIMIT: u64 = 32 << 10;
const MAX_LIMIT: u64 = 4 << 20;
/// Maximum number of unacknowledged chunks.
const MAX_CHUNKS_IN_FLIGHT: usize = 512;
/// Bounds of fast and slow acknowledgements.
const FAST_ACK: Duration = Duration::from_millis(500);
const SLOW_ACK: Duration = Duration::from_secs(2);
/// Time without any acknowledgement after which sent bytes are sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(15);
/// Step in which acknowledged bytes are released, in bytes.
const RELEASE_STEP: u64 = 16 << 20;
/// Minimum time between two repetitions.
const MIN_RESEND_INTERVAL: Duration = Duration::from_secs(1);

/// Next step of the sender.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send these bytes.
    Chunk {
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        length: usize,
    },
    /// Send the final message: all of the log is sent.
    Finish,
    /// Wait until the log or the window changes.
    Wait,
    /// Stop: the stream has been replaced.
    Stale,
}

/// An offset of the control plane is outside the local log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane has {stored} bytes of the log, and the runner has bytes {from} to {to}")]
pub(crate) struct OffsetMismatch {
    stored: u64,
    from: u64,
    to: u64,
}

/// State of the window of one log.
#[derive(Debug)]
pub(crate) struct LogWindow {
    length: u64,
    sent: u64,
    acked: u64,
    /// Offset of the first byte that is kept. All bytes before it are acknowledged and released.
    from: u64,
    limit: u64,
    ended: bool,
    is_finish_sent: bool,
    /// Number of the current stream. It is odd while a stream is open.
    stream: u64,
    /// End offset and send time of each chunk in flight.
    in_flight: VecDeque<(u64, Duration)>,
    repeated: Option<Duration>,
}

impl Default for LogWindow {
    fn default() -> Self {
        Self {
            length: 0,
            sent: 0,
            acked: 0,
            from: 0,
            limit: INITIAL_LIMIT,
            ended: false,
            is_finish_sent: false,
            stream: 0,
            in_flight: VecDeque::new(),
            repeated: None,
        }
    }
}

impl LogWindow {
    /// Returns the length of the log in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Extends the log by `bytes`.
    pub(crate) fn append(&mut self, bytes: u64) {
        self.length += bytes;
    }

    /// Marks the log as complete.
    pub(crate) fn close(&mut self) {
        self.ended = true;
    }

    /// Starts a stream on which the control plane has stored `offset` bytes. Returns its number.
    pub(crate) fn connect(&mut self, offset: u64) -> Result<u64, OffsetMismatch> {
        self.check_offset(offset)?;
        self.disconnect();
        self.acked = offset;
        self.sent = offset;
        self.stream += 1;
        Ok(self.stream)
    }

    /// Ends the current stream.
    pub(crate) fn disconnect(&mut self) {
        if self.stream % 2 == 1 {
            self.stream += 1;
        }
        if !self.in_flight.is_empty() {
            self.limit = (self.limit / 2).max(MIN_LIMIT);
        }
        self.rewind();
        self.repeated = None;
    }

    /// Returns the next step on `stream`.
    pub(crate) fn next(&self, stream: u64) -> Next {
        if self.stream != stream {
            return Next::Stale;
        }
        if self.sent == self.length {
            return if self.ended && !self.is_finish_sent {
                Next::Finish
            } else {
                Next::Wait
            };
        }
        let available = self.limit.saturating_sub(self.sent - self.acked);
        if available == 0 || self.in_flight.len() >= MAX_CHUNKS_IN_FLIGHT {
            return Next::Wait;
        }
        let most = (MAX_CHUNK as u64).min(self.limit / 2).min(available);
        let length = most.min(self.length - self.sent);
        Next::Chunk {
            offset: self.sent,
            length: usize::try_from(length).unwrap_or(MAX_CHUNK),
        }
    }

    /// Records that the bytes returned by [`Self::next`] were sent.
    pub(crate) fn mark_sent(&mut self, stream: u64, offset: u64, length: usize, now: Duration) {
        if self.stream == stream && self.sent == offset {
            self.sent += length as u64;
            self.in_flight.push_back((self.sent, now));
        }
    }

    /// Records that the final message was sent.
    pub(crate) fn mark_finish_sent(&mut self, stream: u64) {
        if self.stream == stream {
            self.is_finish_sent = true;
        }
    }

    /// Records that the control plane has stored everything before `offset`.
    pub(crate) fn acknowledge(&mut self, offset: u64, now: Duration) -> Result<(), OffsetMismatch> {
        // Acknowledgements may arrive out of order.
        self.check_offset(offset.max(self.from))?;
        if offset <= self.acked {
            // The control plane received a chunk that does not follow its stored bytes.
            if self.sent > self.acked {
                self.resend(now);
            }
            return Ok(());
        }
        self.acked = offset;
        // After a repetition, the acknowledgement may belong to the first copy.
        self.sent = self.sent.max(offset);
        let mut newest = None;
        while let Some((end, at)) = self.in_flight.front().copied() {
            if end > offset {
                break;
            }
            newest = Some(at);
            self.in_flight.pop_front();
        }
        match newest.map(|at| now.saturating_sub(at)) {
            Some(took) if took <= FAST_ACK => self.limit = (self.limit * 2).min(MAX_LIMIT),
            Some(took) if took >= SLOW_ACK => self.limit = (self.limit / 2).max(MIN_LIMIT),
            _ => {}
        }
        Ok(())
    }

    /// Returns offset and length of bytes to release. `None` until a full step has accumulated.
    pub(crate) fn take_releasable(&mut self) -> Option<(u64, u64)> {
        let length = (self.acked - self.from) / RELEASE_STEP * RELEASE_STEP;
        let from = self.from;
        self.from += length;
        (length > 0).then_some((from, length))
    }

    /// Sends unacknowledged bytes again after the timeout. Returns `true` if there are any.
    pub(crate) fn resend_lost(&mut self, now: Duration) -> bool {
        let lost = |(_, at): &(u64, Duration)| now.saturating_sub(*at) >= ACK_TIMEOUT;
        let is_lost = self.in_flight.back().is_some_and(lost);
        is_lost && self.resend(now)
    }

    /// Records that the control plane has the final message and `offset` bytes. Returns `true` if
    /// the log is complete there. Otherwise the rest is sent again, and then the final message.
    pub(crate) fn acknowledge_finish(&mut self, offset: u64) -> Result<bool, OffsetMismatch> {
        self.check_offset(offset)?;
        if self.ended && offset == self.length {
            return Ok(true);
        }
        self.acked = offset;
        self.rewind();
        Ok(false)
    }

    fn resend(&mut self, now: Duration) -> bool {
        let due = self
            .repeated
            .is_none_or(|at| now.saturating_sub(at) >= MIN_RESEND_INTERVAL);
        if due {
            self.repeated = Some(now);
            self.rewind();
        }
        due
    }

    fn rewind(&mut self) {
        self.sent = self.acked;
        self.is_finish_sent = false;
        self.in_flight.clear();
    }

    fn check_offset(&self, offset: u64) -> Result<(), OffsetMismatch> {
        if offset < self.from || offset > self.length {
            return Err(OffsetMismatch {
                stored: offset,
                from: self.from,
                to: self.length,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn bytes_in_flight_are_bounded() {
        let mut window = LogWindow::default();
        window.append(1 << 30);
        let stream = window.connect(0).unwrap();
        let mut bytes = 0;
        while let Next::Chunk { offset, length } = window.next(stream) {
            window.mark_sent(stream, offset, length, at(0));
            bytes += length as u64;
        }
        assert_eq!(bytes, INITIAL_LIMIT);
        // Fast acknowledgements raise the limit to its maximum.
        let mut acked = 0;
        for _ in 0..1000 {
            acked += 100_000;
            window.acknowledge(acked.min(window.sent), at(1)).unwrap();
            while let Next::Chunk { offset, length } = window.next(stream) {
                window.mark_sent(stream, offset, length, at(1));
            }
        }
        assert_eq!(window.limit, MAX_LIMIT);
        assert!(window.sent - window.acked <= MAX_LIMIT);
        // Slow acknowledgements lower the limit.
        for step in 1..20 {
            window
                .acknowledge(window.acked + 50_000, at(10_000 * step))
                .unwrap();
        }
        assert!(window.limit < MAX_LIMIT / 2);
    }

    #[test]
    fn final_message_is_sent_once_after_the_last_byte() {
        let mut window = LogWindow::default();
        let stream = window.connect(0).unwrap();
        assert_eq!(window.next(stream), Next::Wait);
        window.append(10);
        window.close();
        assert_eq!(
            window.next(stream),
            Next::Chunk {
                offset: 0,
                length: 10
            }
        );
        window.mark_sent(stream, 0, 10, at(0));
        assert_eq!(window.next(stream), Next::Finish);
        window.mark_finish_sent(stream);
        assert_eq!(window.next(stream), Next::Wait);
        // The control plane lacks the end of the log.
        assert!(!window.acknowledge_finish(4).unwrap());
        assert_eq!(
            window.next(stream),
            Next::Chunk {
                offset: 4,
                length: 6
            }
        );
        window.mark_sent(stream, 4, 6, at(0));
        assert_eq!(window.next(stream), Next::Finish);
        window.mark_finish_sent(stream);
        assert!(window.acknowledge_finish(10).unwrap());
    }

    #[test]
    fn replaced_stream_is_stale() {
        let mut window = LogWindow::default();
        window.append(10);
        let old = window.connect(0).unwrap();
        window.mark_sent(old, 0, 10, at(0));
        window.disconnect();
        assert_eq!(window.next(old), Next::Stale);
        let new = window.connect(3).unwrap();
        window.mark_sent(old, 3, 7, at(0));
        assert_eq!(
            window.next(new),
            Next::Chunk {
                offset: 3,
                length: 7
            }
        );
        assert_eq!(
            window.connect(11).unwrap_err(),
            OffsetMismatch {
                stored: 11,
                from: 0,
                to: 10
            }
        );
    }

    #[test]
    fn unacknowledged_bytes_are_sent_again() {
        let mut window = LogWindow::default();
        window.append(10);
        let stream = window.connect(0).unwrap();
        window.mark_sent(stream, 0, 10, at(0));
        assert!(!window.resend_lost(at(14_999)));
        assert!(window.resend_lost(at(15_000)));
        assert!(matches!(window.next(stream), Next::Chunk { offset: 0, .. }));
    }

    #[test]
    fn released_bytes_cannot_be_requested() {
        let mut window = LogWindow::default();
        window.append(40 << 20);
        window.connect(0).unwrap();
        window.acknowledge(RELEASE_STEP - 1, at(0)).unwrap();
        assert_eq!(window.take_releasable(), None);
        window.acknowledge(2 * RELEASE_STEP + 5, at(0)).unwrap();
        assert_eq!(window.take_releasable(), Some((0, 2 * RELEASE_STEP)));
        assert_eq!(window.take_releasable(), None);
        assert!(window.connect(2 * RELEASE_STEP).is_ok());
        assert!(window.connect(2 * RELEASE_STEP - 1).is_err());
        assert!(window.acknowledge_finish(0).is_err());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Grow(u64),
        Send,
        Deliver,
        Lose,
        Reconnect,
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1u64..600_000).prop_map(Step::Grow),
            6 => Just(Step::Send),
            6 => Just(Step::Deliver),
            1 => Just(Step::Lose),
            1 => Just(Step::Reconnect),
            2 => (1u64..4000).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever is lost on the way, all bytes arrive in order and before the final message.
        #[test]
        fn all_bytes_arrive_in_order(steps in steps()) {
            let mut window = LogWindow::default();
            let mut stream = window.connect(0).unwrap();
            let (mut stored, mut now) = (0u64, 0u64);
            let mut wire: VecDeque<(u64, usize)> = VecDeque::new();
            let drain = [Step::Wait(20_000), Step::Send, Step::Deliver];
            let rest = std::iter::repeat_n(drain, 4000).flatten();
            for (number, step) in steps.clone().into_iter().chain(rest).enumerate() {
                if number == steps.len() {
                    window.close();
                }
                match step {
                    Step::Grow(bytes) => window.append(bytes),
                    Step::Send => match window.next(stream) {
                        Next::Chunk { offset, length } => {
                            prop_assert!(length > 0 && length <= MAX_CHUNK);
                            window.mark_sent(stream, offset, length, at(now));
                            prop_assert!(window.sent - window.acked <= MAX_LIMIT);
                            wire.push_back((offset, length));
                        }
                        Next::Finish => {
                            window.mark_finish_sent(stream);
                            if wire.is_empty() && window.acknowledge_finish(stored).unwrap() {
                                break;
                            }
                        }
                        Next::Wait => { window.resend_lost(at(now)); }
                        Next::Stale => prop_assert!(false),
                    },
                    Step::Deliver => if let Some((offset, length)) = wire.pop_front() {
                        // A store that accepts only bytes adjacent to or overlapping its own.
                        let end = offset + length as u64;
                        if offset <= stored {
                            stored = stored.max(end);
                        }
                        window.acknowledge(stored, at(now)).unwrap();
                    },
                    Step::Lose => { wire.pop_front(); }
                    Step::Reconnect => {
                        wire.clear();
                        stream = window.connect(stored).unwrap();
                    }
                    Step::Wait(millis) => now += millis,
                }
                prop_assert!(stored <= window.length());
            }
            prop_assert_eq!(stored, window.length());
            prop_assert!(window.acknowledge_finish(stored).unwrap());
        }
    }
}
