//! Sign-in, sign-out and the end of sessions.

use acrtask_api::admin::Scope;
use axum::{
    body::Body,
    http::{Method, StatusCode, header},
};

use super::{HOST, PageServer, cookie_of, target_of};
use crate::{
    Config,
    api::testing::{NOW, TestServer},
    auth,
};

#[tokio::test]
async fn sign_in_leads_to_the_requested_page() {
    let server = PageServer::start().await;
    let refused = server.get("/runs?state=failed&task=a", None).await;
    let target = "/sign-in?next=%2Fruns%3Fstate%3Dfailed%26task%3Da";
    assert_eq!(target_of(&refused), target);

    let form = server.get(target, None).await;
    assert_eq!(form.status, StatusCode::OK);
    let next = "name=\"next\" value=\"/runs?state=failed&#38;task=a\"";
    assert!(form.text().contains(next), "{}", form.text());

    let token = &server.server.admin;
    let form = format!("next=%2Fruns%3Fstate%3Dfailed%26task%3Da&token=%20{token}%20");
    let signed_in = server.post("/sign-in", &form, None).await;
    assert_eq!(target_of(&signed_in), "/runs?state=failed&task=a");
    let set = signed_in.headers[header::SET_COOKIE].to_str().unwrap();
    let attributes: Vec<&str> = set.split("; ").skip(1).collect();
    assert_eq!(
        attributes,
        ["Path=/", "Max-Age=604800", "HttpOnly", "SameSite=Lax"]
    );
    let cookie = cookie_of(&signed_in);
    assert!(cookie.starts_with("acrtask="), "{cookie}");
    let page = server.expect_page("/runs", &cookie).await;
    assert!(page.contains("<bdi>admin</bdi>"), "{page}");
    let me = server.expect_page("/me", &cookie).await;
    assert!(me.contains("<dt>Scopes</dt><dd>admin</dd>"), "{me}");
}

#[tokio::test]
async fn sign_in_leads_to_no_other_server() {
    let server = PageServer::start().await;
    let token = &server.server.admin;
    for next in [
        "https%3A%2F%2Fevil.example",
        "%2F%2Fevil.example",
        "%2F%5Cevil.example",
        "%2F.%2F%2Fevil.example",
        "%2Fa%2F..%2F%2Fevil.example",
        "",
    ] {
        let form = format!("token={token}&next={next}");
        let response = server.post("/sign-in", &form, None).await;
        assert_eq!(target_of(&response), "/", "{next}");
        let form = server.get(&format!("/sign-in?next={next}"), None).await;
        assert!(!form.text().contains("evil"), "{next}");
    }
}

