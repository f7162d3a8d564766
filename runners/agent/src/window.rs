//! What of a log has been sent and acknowledged, and what may be sent next. Pure: the time is handed in.
//!
//! Bytes go out in order. Those that are not acknowledged are bounded by a limit that grows while
//! acknowledgements come soon and shrinks while they come late, so that on a slow connection heartbeats and
//! keep-alives do not stand behind minutes of log. After a gap, everything from the last acknowledged byte is sent
//! again: the control plane knows what it has by its offset.

use std::{collections::VecDeque, time::Duration};

use acrtask_proto::MAX_CHUNK;

/// The limit at first, at least, at most.
const FIRST: u64 = 512 << 10;
const LEAST: u64 = 32 << 10;
const MOST: u64 = 4 << 20;
/// Chunks without an acknowledgement, at most.
const CHUNKS: usize = 512;
/// An acknowledgement within this is soon, after that it is late.
const SOON: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(2);
/// Without any acknowledgement for this long, what was sent is sent again.
const LOST: Duration = Duration::from_secs(15);
/// Acknowledged bytes are forgotten so many at a time.
const FORGET: u64 = 16 << 20;
/// At most one repetition in this time.
const REPEAT: Duration = Duration::from_secs(1);

/// What may be sent next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// These bytes.
    Chunk {
        /// The first of them.
        offset: u64,
        /// How many.
        length: usize,
    },
    /// That the run is over: all of the log is sent.
    Finish,
    /// Nothing until something changes.
    Wait,
    /// Nothing ever: the stream is not the current one.
    Stale,
}

/// The control plane's word does not fit the log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane has {theirs} bytes of the log; here are those from {from} to {to}")]
pub(crate) struct Misfit {
    theirs: u64,
    from: u64,
    to: u64,
}

/// The state of one log.
#[derive(Debug)]
pub(crate) struct Window {
    length: u64,
    sent: u64,
    acked: u64,
    /// What is below has been forgotten: it was acknowledged.
    from: u64,
    limit: u64,
    ended: bool,
    finish_sent: bool,
    /// The current stream; odd while there is one.
    stream: u64,
    /// Ends of chunks under way, and when they were sent.
    under_way: VecDeque<(u64, Duration)>,
    repeated: Option<Duration>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            length: 0,
            sent: 0,
            acked: 0,
            from: 0,
            limit: FIRST,
            ended: false,
            finish_sent: false,
            stream: 0,
            under_way: VecDeque::new(),
            repeated: None,
        }
    }
}

