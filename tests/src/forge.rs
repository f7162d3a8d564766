//! Fake forge: the part of GitHub's API that accepts commit statuses and webhooks, and deliveries
//! signed as GitHub signs them.
//!
//! Invariants:
//! - The forge ends with its handle.
//! - It records every request, so that a test can assert which ones arrived and which did not.

use std::{
    io::{self, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::git_server::{read_body, read_head};

/// Longest wait for a request.
const LIMIT: Duration = Duration::from_secs(20);

/// Request that the forge received.
#[derive(Debug, Clone, PartialEq)]
pub struct ForgeRequest {
    /// `POST`, `PATCH`.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Value of the header `authorization`.
    pub authorization: String,
    /// Body. Null if it is not JSON.
    pub body: Value,
    /// Status of the response.
    pub status: u16,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    failures: AtomicU32,
    requests: Mutex<Vec<ForgeRequest>>,
    /// Registered webhooks. The index is the id minus 1.
    hooks: Mutex<Vec<Value>>,
    /// Pings that were sent, newest first.
    pings: Mutex<Vec<Value>>,
}

#[derive(Debug)]
/// Handle of a fake forge.
pub struct Forge {
    address: SocketAddr,
    state: Arc<State>,
}

impl Forge {
    /// Starts a forge on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let state = Arc::new(State::default());
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&serving);
                // A client may close the connection early.
                thread::spawn(move || serve(&state, stream).ok());
            }
        });
        Self { address, state }
    }

    /// Returns the base URL of the API.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Fails the next `requests` requests with status 502.
    pub fn fail_next(&self, requests: u32) {
        self.state.failures.store(requests, Ordering::SeqCst);
    }

    /// Returns all requests received so far.
    pub fn requests(&self) -> Vec<ForgeRequest> {
        lock(&self.state.requests).clone()
    }

    /// Returns the accepted status requests of a commit, in the order of arrival.
    pub fn statuses(&self, repository: &str, commit: &str) -> Vec<ForgeRequest> {
        let path = format!("/repos/{repository}/statuses/{commit}");
        let requests = self.requests().into_iter();
        requests
            .filter(|request| request.path == path && request.status == 201)
            .collect()
    }

    /// Waits until the commit has this state. Returns all status requests accepted by then.
    ///
    /// # Panics
    /// If the status does not arrive in time.
    pub fn wait_for(&self, repository: &str, commit: &str, state: &str) -> Vec<ForgeRequest> {
        let begun = Instant::now();
        loop {
            let statuses = self.statuses(repository, commit);
            if statuses
                .iter()
                .any(|request| request.body["state"] == state)
            {
                return statuses;
            }
            assert!(
                begun.elapsed() < LIMIT,
                "the forge received no status {state} of {commit}: {:#?}",
                self.requests()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the registered webhooks.
    pub fn hooks(&self) -> Vec<Value> {
        lock(&self.state.hooks).clone()
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(state: &State, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(request) = read_head(&mut reader)? else {
        return Ok(());
    };
    let body = read_body(&mut reader, &request)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let fails = state
        .failures
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
    let (status, response) = if fails.is_ok() {
        (502, json!({ "message": "out of order" }))
    } else {
        respond_to(state, &request.method, &request.path, &body)
    };
    let authorization = request.headers.get("authorization").cloned();
    lock(&state.requests).push(ForgeRequest {
        method: request.method,
        path: request.path,
        authorization: authorization.unwrap_or_default(),
        body,
        status,
    });
    let response = response.to_string();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{response}",
        response.len()
    )
}

fn respond_to(state: &State, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method, parts.as_slice()) {
        ("POST", ["repos", _, _, "statuses", _]) => (201, body.clone()),
        ("GET", ["repos", _, _, "hooks"]) => (200, Value::Array(lock(&state.hooks).clone())),
        ("POST", ["repos", _, _, "hooks"]) => {
            let mut hooks = lock(&state.hooks);
            let mut hook = body.clone();
            hook["id"] = (hooks.len() + 1).into();
            hooks.push(hook.clone());
            (201, hook)
        }
        ("PATCH", ["repos", _, _, "hooks", id]) => {
            let id: usize = id.parse().unwrap_or(0);
            match lock(&state.hooks).get_mut(id.wrapping_sub(1)) {
                Some(hook) => {
                    for (key, value) in body.as_object().into_iter().flatten() {
                        hook[key] = value.clone();
                    }
                    (200, hook.clone())
                }
                None => (404, json!({ "message": "Not Found" })),
            }
        }
        ("GET", ["repos", _, _, "hooks", _, "deliveries"]) => {
            (200, Value::Array(lock(&state.pings).clone()))
        }
        ("POST", ["repos", _, _, "hooks", id, "pings"]) => {
            let id: usize = id.parse().unwrap_or(0);
            let hook = lock(&state.hooks).get(id.wrapping_sub(1)).cloned();
            match hook {
                Some(hook) => {
                    let url = hook["config"]["url"].as_str().unwrap_or_default();
                    let secret = hook["config"]["secret"].as_str().unwrap_or_default();
                    let ping = json!({ "zen": "Keep it logically awesome.", "hook_id": id });
                    let mut pings = lock(&state.pings);
                    let id = pings.len();
                    let sent = deliver(url, secret, "ping", &format!("ping-{id}"), &ping);
                    let status = sent.map_or(0, |(status, _)| status);
                    pings.insert(
                        0,
                        json!({ "id": id, "event": "ping", "status_code": status }),
                    );
                    (204, Value::Null)
                }
                None => (404, json!({ "message": "Not Found" })),
            }
        }
        _ => (404, json!({ "message": "Not Found" })),
    }
}

/// Returns the header value with which GitHub signs a body.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length is a key");
    mac.update(body);
    let bytes = mac.finalize().into_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

/// Sends a delivery as GitHub does. Returns the status and the body of the response.
///
/// # Errors
/// If the connection breaks before a response.
pub fn deliver(
    url: &str,
    secret: &str,
    event: &str,
    id: &str,
    body: &Value,
) -> io::Result<(u16, Value)> {
    let body = body.to_string();
    let signature = signature(secret, body.as_bytes());
    deliver_signed(url, event, id, &body, &signature)
}

/// Sends a delivery with the given signature.
///
/// # Errors
/// If the connection breaks before a response.
pub fn deliver_signed(
    url: &str,
    event: &str,
    id: &str,
    body: &str,
    signature: &str,
) -> io::Result<(u16, Value)> {
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| io::Error::other("only http"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         User-Agent: GitHub-Hookshot/1\r\nX-GitHub-Event: {event}\r\nX-GitHub-Delivery: {id}\r\n\
         X-Hub-Signature-256: {signature}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let status = response
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no response: {response:?}")))?;
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}
