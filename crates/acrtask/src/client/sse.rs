//! Incremental parser for server-sent events. Pure.
//!
//! Invariants: the events do not depend on how the bytes are split. An event counts only when its
//! empty line has arrived.

/// Maximum size of an event in bytes; a run's event contains at most 64 KiB of output.
const MAX_EVENT: usize = 16 << 20;

/// Server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Message {
    /// Event type; empty if the event has none.
    pub(crate) event: String,
    /// Event id; `None` if the event has none.
    pub(crate) id: Option<String>,
    /// Data, with lines joined by line feeds.
    pub(crate) data: String,
}

/// Error for an event that is longer than [`MAX_EVENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MAX_EVENT} bytes")]
pub(crate) struct TooLong;

/// State of the parser.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// Bytes of the current line.
    line: Vec<u8>,
    /// Set after a carriage return; a line feed then belongs to the same line break.
    after_return: bool,
    message: Message,
    has_data: bool,
}

impl Parser {
    /// Parses `bytes` and passes each completed event to `each`.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Message),
    ) -> Result<(), TooLong> {
        for &byte in bytes {
            let is_same_break = byte == b'\n' && self.after_return;
            self.after_return = byte == b'\r';
            if is_same_break {
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                if let Some(message) = self.finish_line() {
                    each(message);
                }
            } else {
                if self.line.len() + self.message.data.len() >= MAX_EVENT {
                    return Err(TooLong);
                }
                self.line.push(byte);
            }
        }
        Ok(())
    }

    fn finish_line(&mut self) -> Option<Message> {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            let complete = std::mem::take(&mut self.has_data) || !message.event.is_empty();
            return complete.then_some(message);
        }
        // A line that starts with a colon is a comment, which keeps the connection alive.
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.message.event = value.into(),
            "id" => self.message.id = Some(value.into()),
            "data" => {
                if self.has_data {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(parts: &[&[u8]]) -> Vec<Message> {
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for part in parts {
            parser.feed(part, |message| found.push(message)).unwrap();
        }
        found
    }

    fn message(event: &str, id: Option<&str>, data: &str) -> Message {
        Message {
            event: event.into(),
            id: id.map(Into::into),
            data: data.into(),
        }
    }

    #[test]
    fn fields_comments_and_line_breaks_are_parsed() {
        let text = b": hello\n\nid: 12\ndata: {\"a\":1}\n\nevent: end\r\ndata:x\r\ndata: y\r\n\r\nid: 3\rdata: z\r\rdata: cut";
        assert_eq!(
            parse(&[text]),
            [
                message("", Some("12"), "{\"a\":1}"),
                message("end", None, "x\ny"),
                message("", Some("3"), "z"),
            ]
        );
    }

    #[test]
    fn endless_event_is_rejected() {
        let mut parser = Parser::default();
        let part = vec![b'x'; 1 << 20];
        let refused = (0..20).any(|_| parser.feed(&part, |_| ()).is_err());
        assert!(refused);
    }

    proptest! {
        /// The events do not depend on how the bytes are split.
        #[test]
        fn events_do_not_depend_on_chunks(
            events in prop::collection::vec(("[a-z]{0,5}", prop::option::of(0u64..1000), "[^\r\n\u{0}]{0,30}"), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        ) {
            let mut text = String::new();
            for (event, id, data) in &events {
                if !event.is_empty() {
                    text += &format!("event: {event}{end}");
                }
                if let Some(id) = id {
                    text += &format!("id: {id}{end}");
                }
                text += &format!("data: {data}{end}{end}");
            }
            let bytes = text.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.push(0);
            at.push(bytes.len());
            at.sort_unstable();
            let parts: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let found = parse(&parts);
            prop_assert_eq!(&found, &parse(&[bytes]));
            let wanted: Vec<Message> = events
                .iter()
                .map(|(event, id, data)| message(event, id.map(|id| id.to_string()).as_deref(), data))
                .collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