impl Window {
    /// Bytes of the log so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The log has grown by `bytes`.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.length += bytes;
    }

    /// The log does not grow any more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// A new stream, on the other side of which the log is known up to `offset`. Returns the stream's number.
    pub(crate) fn connect(&mut self, offset: u64) -> Result<u64, Misfit> {
        self.check(offset)?;
        self.disconnect();
        self.acked = offset;
        self.sent = offset;
        self.stream += 1;
        Ok(self.stream)
    }

    /// There is no stream any more.
    pub(crate) fn disconnect(&mut self) {
        if self.stream % 2 == 1 {
            self.stream += 1;
        }
        if !self.under_way.is_empty() {
            self.limit = (self.limit / 2).max(LEAST);
        }
        self.rewind();
        self.repeated = None;
    }

    /// What may be sent on `stream`.
    pub(crate) fn next(&self, stream: u64) -> Next {
        if self.stream != stream {
            return Next::Stale;
        }
        if self.sent == self.length {
            return if self.ended && !self.finish_sent {
                Next::Finish
            } else {
                Next::Wait
            };
        }
        let room = self.limit.saturating_sub(self.sent - self.acked);
        if room == 0 || self.under_way.len() >= CHUNKS {
            return Next::Wait;
        }
        let most = (MAX_CHUNK as u64).min(self.limit / 2).min(room);
        let length = most.min(self.length - self.sent);
        Next::Chunk {
            offset: self.sent,
            length: usize::try_from(length).unwrap_or(MAX_CHUNK),
        }
    }

    /// These bytes, which [`Self::next`] gave, are on their way.
    pub(crate) fn sent(&mut self, stream: u64, offset: u64, length: usize, now: Duration) {
        if self.stream == stream && self.sent == offset {
            self.sent += length as u64;
            self.under_way.push_back((self.sent, now));
        }
    }

    /// That the run is over is on its way.
    pub(crate) fn finish_sent(&mut self, stream: u64) {
        if self.stream == stream {
            self.finish_sent = true;
        }
    }

    /// The control plane has everything below `offset`.
    pub(crate) fn acknowledge(&mut self, offset: u64, now: Duration) -> Result<(), Misfit> {
        // Acknowledgements may overtake each other.
        self.check(offset.max(self.from))?;
        if offset <= self.acked {
            // It got something that did not fit behind what it has.
            if self.sent > self.acked {
                self.repeat(now);
            }
            return Ok(());
        }
        self.acked = offset;
        // After a repetition the first copy may be what is acknowledged.
        self.sent = self.sent.max(offset);
        let mut newest = None;
        while let Some((end, at)) = self.under_way.front().copied() {
            if end > offset {
                break;
            }
            newest = Some(at);
            self.under_way.pop_front();
        }
        match newest.map(|at| now.saturating_sub(at)) {
            Some(took) if took <= SOON => self.limit = (self.limit * 2).min(MOST),
            Some(took) if took >= LATE => self.limit = (self.limit / 2).max(LEAST),
            _ => {}
        }
        Ok(())
    }

    /// What need not be kept any more, where that is worth the trouble: where it begins, and how long it is.
    pub(crate) fn forget(&mut self) -> Option<(u64, u64)> {
        let length = (self.acked - self.from) / FORGET * FORGET;
        let from = self.from;
        self.from += length;
        (length > 0).then_some((from, length))
    }

    /// Sends again what was not acknowledged for too long; true where there is such.
    pub(crate) fn repeat_lost(&mut self, now: Duration) -> bool {
        let lost = |(_, at): &(u64, Duration)| now.saturating_sub(*at) >= LOST;
        let is_lost = self.under_way.back().is_some_and(lost);
        is_lost && self.repeat(now)
    }

    /// The control plane has heard that the run is over, and has the log up to `offset`. True where that is all of
    /// it; else the rest is sent again, and then that the run is over.
    pub(crate) fn finished(&mut self, offset: u64) -> Result<bool, Misfit> {
        self.check(offset)?;
        if self.ended && offset == self.length {
            return Ok(true);
        }
        self.acked = offset;
        self.rewind();
        Ok(false)
    }

    fn repeat(&mut self, now: Duration) -> bool {
        let due = self
            .repeated
            .is_none_or(|at| now.saturating_sub(at) >= REPEAT);
        if due {
            self.repeated = Some(now);
            self.rewind();
        }
        due
    }

    fn rewind(&mut self) {
        self.sent = self.acked;
        self.finish_sent = false;
        self.under_way.clear();
    }

    fn check(&self, offset: u64) -> Result<(), Misfit> {
        if offset < self.from || offset > self.length {
            return Err(Misfit {
                theirs: offset,
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
    fn what_is_under_way_is_bounded() {
        let mut window = Window::default();
        window.grow(1 << 30);
        let stream = window.connect(0).unwrap();
        let mut bytes = 0;
        while let Next::Chunk { offset, length } = window.next(stream) {
            window.sent(stream, offset, length, at(0));
            bytes += length as u64;
        }
        assert_eq!(bytes, FIRST);
        // Quick acknowledgements widen it, up to the most.
        let mut acked = 0;
        for _ in 0..1000 {
            acked += 100_000;
            window.acknowledge(acked.min(window.sent), at(1)).unwrap();
            while let Next::Chunk { offset, length } = window.next(stream) {
                window.sent(stream, offset, length, at(1));
            }
        }
        assert_eq!(window.limit, MOST);
        assert!(window.sent - window.acked <= MOST);
        // Late ones narrow it.
        for step in 1..20 {
            window
                .acknowledge(window.acked + 50_000, at(10_000 * step))
                .unwrap();
        }
        assert!(window.limit < MOST / 2);
    }

    #[test]
    fn over_is_said_once_behind_the_last_byte() {
        let mut window = Window::default();
        let stream = window.connect(0).unwrap();
        assert_eq!(window.next(stream), Next::Wait);
        window.grow(10);
        window.end();
        assert_eq!(
            window.next(stream),
            Next::Chunk {
                offset: 0,
                length: 10
            }
        );
        window.sent(stream, 0, 10, at(0));
        assert_eq!(window.next(stream), Next::Finish);
        window.finish_sent(stream);
        assert_eq!(window.next(stream), Next::Wait);
        // The control plane lacks the end.
        assert!(!window.finished(4).unwrap());
        assert_eq!(
            window.next(stream),
            Next::Chunk {
                offset: 4,
                length: 6
            }
        );
        window.sent(stream, 4, 6, at(0));
        assert_eq!(window.next(stream), Next::Finish);
        window.finish_sent(stream);
        assert!(window.finished(10).unwrap());
    }

    #[test]
    fn an_old_stream_is_told_that_it_is_old() {
        let mut window = Window::default();
        window.grow(10);
        let old = window.connect(0).unwrap();
        window.sent(old, 0, 10, at(0));
        window.disconnect();
        assert_eq!(window.next(old), Next::Stale);
        let new = window.connect(3).unwrap();
        window.sent(old, 3, 7, at(0));
        assert_eq!(
            window.next(new),
            Next::Chunk {
                offset: 3,
                length: 7
            }
        );
        assert_eq!(
            window.connect(11).unwrap_err(),
            Misfit {
                theirs: 11,
                from: 0,
                to: 10
            }
        );
    }

    #[test]
    fn what_is_never_acknowledged_is_sent_again() {
        let mut window = Window::default();
        window.grow(10);
        let stream = window.connect(0).unwrap();
        window.sent(stream, 0, 10, at(0));
        assert!(!window.repeat_lost(at(14_999)));
        assert!(window.repeat_lost(at(15_000)));
        assert!(matches!(window.next(stream), Next::Chunk { offset: 0, .. }));
    }

    #[test]
    fn what_was_forgotten_cannot_be_asked_for() {
        let mut window = Window::default();
        window.grow(40 << 20);
        window.connect(0).unwrap();
        window.acknowledge(FORGET - 1, at(0)).unwrap();
        assert_eq!(window.forget(), None);
        window.acknowledge(2 * FORGET + 5, at(0)).unwrap();
        assert_eq!(window.forget(), Some((0, 2 * FORGET)));
        assert_eq!(window.forget(), None);
        assert!(window.connect(2 * FORGET).is_ok());
        assert!(window.connect(2 * FORGET - 1).is_err());
        assert!(window.finished(0).is_err());
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
        /// Whatever is lost on the way, the other side ends with every byte in order, and hears of the end only then.
        #[test]
        fn every_byte_arrives(steps in steps()) {
            let mut window = Window::default();
            let mut stream = window.connect(0).unwrap();
            let (mut theirs, mut now) = (0u64, 0u64);
            let mut wire: VecDeque<(u64, usize)> = VecDeque::new();
            let drain = [Step::Wait(20_000), Step::Send, Step::Deliver];
            let rest = std::iter::repeat_n(drain, 4000).flatten();
            for (number, step) in steps.clone().into_iter().chain(rest).enumerate() {
                if number == steps.len() {
                    window.end();
                }
                match step {
                    Step::Grow(bytes) => window.grow(bytes),
                    Step::Send => match window.next(stream) {
                        Next::Chunk { offset, length } => {
                            prop_assert!(length > 0 && length <= MAX_CHUNK);
                            window.sent(stream, offset, length, at(now));
                            prop_assert!(window.sent - window.acked <= MOST);
                            wire.push_back((offset, length));
                        }
                        Next::Finish => {
                            window.finish_sent(stream);
                            if wire.is_empty() && window.finished(theirs).unwrap() {
                                break;
                            }
                        }
                        Next::Wait => { window.repeat_lost(at(now)); }
                        Next::Stale => prop_assert!(false),
                    },
                    Step::Deliver => if let Some((offset, length)) = wire.pop_front() {
                        // A store that takes only what begins where it ends, or repeats what it has.
                        let end = offset + length as u64;
                        if offset <= theirs {
                            theirs = theirs.max(end);
                        }
                        window.acknowledge(theirs, at(now)).unwrap();
                    },
                    Step::Lose => { wire.pop_front(); }
                    Step::Reconnect => {
                        wire.clear();
                        stream = window.connect(theirs).unwrap();
                    }
                    Step::Wait(millis) => now += millis,
                }
                prop_assert!(theirs <= window.length());
            }
            prop_assert_eq!(theirs, window.length());
            prop_assert!(window.finished(theirs).unwrap());
        }
    }
}
