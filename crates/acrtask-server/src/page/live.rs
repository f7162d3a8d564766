//! Updates of open pages: a stream of server-sent events, or one update as JSON.
//!
//! An update contains the parts of the page that have changed, as rendered HTML with the id of their
//! element. A page without a stream of its own requests single updates, because browsers limit the
//! connections to a host.
//!
//! Invariants:
//! * A stream ends at the latest [`SESSION_CHECK`] after its session.
//! * Updates do not count as use of the session.

use std::{collections::HashMap, time::Duration};

use acrtask_page::{StateBadge, asset_url};
use acrtask_store::SessionRow;
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{PageError, Site};
use crate::{api::ApiError, auth};

/// Interval between checks of the session of a stream.
const SESSION_CHECK: Duration = Duration::from_secs(10);
/// Interval between comments that keep the connection alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Form of an update: a stream, or one update.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LiveQuery {
    stream: Option<u8>,
}

/// Part of a page.
#[derive(Debug, Clone, Serialize)]
struct Fragment {
    id: &'static str,
    html: String,
}

/// Change of an open page.
#[derive(Debug, Default, Serialize)]
pub(super) struct Update {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fragments: Vec<Fragment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<String>,
    /// New lines of a log.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    lines: Option<NewLines>,
    /// Set in the last update.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    done: bool,
}

/// New lines of a log.
#[derive(Debug, Serialize)]
pub(super) struct NewLines {
    pub(super) lines: Vec<serde_json::Value>,
    /// Number of the last line.
    pub(super) last: u64,
}

impl Update {
    /// Creates an update without changes. `done` is set in the last one.
    pub(super) fn new(done: bool) -> Self {
        Self {
            done,
            ..Self::default()
        }
    }

    /// Adds a part of the page.
    pub(super) fn add(mut self, id: &'static str, part: &impl std::fmt::Display) -> Self {
        let html = part.to_string();
        self.fragments.push(Fragment { id, html });
        self
    }

    /// Sets title and icon of the page.
    pub(super) fn titled(mut self, title: &str, state: &StateBadge) -> Self {
        self.title = Some(format!("{} · acrtask", acrtask_page::show_hidden(title)));
        self.icon = Some(asset_url(state.page_icon()));
        self
    }

    /// Adds lines of a log.
    pub(super) fn with_lines(mut self, lines: NewLines) -> Self {
        if !lines.lines.is_empty() {
            self.lines = Some(lines);
        }
        self
    }

    fn is_empty(&self) -> bool {
        self.fragments.is_empty() && self.title.is_none() && self.lines.is_none() && !self.done
    }
}

/// A page that changes while it is open.
pub(super) trait LivePage: Send + 'static {
    /// Shortest time between two updates.
    const INTERVAL: Duration;

    /// Returns the current content of all changing parts.
    fn update(&mut self) -> impl Future<Output = Result<Update, ApiError>> + Send;

    /// Waits until the content may have changed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Returns the updates of `page`: as a stream, or the current one.
pub(super) async fn respond<P: LivePage>(
    site: &Site,
    session: &SessionRow,
    query: &LiveQuery,
    mut page: P,
) -> Result<Response, PageError> {
    if query.stream != Some(1) {
        return Ok(axum::Json(page.update().await?).into_response());
    }
    let stream = Stream {
        site: site.clone(),
        session: session.clone(),
        page,
        sent: HashMap::new(),
        title: None,
        checked: Instant::now(),
        last_sent: Instant::now(),
        is_first: true,
        is_done: false,
    };
    let body = futures::stream::try_unfold(stream, |mut stream| async move {
        let next = stream.next_bytes().await;
        let next = next.map_err(|error| std::io::Error::other(error.problem().message.clone()))?;
        Ok::<_, std::io::Error>(next.map(|bytes| (bytes, stream)))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // Ask proxies not to buffer the response.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// Stream of updates to one page.
struct Stream<P> {
    site: Site,
    session: SessionRow,
    page: P,
    /// Last sent content of each part.
    sent: HashMap<&'static str, String>,
    title: Option<String>,
    checked: Instant,
    last_sent: Instant,
    is_first: bool,
    is_done: bool,
}

impl<P: LivePage> Stream<P> {
    /// Returns the next bytes to send. `None` at the end.
    async fn next_bytes(&mut self) -> Result<Option<Bytes>, ApiError> {
        if self.is_done {
            return Ok(None);
        }
        if std::mem::take(&mut self.is_first) {
            // The first bytes open the stream in the browser.
            return Ok(Some(Bytes::from_static(b"retry: 1000\n\n")));
        }
        loop {
            if self.checked.elapsed() >= SESSION_CHECK {
                if !auth::is_session_valid(self.site.app(), &self.session).await? {
                    return Ok(None);
                }
                self.checked = Instant::now();
            }
            let update = self.page.update().await?;
            let update = self.keep_changes(update);
            if !update.is_empty() {
                self.is_done = update.done;
                self.last_sent = Instant::now();
                let data =
                    serde_json::to_string(&update).map_err(|error| ApiError::internal(&error))?;
                return Ok(Some(Bytes::from(format!("data: {data}\n\n"))));
            }
            let changed = async {
                let rest = P::INTERVAL.saturating_sub(self.last_sent.elapsed());
                tokio::time::sleep(rest).await;
                self.page.changed().await;
            };
            let rest = KEEP_ALIVE.saturating_sub(self.last_sent.elapsed());
            let closing = self.site.app().closing.clone();
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(rest) => {
                    self.last_sent = Instant::now();
                    return Ok(Some(Bytes::from_static(b": alive\n\n")));
                }
                // Browsers continue at another server.
                () = closing.cancelled() => return Ok(None),
            }
        }
    }

    /// Removes the parts that the page already has.
    fn keep_changes(&mut self, mut update: Update) -> Update {
        update.fragments.retain(|fragment| {
            let is_new = self.sent.get(fragment.id) != Some(&fragment.html);
            if is_new {
                self.sent.insert(fragment.id, fragment.html.clone());
            }
            is_new
        });
        if update.title == self.title {
            (update.title, update.icon) = (None, None);
        } else if update.title.is_some() {
            self.title.clone_from(&update.title);
        }
        update
    }
}