#[tokio::test]
async fn wrong_token_is_refused_and_limited() {
    let server = PageServer::start().await;
    let unknown = auth::new_token().text.0;
    for token in [unknown.as_str(), "", "x"] {
        let form = format!("token={token}&next=%2Fruns");
        let response = server.post("/sign-in", &form, None).await;
        assert_eq!(response.status, StatusCode::UNAUTHORIZED);
        assert!(!response.headers.contains_key(header::SET_COOKIE));
        let text = response.text();
        assert!(
            text.contains("the token is wrong, expired or revoked"),
            "{text}"
        );
        assert!(text.contains("value=\"/runs\""), "{text}");
        assert!(token.is_empty() || token == "x" || !text.contains(token));
    }
    let mut status = StatusCode::UNAUTHORIZED;
    for _ in 0..200 {
        status = server.post("/sign-in", "token=x", None).await.status;
        if status == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
    }
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn session_ends_at_sign_out() {
    let server = PageServer::start().await;
    let cookie = server.sign_in_as_admin().await;
    server.expect_page("/", &cookie).await;
    let response = server.post("/sign-out", "", Some(&cookie)).await;
    assert_eq!(target_of(&response), "/sign-in");
    let set = response.headers[header::SET_COOKIE].to_str().unwrap();
    assert!(set.starts_with("acrtask=; Path=/; Max-Age=0"), "{set}");
    assert_eq!(
        target_of(&server.get("/", Some(&cookie)).await),
        "/sign-in?next=%2F"
    );
}

#[tokio::test]
async fn session_ends_after_idle_time_and_after_its_longest_time() {
    let server = PageServer::start().await;
    let clock = &server.server.app.clock;
    let used = server.sign_in_as_admin().await;
    let idle = server.sign_in_as_admin().await;
    let mut now = NOW;
    loop {
        now += auth::IDLE_MS - 1000;
        clock.set(now);
        if now >= NOW + auth::MAX_SESSION_MS {
            break;
        }
        server.expect_page("/", &used).await;
    }
    target_of(&server.get("/", Some(&used)).await);
    clock.set(NOW + auth::IDLE_MS);
    target_of(&server.get("/", Some(&idle)).await);
    clock.set(NOW + auth::IDLE_MS - 1);
    server.expect_page("/", &idle).await;
}

#[tokio::test]
async fn session_ends_with_its_token() {
    let server = PageServer::start().await;
    let store = &server.server.app.store;
    let token = server.server.create_token(&[Scope::Read], None).await;
    let cookie = server.sign_in(&token).await;
    server.expect_page("/", &cookie).await;
    let (id, _) = auth::parse_token(&token).unwrap();
    store.revoke_token(id).await.unwrap();
    target_of(&server.get("/", Some(&cookie)).await);

    let body = serde_json::json!({"name": "short", "scopes": ["read"], "ttlSecs": 60});
    let short = server.server.post("/tokens", body).await;
    let short: serde_json::Value = short.json(StatusCode::CREATED);
    let cookie = server.sign_in(short["secret"].as_str().unwrap()).await;
    server.server.app.clock.set(NOW + 59_000);
    server.expect_page("/", &cookie).await;
    server.server.app.clock.set(NOW + 60_000);
    target_of(&server.get("/", Some(&cookie)).await);
}

#[tokio::test]
async fn forms_of_other_sites_are_refused() {
    let server = PageServer::start().await;
    let cookie = server.sign_in_as_admin().await;
    let token = &server.server.admin;
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("accept", "text/html"),
    ] {
        for path in ["/sign-in", "/sign-out"] {
            let request = PageServer::request(Method::POST, path, Some(&cookie))
                .header(name, value)
                .body(Body::from(format!("token={token}")));
            let response = server.server.send(request.unwrap()).await;
            assert_eq!(response.status, StatusCode::FORBIDDEN, "{path} {value}");
            assert!(!response.headers.contains_key(header::SET_COOKIE));
        }
    }
    let request = PageServer::request(Method::POST, "/sign-out", Some(&cookie))
        .header("origin", format!("http://{HOST}"))
        .body(Body::empty());
    server.expect_page("/", &cookie).await;
    target_of(&server.server.send(request.unwrap()).await);
}

#[tokio::test]
async fn cookie_opens_nothing_of_the_api() {
    let server = PageServer::start().await;
    let cookie = server.sign_in_as_admin().await;
    let request = PageServer::request(Method::GET, "/api/v1/runs", Some(&cookie));
    let response = server
        .server
        .send(request.body(Body::empty()).unwrap())
        .await;
    response.problem(StatusCode::UNAUTHORIZED);
    // A token in a header opens no page either.
    let request = PageServer::request(Method::GET, "/runs", None).header(
        header::AUTHORIZATION,
        format!("Bearer {}", server.server.admin),
    );
    let response = server
        .server
        .send(request.body(Body::empty()).unwrap())
        .await;
    assert_eq!(target_of(&response), "/sign-in?next=%2Fruns");
}

#[tokio::test]
async fn cookie_over_tls_has_the_host_prefix() {
    let config = || Config {
        public_url: Some("https://build.example.com".parse().unwrap()),
        ..Config::default()
    };
    for (config, tls) in [(Config::default(), true), (config(), false)] {
        let server = PageServer::with(config, tls).await;
        let form = format!("token={}", server.server.admin);
        let response = server.post("/sign-in", &form, None).await;
        let set = response.headers[header::SET_COOKIE].to_str().unwrap();
        assert!(set.starts_with("__Host-acrtask="), "{set}");
        assert!(set.ends_with("; Secure"), "{set}");
        let cookie = cookie_of(&response);
        server.expect_page("/", &cookie).await;
        let stripped = cookie.replace("__Host-", "");
        target_of(&server.get("/", Some(&stripped)).await);
    }
}

