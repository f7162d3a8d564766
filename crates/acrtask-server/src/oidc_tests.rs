//! Tests of `oidc.rs`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers};

use super::*;

const NOW: i64 = 1_790_000_000_000;

/// A key pair of an issuer.
struct Pair {
    kid: String,
    key: EncodingKey,
    jwk: Value,
}

impl Pair {
    fn new(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        // Uncompressed: 4, x, y.
        let point = pair.public_key_raw();
        Self {
            kid: kid.into(),
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            jwk: json!({
                "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid,
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
                "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
            }),
        }
    }
}

/// An issuer on this machine.
pub(crate) struct Issuer {
    pub(crate) url: String,
    server: MockServer,
    pair: Pair,
}

impl Issuer {
    pub(crate) async fn start() -> Self {
        let server = MockServer::start().await;
        let issuer = Self {
            url: server.uri(),
            server,
            pair: Pair::new("one"),
        };
        let discovery = json!({
            "issuer": issuer.url,
            "jwks_uri": format!("{}/keys", issuer.url),
        });
        Mock::given(matchers::path("/.well-known/openid-configuration"))
            .respond_with(ResponseTemplate::new(200).set_body_json(discovery))
            .mount(&issuer.server)
            .await;
        // A key of a kind that nobody knows does not hide the others.
        issuer
            .publish(&[json!({"kty": "PQC", "kid": "odd"}), issuer.pair.jwk.clone()])
            .await;
        issuer
    }

    async fn publish(&self, keys: &[Value]) {
        Mock::given(matchers::path("/keys"))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!({ "keys": keys })))
            .up_to_n_times(1000)
            .with_priority(1)
            .mount(&self.server)
            .await;
    }

    async fn asked(&self) -> usize {
        let requests = self.server.received_requests().await.unwrap();
        requests
            .iter()
            .filter(|request| request.url.path() == "/keys")
            .count()
    }

    pub(crate) fn claims(&self, now: i64) -> Value {
        json!({
            "iss": self.url,
            "aud": ["other", "acrtask"],
            "sub": "repo:org/app:ref:refs/heads/main",
            "exp": now / 1000 + 300,
            "nbf": now / 1000,
            "jti": "x",
        })
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        signed(&self.pair, claims)
    }
}

fn signed(pair: &Pair, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(pair.kid.clone());
    jsonwebtoken::encode(&header, claims, &pair.key).unwrap()
}

fn federation(issuer: &str) -> Federation {
    serde_json::from_value(json!({
        "name": "ci",
        "issuer": issuer,
        "audience": "acrtask",
        "subject": "repo:org/app:*",
        "scopes": ["run"],
    }))
    .unwrap()
}

#[tokio::test]
async fn only_what_fits_in_everything_is_taken() {
    let issuer = Issuer::start().await;
    let federations = [
        federation("https://other.example.com"),
        federation(&issuer.url),
    ];
    let issuers = Issuers::default();
    let good = issuer.claims(NOW);
    let token = issuer.token(&good);
    let granted = issuers.verify(&token, &federations, NOW).await.unwrap();
    assert_eq!(granted.federation.issuer, issuer.url);
    assert_eq!(granted.subject, "repo:org/app:ref:refs/heads/main");
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        issuer.token(&claims)
    };
    for (what, token) in [
        ("another audience", with("aud", json!("other"))),
        ("another subject", with("sub", json!("repo:org/app-evil:x"))),
        (
            "another issuer",
            with("iss", json!("https://evil.example.com")),
        ),
        ("expired", with("exp", json!(NOW / 1000 - 31))),
        ("not yet", with("nbf", json!(NOW / 1000 + 31))),
        ("no end", with("exp", Value::Null)),
        ("cut", token[..token.len() - 8].to_owned()),
    ] {
        let refused = issuers.verify(&token, &federations, NOW).await;
        assert!(refused.is_err(), "{what}");
    }
    // Clocks differ a little.
    let late = with("exp", json!(NOW / 1000 - 20));
    issuers.verify(&late, &federations, NOW).await.unwrap();
    assert_eq!(issuer.asked().await, 1, "keys are kept");
}

