//! Checks of every request of the page, and headers of every response.
//!
//! The host name must be one of the server's, so that a foreign name that resolves to this server
//! (DNS rebinding) reaches no page. A request that changes something must come from a page of this
//! server.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use url::Url;

use super::{Listener, PageError, Site};
use crate::api::ApiError;

/// Content security policy of every response that has no own one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; worker-src 'self'; manifest-src 'self'; form-action 'self'; \
    base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
    trusted-types acrtask";

/// Headers of every response that does not set them.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// Checks a request, and adds the headers to its response.
pub(super) async fn check(State(site): State<Site>, request: Request, next: Next) -> Response {
    let mut response = match check_request(&site, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => PageError::from(error).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

fn check_request(site: &Site, request: &Request) -> Result<(), ApiError> {
    let public = site.app().config.public_url.as_ref();
    let host = requested_host(request.uri().authority(), request.headers());
    let own = host
        .as_ref()
        .is_some_and(|host| is_own_host(host.host(), site.listener, public));
    let Some(host) = host.filter(|_| own) else {
        return Err(ApiError::with_code(
            StatusCode::MISDIRECTED_REQUEST,
            "host",
            "this server does not have the requested host name",
        )
        .help("start the server with `--public-url` for another name than its address"));
    };
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_same_origin(request.headers(), &host, public) {
        return Err(
            ApiError::forbidden("the form was not sent by a page of this server")
                .help("open the page of this server and send the form there"),
        );
    }
    Ok(())
}

/// Returns the host that a request names: the authority of HTTP/2, or the `Host` header. `None` if
/// it names none or several, or has the name of a user.
pub(crate) fn requested_host(
    authority: Option<&Authority>,
    headers: &HeaderMap,
) -> Option<Authority> {
    let mut hosts = authority.cloned().into_iter().collect::<Vec<_>>();
    for host in headers.get_all(header::HOST) {
        hosts.push(host.to_str().ok()?.parse().ok()?);
    }
    let first = hosts.pop()?;
    let is_clear = !first.as_str().contains('@') && hosts.iter().all(|host| *host == first);
    is_clear.then_some(first)
}

/// Returns `true` if a form comes from a page at the public URL: by its `Origin`, or without that
/// header by the requested host.
pub(super) fn is_public_origin(
    headers: &HeaderMap,
    host: Option<&Authority>,
    public: &Url,
) -> bool {
    if let Some(origin) = headers.get(header::ORIGIN) {
        return *origin == public.origin().ascii_serialization();
    }
    let requested = host.and_then(|host| Url::parse(&format!("{}://{host}", public.scheme())).ok());
    requested.is_some_and(|requested| requested.origin() == public.origin())
}

/// Returns `true` for `localhost` and loopback addresses.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || parse_ip(host).is_some_and(|ip| ip.is_loopback())
}

fn parse_ip(host: &str) -> Option<IpAddr> {
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.parse().ok()
}

fn is_own_host(host: &str, listener: Listener, public: Option<&Url>) -> bool {
    let listen = listener.address.ip();
    is_loopback(host)
        // An address is not subject to DNS rebinding.
        || parse_ip(host).is_some_and(|ip| listen.is_unspecified() || ip == listen)
        || public
            .and_then(Url::host_str)
            .is_some_and(|name| name.eq_ignore_ascii_case(host))
}

fn is_same_origin(headers: &HeaderMap, host: &Authority, public: Option<&Url>) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let origin = headers.get(header::ORIGIN);
    let Some(origin) = origin.and_then(|origin| origin.to_str().ok()) else {
        return false;
    };
    // A proxy that rewrites `Host` leaves the public name in `Origin`.
    if public.is_some_and(|public| public.origin().ascii_serialization() == origin) {
        return true;
    }
    let Ok(origin) = Url::parse(origin) else {
        return false;
    };
    let scheme = origin.scheme();
    let requested = Url::parse(&format!("{scheme}://{host}"));
    matches!(scheme, "http" | "https")
        && requested.is_ok_and(|requested| requested.origin() == origin.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str) -> Listener {
        Listener {
            address: address.parse().unwrap(),
            tls: false,
        }
    }

    #[test]
    fn only_own_host_names_are_accepted() {
        let public = Url::parse("https://Build.example.com/").unwrap();
        for (host, listen, own) in [
            ("localhost", "127.0.0.1:7070", true),
            ("127.8.8.8", "127.0.0.1:7070", true),
            ("[::1]", "127.0.0.1:7070", true),
            ("10.0.0.5", "10.0.0.5:7070", true),
            ("10.0.0.6", "10.0.0.5:7070", false),
            ("10.0.0.6", "0.0.0.0:7070", true),
            ("build.example.com", "127.0.0.1:7070", true),
            ("evil.example", "0.0.0.0:7070", false),
            ("localhost.evil.example", "127.0.0.1:7070", false),
            ("127.0.0.1.evil.example", "127.0.0.1:7070", false),
        ] {
            assert_eq!(
                is_own_host(host, listener(listen), Some(&public)),
                own,
                "{host} {listen}"
            );
        }
    }

    #[test]
    fn host_is_named_once_and_without_a_user() {
        let requested = |authority: Option<&str>, hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            let authority: Option<Authority> = authority.map(|text| text.parse().unwrap());
            requested_host(authority.as_ref(), &headers).map(|host| host.to_string())
        };
        let own = Some("ci.example.com".to_owned());
        assert_eq!(requested(None, &["ci.example.com"]), own);
        assert_eq!(requested(Some("ci.example.com"), &[]), own);
        assert_eq!(requested(Some("CI.example.com"), &["ci.example.com"]), own);
        for (authority, hosts) in [
            (None, &["user@ci.example.com"][..]),
            (Some("user@ci.example.com"), &[]),
            (Some("ci.example.com"), &["evil.example"]),
            (None, &["ci.example.com", "evil.example"]),
            (None, &[]),
        ] {
            assert_eq!(requested(authority, hosts), None, "{authority:?} {hosts:?}");
        }
    }

    #[test]
    fn only_own_pages_may_send_forms() {
        let public = Url::parse("https://build.example.com").unwrap();
        for (name, value, same) in [
            ("sec-fetch-site", "same-origin", true),
            ("sec-fetch-site", "same-site", false),
            ("sec-fetch-site", "cross-site", false),
            ("sec-fetch-site", "none", false),
            ("origin", "http://127.0.0.1:7070", true),
            ("origin", "http://127.0.0.1:8080", false),
            ("origin", "https://build.example.com", true),
            ("origin", "https://evil.example", false),
            ("origin", "null", false),
            ("accept", "*/*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
            let host: Authority = "127.0.0.1:7070".parse().unwrap();
            let found = is_same_origin(&headers, &host, Some(&public));
            assert_eq!(found, same, "{name}: {value}");
        }
    }
}
