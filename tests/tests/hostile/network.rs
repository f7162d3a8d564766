//! A network that nobody else is in: a name server whose answers flip, addresses that stand for the internet, and traps
//! where nothing may ever connect to.

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

/// Stands for a server of the internet: anything that is public will do, for it leads nowhere else.
pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
/// Addresses that are not public, on this machine.
const PRIVATE: [Ipv4Addr; 3] = [
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(10, 1, 2, 3),
    Ipv4Addr::new(169, 254, 169, 254),
];

/// The address with the port of HTTPS.
pub(crate) fn public() -> SocketAddr {
    SocketAddr::from((PUBLIC, 443))
}

/// Brings the network up, and lets this machine ask the name server here and trust the certificate's issuer. Only for
/// processes in namespaces of their own.
pub(crate) fn set_up(folder: &Path, authority: &str) {
    for address in [PUBLIC].iter().chain(&PRIVATE[1..]) {
        ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    ip(&["link", "set", "lo", "up"]);
    let over = |name: &str, text: &str, path: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).unwrap();
        let mut mount = Command::new("mount");
        run(mount.arg("--bind").arg(&file).arg(path));
    };
    over(
        "resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n",
        "/etc/resolv.conf",
    );
    over(
        "authorities.pem",
        authority,
        "/etc/ssl/certs/ca-certificates.crt",
    );
}

fn ip(arguments: &[&str]) {
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

/// A server's certificate for all names of the test, and who issued it.
pub(crate) fn certificates() -> (Arc<ServerConfig>, String) {
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

/// Counts who comes to an address where nobody may.
pub(crate) fn traps() -> Arc<AtomicUsize> {
    let came = Arc::new(AtomicUsize::new(0));
    let addresses = PRIVATE
        .iter()
        .map(|address| IpAddr::V4(*address))
        .chain([IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)]);
    for address in addresses {
        for port in [22, 80, 443, 5000, 9418] {
            let listener = TcpListener::bind((address, port)).unwrap();
            let came = Arc::clone(&came);
            thread::spawn(move || {
                for _ in listener.incoming() {
                    came.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    }
    came
}

/// Answers for addresses of names: `private-N...` is one of the private ones, `both...` is public and private at once,
/// `flip...` is public when it is asked for first and this machine ever after, and everything else is public.
pub(crate) fn name_server() {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    let asked: Mutex<HashMap<String, u32>> = Mutex::default();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Some((name, kind, end)) = question(&buffer[..length]) else {
                continue;
            };
            let addresses = match kind {
                1 => addresses(&name, &mut asked.lock().unwrap()),
                // There are no addresses of version 6.
                _ => Vec::new(),
            };
            let mut answer = buffer[..2].to_vec();
            let count = u8::try_from(addresses.len()).unwrap();
            answer.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
            answer.extend(&buffer[12..end]);
            for address in addresses {
                // The name as in the question; A, IN, not to be kept.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(address.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

fn addresses(name: &str, asked: &mut HashMap<String, u32>) -> Vec<Ipv4Addr> {
    let count = asked.entry(name.to_owned()).or_default();
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

/// The name and the type that are asked for, and where the question ends (RFC 1035, 4.1.2).
fn question(message: &[u8]) -> Option<(String, u16, usize)> {
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