#[tokio::test]
async fn sign_in_without_tls_is_refused_beyond_loopback() {
    let config = Config {
        public_url: Some("http://build.example.com".parse().unwrap()),
        ..Config::default()
    };
    let server = PageServer::with(config, false).await;
    let request = axum::http::Request::post("/sign-in")
        .header(header::HOST, "build.example.com")
        .header("sec-fetch-site", "same-origin")
        .body(Body::from(format!("token={}", server.server.admin)));
    let response = server.server.send(request.unwrap()).await;
    assert_eq!(response.status, StatusCode::FORBIDDEN);
    assert!(response.text().contains("signing in needs TLS"));
    assert!(!response.headers.contains_key(header::SET_COOKIE));
}

#[tokio::test]
async fn sign_in_over_plain_http_beside_the_proxy_is_refused() {
    let config = Config {
        public_url: Some("https://build.example.com".parse().unwrap()),
        ..Config::default()
    };
    let listener = crate::page::Listener {
        address: "0.0.0.0:7070".parse().unwrap(),
        tls: false,
    };
    let mut server = TestServer::with(config).await;
    server.router = crate::page::router(server.app.clone(), listener);
    let public = "https://build.example.com";
    for (host, origin, status) in [
        ("10.0.0.5:7070", None, StatusCode::FORBIDDEN),
        (
            "10.0.0.5:7070",
            Some("http://10.0.0.5:7070"),
            StatusCode::FORBIDDEN,
        ),
        (
            "build.example.com",
            Some("http://build.example.com"),
            StatusCode::FORBIDDEN,
        ),
        ("build.example.com:7070", None, StatusCode::FORBIDDEN),
        ("build.example.com", None, StatusCode::SEE_OTHER),
        ("build.example.com", Some(public), StatusCode::SEE_OTHER),
        // A proxy that rewrites the host.
        ("10.0.0.5:7070", Some(public), StatusCode::SEE_OTHER),
        ("127.0.0.1:7070", None, StatusCode::SEE_OTHER),
    ] {
        let mut request = axum::http::Request::post("/sign-in")
            .header(header::HOST, host)
            .header("sec-fetch-site", "same-origin");
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        let body = Body::from(format!("token={}", server.admin));
        let response = server.send(request.body(body).unwrap()).await;
        assert_eq!(response.status, status, "{host} {origin:?}");
    }
}

#[tokio::test]
async fn token_has_a_bounded_number_of_sessions() {
    let server = PageServer::start().await;
    let clock = &server.server.app.clock;
    let token = server.server.create_token(&[Scope::Read], None).await;
    let other = server.sign_in_as_admin().await;
    let mut cookies = Vec::new();
    for at in 0..25 {
        clock.set(NOW + at);
        cookies.push(server.sign_in(&token).await);
    }
    let (ended, kept) = cookies.split_at(5);
    for cookie in ended {
        target_of(&server.get("/", Some(cookie)).await);
    }
    for cookie in kept.iter().chain([&other]) {
        server.expect_page("/", cookie).await;
    }
}

#[tokio::test]
async fn sign_in_is_refused_below_the_floor_of_disk() {
    let folder = tempfile::tempdir().unwrap();
    let floor = crate::floor::DiskFloor {
        bytes: u64::MAX,
        folders: vec![folder.path().to_owned()],
    };
    let config = Config {
        floor,
        ..Config::default()
    };
    let server = PageServer::with(config, false).await;
    let form = format!("token={}", server.server.admin);
    let response = server.post("/sign-in", &form, None).await;
    assert_eq!(response.status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(!response.headers.contains_key(header::SET_COOKIE));
    assert!(response.text().contains("--min-free-disk"));
}

#[tokio::test]
async fn foreign_host_names_are_refused() {
    let server = PageServer::start().await;
    let cookie = server.sign_in_as_admin().await;
    for host in [
        "evil.example",
        "127.0.0.1.evil.example:7070",
        "10.0.0.5",
        "user@127.0.0.1:7070",
    ] {
        let request = axum::http::Request::get("/")
            .header(header::HOST, host)
            .header(header::COOKIE, &cookie)
            .body(Body::empty());
        let response = server.server.send(request.unwrap()).await;
        assert_eq!(response.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
    }
    // The API has no cookie to protect, so it accepts every name.
    let request = TestServer::request(Method::GET, "/me", Some(&server.server.admin), None);
    let response = server.server.send(request).await;
    assert_eq!(response.status, StatusCode::OK);
}
