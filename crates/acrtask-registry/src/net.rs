//! HTTP client with a guard for the addresses of connections and the targets of redirects.
//!
//! Invariants:
//! - Under [`AddressPolicy::PublicOnly`], the client connects only to the address that it checked.
//!   The resolver of the connector checks it. A name is therefore resolved once per connection, and
//!   cannot change afterwards.
//! - The client checks each hop of a redirect again.
//! - Under that policy the client uses no proxy, because a proxy resolves names on its own.
//! - A redirect never leads from https to http.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use url::{Host, Url};

/// Maximum wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum silence of a server during a response.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of hops of a redirect.
const MAX_REDIRECTS: usize = 5;

/// Addresses that a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressPolicy {
    /// All addresses. The operator named the host.
    #[default]
    Any,
    /// All addresses except those of metadata services, which give a cloud machine its secrets. A
    /// person whom the operator need not trust named the host, which may be in a private network.
    /// The client uses a proxy from the environment.
    NoMetadata,
    /// Public addresses only: no private, loopback, link-local (metadata services) or other special
    /// address. The host comes from a source that the operator need not trust, such as a task file.
    PublicOnly,
    /// Public addresses only, but through a proxy from the environment. For addresses that a public
    /// server named, if the operator's policy allows the proxy.
    PublicByProxy,
}

impl AddressPolicy {
    /// Returns `true` if a client may connect to `address`.
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::NoMetadata => !is_metadata(address),
            Self::PublicOnly | Self::PublicByProxy => is_public(address),
        }
    }
}

/// Address that the policy refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, which is not a public address")]
pub struct ForbiddenAddress {
    /// Host, as the caller named it.
    pub host: String,
    /// Resolved address.
    pub address: IpAddr,
}

