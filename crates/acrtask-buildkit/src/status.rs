//! What a build tells while it runs.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;

use crate::error::clean_message;

/// Lines kept of what a vertex printed, to show when it fails.
const TAIL_LINES: usize = 20;
/// Bytes kept of one such line.
const TAIL_LINE_BYTES: usize = 4096;

/// One thing that a build tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// A vertex (a step of the build graph) is known, has started or has ended; sent again at each change.
    Vertex(Vertex),
    /// How far a part of a vertex is.
    Progress(Progress),
    /// Something that a vertex printed.
    Log(Log),
    /// Something the author of the Dockerfile should know.
    Warning(Warning),
}

/// A step of the build graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vertex {
    /// Its id within this build.
    pub digest: String,
    /// `[2/3] RUN make`.
    pub name: String,
    /// The vertexes that it needs.
    pub inputs: Vec<String>,
    /// When it started.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
    /// Its result was in the cache.
    pub cached: bool,
    /// Why it failed, or `None`. A canceled vertex has a message too.
    pub error: Option<String>,
}

/// How far a part of a vertex is: a layer being pulled, a context being sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The vertex.
    pub vertex: String,
    /// The part.
    pub id: String,
    /// Bytes, or whatever the part counts.
    pub current: i64,
    /// 0 when it is not known.
    pub total: i64,
    /// When the part started.
    pub started: Option<SystemTime>,
    /// When it was done.
    pub completed: Option<SystemTime>,
}

/// Something that a vertex printed; not necessarily whole lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The vertex.
    pub vertex: String,
    /// 1 for standard output, 2 for standard error.
    pub stream: i64,
    /// What it printed.
    pub bytes: Vec<u8>,
    /// When.
    pub time: Option<SystemTime>,
}

/// Something the author of the Dockerfile should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The vertex.
    pub vertex: String,
    /// In one line.
    pub short: String,
    /// In several.
    pub detail: Vec<String>,
    /// Where more is said.
    pub url: Option<String>,
    /// The file it is about.
    pub filename: Option<String>,
    /// The lines, from 1.
    pub lines: Vec<RangeInclusive<usize>>,
}

/// The events of one message, vertexes first, so that what is said of a vertex comes after the vertex.
pub(crate) fn events(response: StatusResponse) -> Vec<BuildEvent> {
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
            started: vertex.started.and_then(time),
            completed: vertex.completed.and_then(time),
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
            started: status.started.and_then(time),
            completed: status.completed.and_then(time),
        }));
    }
    for log in response.logs {
        events.push(BuildEvent::Log(Log {
            vertex: log.vertex,
            stream: log.stream,
            bytes: log.msg,
            time: log.timestamp.and_then(time),
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

fn time(timestamp: Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    let nanoseconds = u32::try_from(timestamp.nanos).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
}

/// What is remembered of the events, for the outcome.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    tails: HashMap<String, Tail>,
    failed: Option<String>,
    /// Images that vertexes say they come from, with digests.
    pub(crate) named_sources: Vec<String>,
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    /// The last line has not ended.
    open: bool,
}

impl Memory {
    pub(crate) fn note(&mut self, event: &BuildEvent) {
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
                .add(&log.bytes),
            BuildEvent::Progress(_) | BuildEvent::Warning(_) => {}
        }
    }

    /// The vertex that failed, where the error itself does not say.
    pub(crate) fn failed_vertex(&self) -> Option<String> {
        self.failed.clone()
    }

    pub(crate) fn tail(&mut self, vertex: &str) -> Vec<String> {
        self.tails
            .remove(vertex)
            .map(|tail| tail.lines.into())
            .unwrap_or_default()
    }
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
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

/// `[stage 1/4] FROM docker.io/library/busybox:1@sha256:…` and what the frontend itself is loaded from.
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
    fn the_tail_joins_pieces_and_forgets_the_beginning() {
        let mut memory = Memory::default();
        memory.note(&log("he"));
        memory.note(&log("llo\nwor"));
        memory.note(&log("ld\n"));
        assert_eq!(memory.tail("v"), ["hello", "world"]);
        for n in 0..50 {
            memory.note(&log(&format!("{n}\n")));
        }
        let tail = memory.tail("v");
        assert_eq!(
            (tail.len(), tail[0].as_str(), tail[19].as_str()),
            (20, "30", "49")
        );
    }

    #[test]
    fn images_are_read_from_names() {
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
    fn vertexes_come_before_their_logs() {
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
        let events = events(response);
        assert!(matches!(&events[0], BuildEvent::Vertex(v) if v.error.as_deref() == Some("bad")));
        assert!(matches!(&events[1], BuildEvent::Log(_)));
    }
}
