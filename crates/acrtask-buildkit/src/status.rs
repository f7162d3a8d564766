//! Events of a running build.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;

use crate::error::clean_message;

/// Number of log lines kept per vertex, for the error of a failed vertex.
const TAIL_LINES: usize = 20;
/// Maximum size of such a line, in bytes.
const TAIL_LINE_BYTES: usize = 4096;

/// Event of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// Change of a vertex (a step of the build graph): it is planned, started or finished. Sent
    /// again at each change.
    Vertex(Vertex),
    /// Progress of a part of a vertex.
    Progress(Progress),
    /// Output of a vertex.
    Log(Log),
    /// Warning for the author of the Dockerfile.
    Warning(Warning),
}

/// Step of the build graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vertex {
    /// Id within this build.
    pub digest: String,
    /// Name: `[2/3] RUN make`.
    pub name: String,
    /// Digests of the vertexes that this one needs.
    pub inputs: Vec<String>,
    /// Start time.
    pub started: Option<SystemTime>,
    /// End time.
    pub completed: Option<SystemTime>,
    /// `true` if the result comes from the cache.
    pub cached: bool,
    /// Error message. `None` if the vertex did not fail. A canceled vertex also has a message.
    pub error: Option<String>,
}

/// Progress of a part of a vertex: a layer being pulled, a context being sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Digest of the vertex.
    pub vertex: String,
    /// Id of the part.
    pub id: String,
    /// Completed bytes, or another unit of the part.
    pub current: i64,
    /// Total in the same unit. 0 if unknown.
    pub total: i64,
    /// Start time of the part.
    pub started: Option<SystemTime>,
    /// End time of the part.
    pub completed: Option<SystemTime>,
}

/// Output of a vertex, not necessarily complete lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Digest of the vertex.
    pub vertex: String,
    /// 1 for standard output, 2 for standard error.
    pub stream: i64,
    /// Printed bytes.
    pub bytes: Vec<u8>,
    /// Time of the output.
    pub time: Option<SystemTime>,
}

/// Warning for the author of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Digest of the vertex.
    pub vertex: String,
    /// Summary in one line.
    pub short: String,
    /// Details in several lines.
    pub detail: Vec<String>,
    /// URL of the documentation.
    pub url: Option<String>,
    /// Name of the affected file.
    pub filename: Option<String>,
    /// Ranges of affected lines, counted from 1.
    pub lines: Vec<RangeInclusive<usize>>,
}

/// Converts one message to events. Vertexes come first, so that other events follow their vertex.
pub(crate) fn convert_events(response: StatusResponse) -> Vec<BuildEvent> {
    let mut events = Vec::with_capacity(
        response.vertexes.len()
            + response.statuses.len()
            + response.logs.len()
            + response.warnings.len(),
    );
    for vertex in response.vertexes {
        events.push(BuildEvent::Vertex(Vertex {
            digest: vertex.digest,
            name: vertex.name,
            inputs: vertex.inputs,
            started: vertex.started.and_then(convert_time),
            completed: vertex.completed.and_then(convert_time),
            cached: vertex.cached,
            error: (!vertex.error.is_empty()).then(|| clean_message(&vertex.error)),
        }));
    }
    for status in response.statuses {
        events.push(BuildEvent::Progress(Progress {
            vertex: status.vertex,
            id: status.id,
            current: status.current,
            total: status.total,
            started: status.started.and_then(convert_time),
            completed: status.completed.and_then(convert_time),
        }));
    }
    for log in response.logs {
        events.push(BuildEvent::Log(Log {
            vertex: log.vertex,
            stream: log.stream,
            bytes: log.msg,
            time: log.timestamp.and_then(convert_time),
        }));
    }
    for warning in response.warnings {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let line = |position: Option<bollard_buildkit_proto::pb::Position>| {
            usize::try_from(position?.line).ok()
        };
        events.push(BuildEvent::Warning(Warning {
            vertex: warning.vertex,
            short: text(warning.short),
            detail: warning.detail.into_iter().map(text).collect(),
            url: (!warning.url.is_empty()).then_some(warning.url),
            filename: warning.info.map(|info| info.filename),
            lines: warning
                .ranges
                .into_iter()
                .filter_map(|range| {
                    let start = line(range.start)?;
                    Some(start..=line(range.end).unwrap_or(start).max(start))
                })
                .collect(),
        }));
    }
    events
}

fn convert_time(timestamp: Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    let nanoseconds = u32::try_from(timestamp.nanos).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
}