/// Installs ring as the TLS provider of the process, unless the process has one. Every constructor
/// of this module calls it. Other users of rustls may call it repeatedly.
pub fn install_crypto_provider() {
    // An error means that the process already has a provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Creates a client under `policy`. It follows redirects if `follow` is set.
///
/// # Errors
/// The platform's certificates cannot be loaded.
pub fn client(policy: AddressPolicy, follow: bool) -> Result<reqwest::Client, reqwest::Error> {
    builder(policy, follow).read_timeout(READ_TIMEOUT).build()
}

/// Creates a client for long uploads, without a read timeout. `reqwest` counts the time of an
/// upload as silence of the server. The caller has its own limit. The client follows no redirects.
pub(crate) fn uploading_client(policy: AddressPolicy) -> Result<reqwest::Client, reqwest::Error> {
    builder(policy, false).build()
}

/// Returns the builder of [`client`], without its read timeout, for callers with their own
/// settings.
#[allow(
    clippy::disallowed_methods,
    reason = "the client for all requests to checked addresses"
)]
pub fn builder(policy: AddressPolicy, follow: bool) -> reqwest::ClientBuilder {
    install_crypto_provider();
    let redirects = if follow {
        redirect::Policy::custom(move |attempt| {
            match check_redirect(policy, attempt.previous(), attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(reason) => attempt.error(reason),
            }
        })
    } else {
        redirect::Policy::none()
    };
    let builder = reqwest::Client::builder()
        .user_agent(concat!("acrtask/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        // The address of a redirected download is often signed. It is therefore a secret.
        .referer(false)
        .redirect(redirects);
    match policy {
        AddressPolicy::Any => builder,
        AddressPolicy::NoMetadata | AddressPolicy::PublicByProxy => {
            builder.dns_resolver(Arc::new(GuardedResolver(policy)))
        }
        AddressPolicy::PublicOnly => builder
            .no_proxy()
            .dns_resolver(Arc::new(GuardedResolver(policy))),
    }
}

/// Checks that a client may follow a redirect from the end of `previous` to `next`.
fn check_redirect(policy: AddressPolicy, previous: &[Url], next: &Url) -> Result<(), String> {
    match previous.last() {
        Some(from) => check_hop(policy, previous.len(), from, next),
        None => Ok(()),
    }
}

/// Checks a redirect from `from` to `next`. Refuses it if it exceeds the limit of hops, leaves TLS,
/// or leads to an address that `policy` does not allow. `hops` is its number within the request.
///
/// # Errors
/// A sentence with the reason.
pub fn check_hop(policy: AddressPolicy, hops: usize, from: &Url, next: &Url) -> Result<(), String> {
    if hops > MAX_REDIRECTS {
        return Err(format!("more than {MAX_REDIRECTS} redirects"));
    }
    let was_https = from.scheme() == "https";
    match next.scheme() {
        "https" => {}
        "http" if !was_https => {}
        "http" => return Err("it redirects from https to http".into()),
        other => return Err(format!("it redirects to `{other}:`")),
    }
    check_literal(policy, next).map_err(|error| format!("it redirects, and {error}"))
}

/// Refuses a URL whose host is an address that `policy` does not allow. The resolver checks names,
/// but addresses do not pass a resolver. A caller that sends a request under a policy therefore
/// calls this function for its first URL.
///
/// # Errors
/// [`ForbiddenAddress`].
pub fn check_literal(policy: AddressPolicy, url: &Url) -> Result<(), ForbiddenAddress> {
    let address = match url.host() {
        Some(Host::Ipv4(v4)) => IpAddr::V4(v4),
        Some(Host::Ipv6(v6)) => IpAddr::V6(v6),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    if !policy.allows(address) {
        return Err(ForbiddenAddress {
            host: url.host_str().unwrap_or_default().to_owned(),
            address,
        });
    }
    Ok(())
}

/// Resolves `host` once. Returns the addresses only if all of them are public, because a name with
/// a private address is not trustworthy.
///
/// # Errors
/// [`ForbiddenAddress`], or the error of the system's resolver.
pub async fn resolve_public(
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
    resolve(AddressPolicy::PublicOnly, host, port).await
}

async fn resolve(
    policy: AddressPolicy,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    for address in &addresses {
        if !policy.allows(address.ip()) {
            return Err(Box::new(ForbiddenAddress {
                host: host.to_owned(),
                address: address.ip(),
            }));
        }
    }
    Ok(addresses)
}

/// Resolver of the connector under a policy.
struct GuardedResolver(AddressPolicy);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0;
        Box::pin(async move {
            let addresses = resolve(policy, name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Returns `true` if a metadata service, which gives a cloud machine its secrets, may have this
/// address. These are the link-local addresses, and a few others that clouds use.
pub fn is_metadata(address: IpAddr) -> bool {
    let v4 = |v4: Ipv4Addr| {
        v4.is_link_local()
            || [
                Ipv4Addr::new(100, 100, 100, 200), // Alibaba
                Ipv4Addr::new(168, 63, 129, 16),   // Azure's host
                Ipv4Addr::new(192, 0, 0, 192),     // Oracle
            ]
            .contains(&v4)
    };
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(v6) => {
            let s = v6.segments();
            let embedded = if let Some(mapped) = v6.to_ipv4_mapped() {
                Some(mapped)
            } else if s[0] == 0x64 && s[1] == 0xff9b && s[2..6] == [0; 4] {
                Some(embedded_v4(s[6], s[7]))
            } else if s[0] == 0x2002 {
                Some(embedded_v4(s[1], s[2]))
            } else {
                None
            };
            (s[0] & 0xffc0) == 0xfe80
                || (s[0] == 0xfd00 && s[1] == 0xec2) // Amazon
                || embedded.is_some_and(v4)
        }
    }
}

/// Returns `true` if the address is publicly reachable. Excludes the blocks of the IANA
/// special-purpose registries (RFC 6890 and its successors), multicast, and IPv6 addresses that
/// contain a special IPv4 address.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    !(a == 0                                   // this network
        || v4.is_private()
        || (a == 100 && (b & 0xc0) == 64)      // carrier-grade NAT; some clouds' metadata
        || v4.is_loopback()
        || v4.is_link_local()                  // 169.254.169.254: metadata
        || (a == 192 && b == 0 && c == 0)      // protocol assignments
        || v4.is_documentation()
        || (a == 192 && b == 88 && c == 99)    // 6to4 relays
        || (a == 198 && (b & 0xfe) == 18)      // benchmarks
        || v4 == Ipv4Addr::new(168, 63, 129, 16) // Azure's host, from inside a virtual machine
        || a >= 224) // multicast, reserved, broadcast
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let s = v6.segments();
    if let Some(v4) = v6.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    // NAT64 (64:ff9b::/96) and 6to4 (2002::/16) contain an IPv4 address.
    if s[0] == 0x64 && s[1] == 0xff9b && s[2..6] == [0; 4] {
        return is_public_v4(embedded_v4(s[6], s[7]));
    }
    if s[0] == 0x2002 {
        return is_public_v4(embedded_v4(s[1], s[2]));
    }
    // IANA assigns only 2000::/3. This block contains protocol assignments and documentation.
    (s[0] & 0xe000) == 0x2000
        && !(s[0] == 0x2001 && s[1] < 0x200)
        && !(s[0] == 0x2001 && s[1] == 0xdb8)
        && !(s[0] == 0x3fff && s[1] < 0x1000)
}

fn embedded_v4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))
}

