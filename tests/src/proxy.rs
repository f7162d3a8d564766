//! TCP proxy that can cut or delay connections, or answer in place of the server.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Proxy on loopback in front of one address.
#[derive(Debug)]
pub struct Proxy {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Rejects every new connection.
    down: AtomicBool,
    /// Delay of each chunk, in milliseconds.
    delay: AtomicU64,
    /// Number of connections accepted so far.
    accepted: AtomicU64,
    /// Response to each new connection, in place of the server.
    answer: Mutex<Option<String>>,
    connections: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Starts a proxy in front of `http://HOST:PORT`.
    pub fn start(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serving.accepted.fetch_add(1, Ordering::SeqCst);
                if serving.down.load(Ordering::SeqCst) {
                    continue;
                }
                let answer = serving.answer.lock();
                if let Some(answer) = answer.expect("no thread panics with it").clone() {
                    thread::spawn(move || respond(client, &answer));
                    continue;
                }
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                serving.join(client, server);
            }
        });
        Self {
            url: format!("http://{address}"),
            shared,
        }
    }

    /// Returns `HOST:PORT`.
    pub fn host(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Returns the number of connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Cuts every connection and answers each new request with this head and an empty body. `None`:
    /// the server answers again.
    pub fn answer_with(&self, head: Option<&str>) {
        *self.shared.answer.lock().expect("no thread panics with it") = head.map(str::to_owned);
        self.drop_connections();
    }

    /// Cuts every connection and accepts no new one.
    pub fn cut(&self) {
        self.shared.down.store(true, Ordering::SeqCst);
        self.drop_connections();
    }

    /// Accepts connections again.
    pub fn restore(&self) {
        self.shared.down.store(false, Ordering::SeqCst);
    }

    /// Cuts every open connection once.
    pub fn drop_connections(&self) {
        let mut connections = self
            .shared
            .connections
            .lock()
            .expect("no thread panics with it");
        for connection in connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Delays each chunk by `delay`.
    pub fn delay_chunks(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).expect("a short time");
        self.shared.delay.store(millis, Ordering::SeqCst);
    }
}

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be shared");
        let mut connections = self.connections.lock().expect("no thread panics with it");
        connections.extend([copy(&client), copy(&server)]);
        for (from, to) in [(copy(&client), copy(&server)), (server, client)] {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.copy_stream(from, to));
        }
    }

    fn copy_stream(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            let delay = self.delay.load(Ordering::SeqCst);
            if delay > 0 {
                thread::sleep(Duration::from_millis(delay));
            }
            if to.write_all(&chunk[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// Reads the head of a request and responds to it.
fn respond(mut client: TcpStream, head: &str) {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match client.read(&mut chunk) {
            Ok(n @ 1..) => request.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    let _ = write!(
        client,
        "HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}
