//! A connection that can be cut, held up, answered in place of the server, and let go on: TCP, byte for byte.

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

/// A proxy on loopback in front of one address.
#[derive(Debug)]
pub struct Proxy {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Takes no connection.
    down: AtomicBool,
    /// Milliseconds that each chunk waits.
    delay: AtomicU64,
    /// Connections that came so far.
    came: AtomicU64,
    /// What each new connection is answered, in place of the server.
    answer: Mutex<Option<String>>,
    connections: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Begins to listen in front of `http://HOST:PORT`.
    pub fn before(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
        let address = listener.local_addr().expect("it has an address");
        let shared = Arc::new(Shared::default());
        let of_listener = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                of_listener.came.fetch_add(1, Ordering::SeqCst);
                if of_listener.down.load(Ordering::SeqCst) {
                    continue;
                }
                let answer = of_listener.answer.lock();
                if let Some(answer) = answer.expect("nobody panics with it").clone() {
                    thread::spawn(move || say(client, &answer));
                    continue;
                }
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                of_listener.join(client, server);
            }
        });
        Self {
            url: format!("http://{address}"),
            shared,
        }
    }

    /// `HOST:PORT`.
    pub fn host(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Connections that came so far.
    pub fn came(&self) -> u64 {
        self.shared.came.load(Ordering::SeqCst)
    }

    /// Cuts every connection, and answers each request with this head and nothing behind it; `None`: the server answers
    /// again.
    pub fn answer_with(&self, head: Option<&str>) {
        *self.shared.answer.lock().expect("nobody panics with it") = head.map(str::to_owned);
        self.drop_all();
    }

    /// Cuts every connection and takes no new one.
    pub fn cut(&self) {
        self.shared.down.store(true, Ordering::SeqCst);
        self.drop_all();
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.shared.down.store(false, Ordering::SeqCst);
    }

    /// Cuts every connection once.
    pub fn drop_all(&self) {
        let mut connections = self
            .shared
            .connections
            .lock()
            .expect("nobody panics with it");
        for connection in connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Holds each chunk up for so long.
    pub fn slow(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).expect("a short time");
        self.shared.delay.store(millis, Ordering::SeqCst);
    }
}

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be shared");
        let mut connections = self.connections.lock().expect("nobody panics with it");
        connections.extend([copy(&client), copy(&server)]);
        for (from, to) in [(copy(&client), copy(&server)), (server, client)] {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(from, to));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
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

/// Reads the head of a request, and answers it.
fn say(mut client: TcpStream, head: &str) {
    let mut asked = Vec::new();
    let mut chunk = [0; 1024];
    while !asked.windows(4).any(|four| four == b"\r\n\r\n") {
        match client.read(&mut chunk) {
            Ok(n @ 1..) => asked.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    let _ = write!(
        client,
        "HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}