/// Returns `true` if `host` (a name or an address, without a port) can only mean this machine.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_public_excludes_special_addresses() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("1.1.1.1", true),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("100.64.0.1", false),
            ("100.100.100.200", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.0.0.192", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("168.63.129.16", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700::1", true),
            ("::", false),
            ("::1", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("::7f00:1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::808:808", true),
            ("2002:7f00:1::", false),
            ("2001:db8::1", false),
            ("2001::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[test]
    fn no_metadata_policy_refuses_metadata_services() {
        for (address, allowed) in [
            ("10.1.2.3", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("fd00::1", true),
            ("8.8.8.8", true),
            ("169.254.169.254", false),
            ("169.254.170.2", false),
            ("::ffff:169.254.169.254", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:a9fe:a9fe::", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("100.100.100.200", false),
            ("168.63.129.16", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(
                AddressPolicy::NoMetadata.allows(address),
                allowed,
                "{address}"
            );
            assert!(AddressPolicy::Any.allows(address));
        }
        let metadata = Url::parse("http://169.254.169.254/v2/").unwrap();
        let error = check_literal(AddressPolicy::NoMetadata, &metadata).unwrap_err();
        assert!(
            error.to_string().contains("not a public address"),
            "{error}"
        );
    }

    #[test]
    fn check_redirect_applies_the_policy_to_each_hop() {
        let url = |text: &str| Url::parse(text).unwrap();
        let from = [url("https://example.com/a")];
        for (next, policy, ok) in [
            ("https://other.example/b", AddressPolicy::PublicOnly, true),
            ("http://other.example/b", AddressPolicy::Any, false),
            ("file:///etc/passwd", AddressPolicy::Any, false),
            ("https://127.0.0.1/b", AddressPolicy::Any, true),
            ("https://127.0.0.1/b", AddressPolicy::PublicOnly, false),
            ("https://[::1]/b", AddressPolicy::PublicOnly, false),
            // The URL parser normalizes spellings that evade a naive check.
            ("https://2130706433/", AddressPolicy::PublicOnly, false),
            ("https://0x7f.1/", AddressPolicy::PublicOnly, false),
            (
                "https://0251.0376.0251.0376/",
                AddressPolicy::PublicOnly,
                false,
            ),
        ] {
            assert_eq!(
                check_redirect(policy, &from, &url(next)).is_ok(),
                ok,
                "{next}"
            );
        }
        let many = vec![url("https://example.com/a"); MAX_REDIRECTS + 1];
        assert!(check_redirect(AddressPolicy::Any, &many, &from[0]).is_err());
    }

    #[tokio::test]
    async fn connector_refuses_a_name_with_a_private_address() {
        let client = client(AddressPolicy::PublicOnly, true).unwrap();
        let error = client.get("http://localhost:1/").send().await.unwrap_err();
        let mut text = String::new();
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = source {
            text += &error.to_string();
            source = error.source();
        }
        assert!(text.contains("not a public address"), "{text}");
    }
}
