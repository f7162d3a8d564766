//! Client addresses, taken from the connection or from a trusted proxy.
//!
//! Invariant: a header counts only if the connection comes from a trusted proxy. Of its addresses,
//! only the rightmost one that is not a trusted proxy counts, because a client can forge everything
//! left of it.

use std::{fmt, net::IpAddr, str::FromStr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .or_else(|_| text.parse::<IpNet>());
        match parsed {
            Ok(network) => Ok(Self(network)),
            Err(_) => Err(format!(
                "`{}` is not a range of addresses; write one like 10.0.0.0/8 or 10.1.2.3",
                text.escape_debug()
            )),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns `true` if `address` is a trusted proxy.
pub(super) fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(address))
}

/// Returns the client address that limits count a request under.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let by_list = parse_hops(headers, "x-forwarded-for", |part| Some(part.trim()));
    let by_forwarded = parse_hops(headers, "forwarded", forwarded_for);
    let found = |hops: &[Option<IpAddr>]| rightmost_untrusted(peer, hops, trusted);
    match (by_list.is_empty(), by_forwarded.is_empty()) {
        (true, true) => peer,
        (false, true) => found(&by_list),
        (true, false) => found(&by_forwarded),
        // The proxy sets one of the headers and forwards the other unchanged from the client.
        (false, false) if found(&by_list) == found(&by_forwarded) => found(&by_list),
        (false, false) => peer,
    }
}

/// Returns the addresses in all lines of a header, in order. An entry that is not an address is
/// `None`.
fn parse_hops(
    headers: &HeaderMap,
    name: &'static str,
    entry: impl Fn(&str) -> Option<&str>,
) -> Vec<Option<IpAddr>> {
    headers
        .get_all(HeaderName::from_static(name))
        .iter()
        .flat_map(|line| line.to_str().unwrap_or("").split(','))
        .map(|part| entry(part).and_then(parse_node))
        .collect()
}

/// Returns the `for` parameter of one element of a `Forwarded` header.
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| value.trim().trim_matches('"'))
    })
}

/// Parses `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]` and `[::1]:80`.
fn parse_node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').map_or(text, |rest| {
        rest.split_once(']').map_or(text, |(address, _)| address)
    });
    bare.parse()
        .ok()
        .or_else(|| {
            bare.rsplit_once(':')
                .and_then(|(host, _)| host.parse().ok())
        })
        .map(|address: IpAddr| address.to_canonical())
}

fn rightmost_untrusted(peer: IpAddr, hops: &[Option<IpAddr>], trusted: &[Network]) -> IpAddr {
    let mut last = peer;
    for hop in hops.iter().rev() {
        match hop {
            Some(address) if is_trusted(*address, trusted) => last = *address,
            Some(address) => return *address,
            None => return last,
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        for (peer, header, value, expected) in [
            ("10.0.0.1", "x-forwarded-for", "192.0.2.7", "192.0.2.7"),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "8.8.8.8, 192.0.2.7",
                "192.0.2.7",
            ),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "192.0.2.7, 10.9.9.9",
                "192.0.2.7",
            ),
            ("10.0.0.1", "x-forwarded-for", "192.0.2.7:4711", "192.0.2.7"),
            ("10.0.0.1", "x-forwarded-for", "8.8.8.8, junk", "10.0.0.1"),
            ("10.0.0.1", "x-forwarded-for", "10.1.1.1", "10.1.1.1"),
            ("192.0.2.1", "x-forwarded-for", "8.8.8.8", "192.0.2.1"),
            (
                "::ffff:10.0.0.1",
                "x-forwarded-for",
                "192.0.2.7",
                "192.0.2.7",
            ),
            (
                "::1",
                "forwarded",
                "for=8.8.8.8, For=\"[2001:db8::7]:1\";proto=https",
                "2001:db8::7",
            ),
            ("::1", "forwarded", "for=_hidden", "::1"),
            ("10.0.0.1", "x-other", "8.8.8.8", "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header, value.parse().unwrap());
            let found = client_address(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(found.to_string(), expected, "{peer} {header}: {value}");
        }
    }

    #[test]
    fn contradicting_headers_are_ignored() {
        let trusted = ["10.0.0.1".parse().unwrap()];
        let mut headers = HeaderMap::new();
        headers.insert("forwarded", "for=192.0.2.7".parse().unwrap());
        headers.insert("x-forwarded-for", "8.8.8.8".parse().unwrap());
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(client_address(peer, &headers, &trusted), peer);
    }

    #[test]
    fn invalid_range_is_named_with_an_example() {
        let error = "10.0.0.0/40".parse::<Network>().unwrap_err();
        assert!(
            error.contains("10.0.0.0/40") && error.contains("10.0.0.0/8"),
            "{error}"
        );
    }
}