/// Summary of the events, for the outcome.
#[derive(Debug, Default)]
pub(crate) struct EventSummary {
    tails: HashMap<String, Tail>,
    failed: Option<String>,
    /// Images with digests that the names of vertexes contain.
    pub(crate) named_sources: Vec<String>,
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    /// `true` if the last line is incomplete.
    open: bool,
}

impl EventSummary {
    pub(crate) fn record(&mut self, event: &BuildEvent) {
        match event {
            BuildEvent::Vertex(vertex) => {
                if let Some(source) = image_in_name(&vertex.name)
                    && !self.named_sources.iter().any(|seen| seen == source)
                {
                    self.named_sources.push(source.to_owned());
                }
                if vertex.completed.is_some() {
                    match &vertex.error {
                        None => {
                            self.tails.remove(&vertex.digest);
                        }
                        Some(error)
                            if self.failed.is_none() && !error.contains("context canceled") =>
                        {
                            self.failed = Some(vertex.digest.clone());
                        }
                        Some(_) => {}
                    }
                }
            }
            BuildEvent::Log(log) => self
                .tails
                .entry(log.vertex.clone())
                .or_default()
                .push(&log.bytes),
            BuildEvent::Progress(_) | BuildEvent::Warning(_) => {}
        }
    }

    /// Returns the failed vertex, if the error itself does not name it.
    pub(crate) fn failed_vertex(&self) -> Option<String> {
        self.failed.clone()
    }

    pub(crate) fn take_tail(&mut self, vertex: &str) -> Vec<String> {
        self.tails
            .remove(vertex)
            .map(|tail| tail.lines.into())
            .unwrap_or_default()
    }
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in String::from_utf8_lossy(bytes).split_inclusive('\n') {
            let text = piece.trim_end_matches(['\n', '\r']);
            match self.lines.back_mut() {
                Some(last) if self.open => {
                    if last.len() < TAIL_LINE_BYTES {
                        last.push_str(text);
                    }
                }
                _ => {
                    if self.lines.len() == TAIL_LINES {
                        self.lines.pop_front();
                    }
                    self.lines
                        .push_back(text.chars().take(TAIL_LINE_BYTES).collect());
                }
            }
            self.open = !piece.ends_with('\n');
        }
    }
}

/// Finds the image in `[stage 1/4] FROM docker.io/library/busybox:1@sha256:…`, or the image of the
/// frontend in the name of its step.
fn image_in_name(name: &str) -> Option<&str> {
    let (_, rest) = name
        .split_once("FROM ")
        .or_else(|| name.split_once("docker-image://"))?;
    let reference = rest.split_whitespace().next()?;
    reference.contains("@sha256:").then_some(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> BuildEvent {
        BuildEvent::Log(Log {
            vertex: "v".into(),
            stream: 1,
            bytes: text.as_bytes().to_vec(),
            time: None,
        })
    }

    #[test]
    fn tail_joins_pieces_and_keeps_the_last_lines() {
        let mut summary = EventSummary::default();
        summary.record(&log("he"));
        summary.record(&log("llo\nwor"));
        summary.record(&log("ld\n"));
        assert_eq!(summary.take_tail("v"), ["hello", "world"]);
        for n in 0..50 {
            summary.record(&log(&format!("{n}\n")));
        }
        let tail = summary.take_tail("v");
        assert_eq!(
            (tail.len(), tail[0].as_str(), tail[19].as_str()),
            (20, "30", "49")
        );
    }

    #[test]
    fn image_in_name_requires_a_digest() {
        let reference = "127.0.0.1:5000/base/busybox:1.36@sha256:aa";
        assert_eq!(
            image_in_name(&format!("[build 1/3] FROM {reference}")),
            Some(reference)
        );
        assert_eq!(
            image_in_name(&format!("[internal] x docker-image://{reference}")),
            Some(reference)
        );
        assert_eq!(image_in_name("[1/3] FROM busybox:1.36"), None);
        assert_eq!(image_in_name("[2/3] RUN echo"), None);
    }

    #[test]
    fn convert_events_puts_vertexes_first() {
        use bollard_buildkit_proto::moby::buildkit::v1 as bk;
        let response = StatusResponse {
            vertexes: vec![bk::Vertex {
                digest: "v".into(),
                error: "rpc error: code = Unknown desc = bad".into(),
                ..Default::default()
            }],
            logs: vec![bk::VertexLog {
                vertex: "v".into(),
                msg: b"x".to_vec(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let events = convert_events(response);
        assert!(matches!(&events[0], BuildEvent::Vertex(v) if v.error.as_deref() == Some("bad")));
        assert!(matches!(&events[1], BuildEvent::Log(_)));
    }
}
