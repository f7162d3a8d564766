//! Isolated network: a name server that changes its answers, addresses that simulate the internet,
//! and traps that must never receive a connection.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};

/// Address of the simulated internet server. Any public address works, because it leads nowhere
/// else.
pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
/// Private addresses, all on this machine.
const PRIVATE: [Ipv4Addr; 3] = [
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(10, 1, 2, 3),
    Ipv4Addr::new(169, 254, 169, 254),
];

/// Returns the public address with the HTTPS port.
pub(crate) fn public_address() -> SocketAddr {
    SocketAddr::from((PUBLIC, 443))
}

/// Configures the network, the name server and the trusted certificate authority. Only for
/// processes in separate namespaces.
pub(crate) fn set_up(folder: &Path, authority: &str) {
    for address in [PUBLIC].iter().chain(&PRIVATE[1..]) {
        run_ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    run_ip(&["link", "set", "lo", "up"]);
    let mount_over = |name: &str, text: &str, path: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).unwrap();
        let mut mount = Command::new("mount");
        run(mount.arg("--bind").arg(&file).arg(path));
    };
    mount_over(
        "resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n",
        "/etc/resolv.conf",
    );
    mount_over(
        "authorities.pem",
        authority,
        "/etc/ssl/certs/ca-certificates.crt",
    );
}

fn run_ip(arguments: &[&str]) {
    let own = ["/usr/sbin/ip", "/sbin/ip"];
    let mut command = match own.iter().find(|path| Path::new(path).exists()) {
        Some(path) => Command::new(path),
        None => {
            let busybox = std::env::var_os("ACRTASK_TEST_BUSYBOX");
            let mut command = Command::new(busybox.expect("ACRTASK_TEST_BUSYBOX"));
            command.arg("ip");
            command
        }
    };
    run(command.args(arguments));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Creates a server certificate for all names of the test. Returns its configuration and the
/// authority in PEM.
pub(crate) fn create_certificates() -> (Arc<ServerConfig>, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["*.hosts.test".into()]).unwrap();
    let server = server.signed_by(&key, &authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], key)
        .unwrap();
    (Arc::new(config), authority.pem())
}

/// Listens on every private address and counts the connections.
pub(crate) fn start_traps() -> Arc<AtomicUsize> {
    let connections = Arc::new(AtomicUsize::new(0));
    let addresses = PRIVATE
        .iter()
        .map(|address| IpAddr::V4(*address))
        .chain([IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)]);
    for address in addresses {
        for port in [22, 80, 443, 5000, 9418] {
            let listener = TcpListener::bind((address, port)).unwrap();
            let connections = Arc::clone(&connections);
            thread::spawn(move || {
                for _ in listener.incoming() {
                    connections.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    }
    connections
}

/// Starts the name server. `private-N...` resolves to a private address, `both...` to a public and
/// a private one. `flip...` resolves to a public address at first and to this machine afterwards.
/// Any other name resolves to a public address.
pub(crate) fn start_name_server() {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    let queries: Mutex<HashMap<String, u32>> = Mutex::default();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Some((name, kind, end)) = parse_question(&buffer[..length]) else {
                continue;
            };
            let addresses = match kind {
                1 => resolve(&name, &mut queries.lock().unwrap()),
                // IPv6 queries get an empty answer.
                _ => Vec::new(),
            };
            let mut answer = buffer[..2].to_vec();
            let count = u8::try_from(addresses.len()).unwrap();
            answer.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
            answer.extend(&buffer[12..end]);
            for address in addresses {
                // Compressed name of the question; type A, class IN, TTL 0.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(address.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

fn resolve(name: &str, queries: &mut HashMap<String, u32>) -> Vec<Ipv4Addr> {
    let count = queries.entry(name.to_owned()).or_default();
    *count += 1;
    if let Some(rest) = name.strip_prefix("private-") {
        let which = rest.bytes().next().map_or(0, |digit| digit - b'0');
        return vec![PRIVATE[usize::from(which)]];
    }
    if name.starts_with("both") {
        return vec![PUBLIC, PRIVATE[0]];
    }
    if name.starts_with("flip") && *count > 1 {
        return vec![PRIVATE[0]];
    }
    vec![PUBLIC]
}

/// Parses the question: its name, its type and its end (RFC 1035, section 4.1.2).
fn parse_question(message: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
    let kind = message.get(at..at + 2)?;
    Some((
        labels.join("."),
        u16::from_be_bytes([kind[0], kind[1]]),
        at + 4,
    ))
}
