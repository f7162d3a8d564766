//! Sign-in, sign-out, and the session of a request.

use std::marker::PhantomData;

use acrtask_page::{Foreign, Frame, MePage, Section, SignInPage, is_local_path};
use acrtask_store::SessionRow;
use axum::{
    body::Bytes,
    extract::{FromRequestParts, Query, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts, uri::Authority,
    },
    response::{IntoResponse as _, Redirect, Response},
};
use jiff::Timestamp;
use serde::Deserialize;

use super::{PageError, Site, guard, render};
use crate::{
    api::ApiError,
    auth::{self, Caller, RequiredScope},
    floor,
};

/// Name of the cookie over TLS. The prefix makes browsers refuse it from other hosts and paths.
const SECURE_COOKIE: &str = "__Host-acrtask";
/// Name of the cookie over plain HTTP on loopback, where browsers refuse the prefix.
const LOOPBACK_COOKIE: &str = "acrtask";

/// The signed-in user of a request, whose token has the scope `S`.
#[derive(Debug)]
pub(super) struct Visitor<S> {
    pub(super) caller: Caller,
    pub(super) session: SessionRow,
    now: Timestamp,
    scope: PhantomData<S>,
}

impl<S> Visitor<S> {
    /// Returns the frame of a page for this user.
    pub(super) fn frame(&self, title: &str, section: Section) -> Frame {
        let mut frame = Frame::new(title, section, Some(&self.caller.name));
        frame.now = Some(self.now);
        frame
    }
}

/// Returns the page to open after a sign-in: the requested one, or the one with the sent form.
fn page_of(method: &Method, uri: &Uri) -> String {
    let path = uri.path();
    if matches!(*method, Method::GET | Method::HEAD) {
        let path = uri.path_and_query().map(ToString::to_string);
        return path.unwrap_or_else(|| "/".into());
    }
    let page = path.strip_suffix("/-/run");
    let page = page.or_else(|| path.rsplit_once('/').map(|(page, _)| page));
    page.filter(|page| !page.is_empty())
        .unwrap_or("/")
        .to_owned()
}

impl<S: RequiredScope> FromRequestParts<Site> for Visitor<S> {
    type Rejection = PageError;

    async fn from_request_parts(parts: &mut Parts, site: &Site) -> Result<Self, PageError> {
        let host = guard::requested_host(parts.uri.authority(), &parts.headers);
        let cookie = Cookie::for_host(site, host.as_ref());
        let session = match cookie.find(&parts.headers) {
            None => None,
            Some(secret) => {
                let origin = if parts.uri.path().ends_with("/live") {
                    auth::Use::Update
                } else {
                    auth::Use::User
                };
                auth::find_session(site.app(), &parts.extensions, secret, origin).await?
            }
        };
        let Some(session) = session else {
            return Err(PageError::NoSession(page_of(&parts.method, &parts.uri)));
        };
        if let Some(scope) = S::SCOPE {
            session.caller.require_scope(scope)?;
        }
        Ok(Self {
            caller: session.caller,
            session: session.row,
            now: site.now(),
            scope: PhantomData,
        })
    }
}

/// Form of the cookie, which depends on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cookie {
    /// Sent over TLS only.
    Secure,
    /// Sent over plain HTTP to a loopback address.
    Loopback,
}

impl Cookie {
    fn for_host(site: &Site, host: Option<&Authority>) -> Self {
        let public = site.app().config.public_url.as_ref();
        let behind_tls =
            site.listener.tls || public.is_some_and(|public| public.scheme() == "https");
        let on_loopback = host.is_some_and(|host| guard::is_loopback(host.host()));
        if on_loopback && !behind_tls {
            Self::Loopback
        } else {
            Self::Secure
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Secure => SECURE_COOKIE,
            Self::Loopback => LOOPBACK_COOKIE,
        }
    }

    /// Returns the value of the cookie in a request.
    fn find(self, headers: &HeaderMap) -> Option<&str> {
        let all = headers.get_all(header::COOKIE).iter();
        all.filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(name, _)| *name == self.name())
            .map(|(_, value)| value)
    }

    /// Returns the value of `Set-Cookie`. 0 seconds remove the cookie.
    fn set(self, secret: &str, seconds: i64) -> Result<HeaderValue, ApiError> {
        let secure = match self {
            Self::Secure => "; Secure",
            Self::Loopback => "",
        };
        let name = self.name();
        let text =
            format!("{name}={secret}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
        HeaderValue::try_from(text).map_err(|error| ApiError::internal(&error))
    }
}

/// Query of the sign-in page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FormQuery {
    next: String,
}

/// Shows the form to sign in.
pub(super) async fn form(Query(query): Query<FormQuery>) -> Result<Response, PageError> {
    render(&sign_in_page(&query.next, None))
}