#[tokio::test]
async fn signatures_that_prove_nothing_are_refused() {
    let issuer = Issuer::start().await;
    let federations = [federation(&issuer.url)];
    let issuers = Issuers::default();
    let claims = issuer.claims(NOW);
    // Signed by somebody else under the same name.
    let forged = signed(&Pair::new("one"), &claims);
    let error = issuers
        .verify(&forged, &federations, NOW)
        .await
        .unwrap_err();
    assert!(matches!(error, ExchangeError::Invalid(_)), "{error}");
    // With the public key as the secret of an HMAC.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("one".into());
    let secret = EncodingKey::from_secret(issuer.pair.jwk.to_string().as_bytes());
    let hmac = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    let error = issuers.verify(&hmac, &federations, NOW).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Unreadable(_)), "{error}");
    // Without any.
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"one"}"#);
    let body = URL_SAFE_NO_PAD.encode(claims.to_string());
    let none = format!("{header}.{body}.");
    let error = issuers.verify(&none, &federations, NOW).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Unreadable(_)), "{error}");
    assert_eq!(
        issuer.asked().await,
        1,
        "the last two are refused before anybody is asked"
    );
}

#[tokio::test]
async fn a_new_key_is_asked_for_once() {
    let issuer = Issuer::start().await;
    let federations = [federation(&issuer.url)];
    let issuers = Issuers::default();
    let claims = issuer.claims(NOW);
    issuers
        .verify(&issuer.token(&claims), &federations, NOW)
        .await
        .unwrap();
    let second = Pair::new("two");
    let token = signed(&second, &claims);
    // Too soon after the last time: whoever makes up names of keys does not make us ask.
    let error = issuers.verify(&token, &federations, NOW).await.unwrap_err();
    insta::assert_snapshot!(error.to_string());
    assert_eq!(issuer.asked().await, 1);
    issuer.server.reset().await;
    let renewed = Issuer {
        url: issuer.url.clone(),
        server: issuer.server,
        pair: second,
    };
    let discovery = json!({"issuer": renewed.url, "jwks_uri": format!("{}/keys", renewed.url)});
    Mock::given(matchers::path("/.well-known/openid-configuration"))
        .respond_with(ResponseTemplate::new(200).set_body_json(discovery))
        .mount(&renewed.server)
        .await;
    renewed
        .publish(std::slice::from_ref(&renewed.pair.jwk))
        .await;
    let later = NOW + REFETCH_MS;
    issuers.verify(&token, &federations, later).await.unwrap();
    issuers.verify(&token, &federations, later).await.unwrap();
    assert_eq!(renewed.asked().await, 1);
}

#[tokio::test]
async fn an_issuer_that_answers_wrongly_is_told() {
    let server = MockServer::start().await;
    let url = server.uri();
    let pair = Pair::new("one");
    let federations = [federation(&url)];
    let claims =
        json!({"iss": url, "aud": "acrtask", "sub": "repo:org/app:x", "exp": NOW / 1000 + 60});
    let token = signed(&pair, &claims);
    let mut told = Vec::new();
    for discovery in [
        ResponseTemplate::new(500),
        ResponseTemplate::new(200).set_body_string("<html>"),
        ResponseTemplate::new(200)
            .set_body_json(json!({"issuer": "https://evil.example.com", "jwks_uri": "https://x"})),
        ResponseTemplate::new(200)
            .set_body_json(json!({"issuer": url, "jwks_uri": "http://keys.example.com"})),
        ResponseTemplate::new(200).set_body_bytes(vec![b'x'; MAX_ANSWER + 1]),
        ResponseTemplate::new(302).insert_header("location", "http://169.254.169.254/"),
    ] {
        server.reset().await;
        Mock::given(matchers::path("/.well-known/openid-configuration"))
            .respond_with(discovery)
            .mount(&server)
            .await;
        let error = Issuers::default()
            .verify(&token, &federations, NOW)
            .await
            .unwrap_err();
        assert!(matches!(error, ExchangeError::Issuer { .. }), "{error}");
        told.push(error.to_string().replace(&url, "ISSUER"));
    }
    insta::assert_snapshot!(told.join("\n"));
}