fn sign_in_page(next: &str, problem: Option<&ApiError>) -> SignInPage {
    SignInPage {
        frame: Frame::new("Sign in", Section::Other, None),
        next: local_path(next).to_owned(),
        problem: problem.map(|error| Foreign::line(&error.problem().message)),
    }
}

fn local_path(next: &str) -> &str {
    if is_local_path(next) { next } else { "/" }
}

/// Creates a session with the token of the form.
pub(super) async fn sign_in(
    State(site): State<Site>,
    request: Request,
) -> Result<Response, PageError> {
    floor::require_free_disk(site.app())?;
    let (parts, body) = request.into_parts();
    let host = guard::requested_host(parts.uri.authority(), &parts.headers);
    let cookie = Cookie::for_host(&site, host.as_ref());
    let body = read_form(body).await?;
    let next = form_field(&body, "next");
    let result = match require_private_connection(&site, host.as_ref(), &parts.headers) {
        Ok(()) => {
            auth::verify_token(
                site.app(),
                &parts.extensions,
                Some(&form_field(&body, "token")),
            )
            .await
        }
        Err(error) => Err(error),
    };
    let caller = match result {
        Ok(caller) => caller,
        Err(error) if error.status().is_client_error() => {
            let page = render(&sign_in_page(&next, Some(&error)))?;
            return Ok((error.status(), page).into_response());
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(earlier) = cookie.find(&parts.headers) {
        auth::end_session(site.app(), earlier).await?;
    }
    let secret = auth::create_session(site.app(), &caller).await?;
    tracing::info!(token = caller.token_id, "signed in to the page");
    let set = cookie.set(&secret.0, auth::MAX_SESSION_MS / 1000)?;
    let mut response = Redirect::to(local_path(&next)).into_response();
    response.headers_mut().insert(header::SET_COOKIE, set);
    Ok(response)
}

/// Returns a field of a form without white space around it. Empty if it is absent.
pub(super) fn form_field(body: &[u8], name: &str) -> String {
    let mut fields = url::form_urlencoded::parse(body);
    let found = fields.find(|(key, _)| key == name);
    found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

/// Reads the body of a form.
pub(super) async fn read_form(body: axum::body::Body) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, super::FORM_LIMIT)
        .await
        .map_err(|_| ApiError::too_large("the form is too large or was interrupted"))
}

/// Refuses a sign-in over a connection on which browsers would drop the cookie and others could
/// read the token.
fn require_private_connection(
    site: &Site,
    host: Option<&Authority>,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    let public = site.app().config.public_url.as_ref();
    let on_loopback = host.is_some_and(|host| guard::is_loopback(host.host()));
    let is_private = site.listener.tls
        || on_loopback
        || public.is_some_and(|public| {
            public.scheme() == "https" && guard::is_public_origin(headers, host, public)
        });
    if is_private {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "signing in needs TLS: open the https address of the server, or start it with a certificate \
         or an https `--public-url`",
    ))
}

/// Ends the session of the request, if it has one.
pub(super) async fn sign_out(
    State(site): State<Site>,
    request: Request,
) -> Result<Response, PageError> {
    let host = guard::requested_host(request.uri().authority(), request.headers());
    let cookie = Cookie::for_host(&site, host.as_ref());
    if let Some(secret) = cookie.find(request.headers()) {
        auth::end_session(site.app(), secret).await?;
    }
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, "/sign-in")]).into_response();
    let remove = cookie.set("", 0)?;
    response.headers_mut().insert(header::SET_COOKIE, remove);
    Ok(response)
}

/// Shows the rights and the end of the own session.
pub(super) async fn show(
    by: Visitor<auth::Anyone>,
    State(site): State<Site>,
) -> Result<Response, PageError> {
    let scopes: Vec<&str> = by
        .caller
        .scopes
        .iter()
        .map(|scope| auth::scope_name(*scope))
        .collect();
    render(&MePage {
        frame: by.frame("Your session", Section::Other),
        name: Foreign::line(&by.caller.name),
        scopes: if scopes.is_empty() {
            "none".to_owned()
        } else {
            scopes.join(", ")
        },
        tasks: by.caller.tasks.as_ref().map(Foreign::line),
        expires: site.moment(acrtask_store::timestamp(by.session.expires_at)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(
            header::COOKIE,
            HeaderValue::from_static("a=1; acrtask=secret"),
        );
        headers.append(
            header::COOKIE,
            HeaderValue::from_static("__Host-acrtask=other"),
        );
        assert_eq!(Cookie::Loopback.find(&headers), Some("secret"));
        assert_eq!(Cookie::Secure.find(&headers), Some("other"));
    }

    #[test]
    fn cookie_over_tls_is_secure() {
        let set = Cookie::Secure.set("x", 60).unwrap();
        assert_eq!(
            set,
            "__Host-acrtask=x; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
        );
        let set = Cookie::Loopback.set("x", 60).unwrap();
        assert_eq!(set, "acrtask=x; Path=/; Max-Age=60; HttpOnly; SameSite=Lax");
    }
}