/// Whoever answers for an issuer must not make the server ask hosts of its own network.
#[tokio::test]
async fn keys_on_other_private_hosts_are_not_fetched() {
    let server = MockServer::start().await;
    let url = server.uri();
    let port = server.address().port();
    let federations = [federation(&url)];
    let claims =
        json!({"iss": url, "aud": "acrtask", "sub": "repo:org/app:x", "exp": NOW / 1000 + 60});
    let token = signed(&Pair::new("one"), &claims);
    for keys in [
        format!("http://localhost:{port}/keys"),
        format!("http://[::1]:{port}/keys"),
        format!("http://127.0.0.2:{port}/keys"),
        "https://10.1.2.3/keys".to_owned(),
        "https://169.254.169.254/keys".to_owned(),
    ] {
        server.reset().await;
        Mock::given(matchers::path("/.well-known/openid-configuration"))
            .respond_with(
                ResponseTemplate::new(200).set_body_json(json!({"issuer": url, "jwks_uri": keys})),
            )
            .mount(&server)
            .await;
        let error = Issuers::default()
            .verify(&token, &federations, NOW)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("not a public address"),
            "{keys}: {error}"
        );
        assert_eq!(server.received_requests().await.unwrap().len(), 1, "{keys}");
    }
}

#[tokio::test]
async fn an_issuer_that_is_down_is_not_asked_all_the_time() {
    let server = MockServer::start().await;
    Mock::given(matchers::any())
        .respond_with(ResponseTemplate::new(503))
        .mount(&server)
        .await;
    let url = server.uri();
    let federations = [federation(&url)];
    let claims =
        json!({"iss": url, "aud": "acrtask", "sub": "repo:org/app:x", "exp": NOW / 1000 + 60});
    let token = signed(&Pair::new("one"), &claims);
    let issuers = Issuers::default();
    let asked = async || server.received_requests().await.unwrap().len();
    let all = (0..10).map(|_| issuers.verify(&token, &federations, NOW));
    for answer in futures::future::join_all(all).await {
        assert!(matches!(answer, Err(ExchangeError::Issuer { .. })));
    }
    assert_eq!(asked().await, 1);
    let later = NOW + RETRY_MS;
    issuers
        .verify(&token, &federations, later)
        .await
        .unwrap_err();
    assert_eq!(asked().await, 2);
}

#[test]
fn issuers_are_asked_over_https() {
    for good in [
        "https://issuer.example.com",
        "https://x/y",
        "http://127.0.0.1:1",
        "http://localhost:1/a",
    ] {
        check_issuer(good).unwrap();
    }
    for bad in [
        "",
        "x",
        "http://issuer.example.com",
        "ftp://x",
        "https://x?a=b",
        "https://x#y",
    ] {
        check_issuer(bad).unwrap_err();
    }
}

#[test]
fn patterns() {
    for (pattern, text, fits) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("", "", true),
        ("a*", "a", true),
        ("a*", "abc", true),
        ("a*", "ba", false),
        ("*a", "ba", true),
        ("a*b*c", "a-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a*a", "a", false),
        ("a*ab", "aab", true),
        (
            "repo:org/app:ref:refs/heads/*",
            "repo:org/app:ref:refs/tags/x",
            false,
        ),
        ("repo:org/app:*", "repo:org/app-evil:x", false),
        ("ü*", "üx", true),
    ] {
        assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
    }
}

/// The same by trying every way.
fn slow(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|at| slow(rest, &text[at..])),
        Some((first, rest)) => text.first() == Some(first) && slow(rest, &text[1..]),
    }
}

proptest! {
    #[test]
    fn a_pattern_means_what_it_says(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
        let chars = |text: &str| text.chars().collect::<Vec<char>>();
        prop_assert_eq!(matches(&pattern, &text), slow(&chars(&pattern), &chars(&text)));
    }

    #[test]
    fn no_token_makes_it_fail(token in "\\PC{0,60}") {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refused = runtime.block_on(Issuers::default().verify(&token, &[], NOW));
        prop_assert!(refused.is_err());
    }
}
