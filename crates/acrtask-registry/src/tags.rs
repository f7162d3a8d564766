//! Tags of a repository, one page per call and without retries, so that the caller can keep to a
//! budget.
//!
//! Invariant: the client requests the next page at the registry's own address. It uses only the
//! query of the `Link` header.

use acrtask_model::ImageRef;
use reqwest::{
    Method,
    header::{self, HeaderMap},
};
use serde::Deserialize;
use url::Url;

use crate::{
    client::{Registry, pull_scope},
    error::RegistryError,
    head::Allowance,
    transport::{Body, Call, RequestOptions, read_limited},
};

/// Number of tags to request per page. A registry may return fewer.
const PAGE: u32 = 1000;
/// Maximum size of a page, in bytes.
const MAX_PAGE: u64 = 4 << 20;

/// Page of the tags of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    /// Tags, in the registry's order.
    pub tags: Vec<String>,
    /// Request for the next page. `None` for the last page.
    pub next: Option<NextTags>,
    /// Requests that the registry allows from now on. `None` if the response names no limit.
    pub allowance: Option<Allowance>,
}

/// Query of the request for a next page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NextTags(String);

impl NextTags {
    /// Returns the query of the request.
    pub(crate) fn query(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Deserialize)]
struct TagsResponse {
    /// `null` if the repository lost all its tags.
    tags: Option<Vec<String>>,
}

impl Registry {
    /// Requests one page of the tags of the repository of `reference`: the first page, or the page
    /// `from`.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::RateLimited`] at once, even if the requested wait is
    /// short.
    pub async fn tags(
        &self,
        reference: &ImageRef,
        from: Option<&NextTags>,
    ) -> Result<TagPage, RegistryError> {
        let attempt = format!("list the tags of {}", reference.name());
        let mut url = self.transport.url(reference, "tags/list")?;
        match from {
            None => url.set_query(Some(&format!("n={PAGE}"))),
            Some(NextTags(query)) => url.set_query(Some(query)),
        }
        let call = Call {
            attempt: attempt.clone(),
            host: reference.registry(),
            method: Method::GET,
            url: url.clone(),
            scopes: vec![pull_scope(reference)],
            accept: &["application/json"],
            body: Body::None,
        };
        let options = RequestOptions {
            tries: 1,
            ..RequestOptions::default()
        };
        let response = self.transport.send_with(call, options).await?;
        let invalid = |reason: String| RegistryError::Invalid {
            attempt: attempt.clone(),
            reason: format!("{}: {reason}", reference.registry()),
        };
        let allowance = Allowance::read(response.headers());
        let next = next_page(response.headers(), &url).map_err(invalid)?;
        if next.is_some() && next.as_ref() == from {
            return Err(invalid(
                "its tag list has a page that names itself as the next page".into(),
            ));
        }
        let body = read_limited(response, MAX_PAGE, &attempt, reference.registry()).await?;
        let answer: TagsResponse =
            serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
        Ok(TagPage {
            tags: answer.tags.unwrap_or_default(),
            next,
            allowance,
        })
    }
}

/// Returns the query of the next page from all `Link` headers of a response. `None` if they name no
/// next page.
///
/// Source: distribution specification, "Listing Tags"; RFC 8288, section 3.
///
/// # Errors
/// The reason why a link is invalid. Without this error, a list could be incomplete.
pub(crate) fn next_page(headers: &HeaderMap, url: &Url) -> Result<Option<NextTags>, String> {
    for value in headers.get_all(header::LINK) {
        let text = value
            .to_str()
            .map_err(|_| "its Link header is not text".to_owned())?;
        for link in parse_links(text)? {
            if !link.is_next {
                continue;
            }
            let query = url.join(&link.target).ok().and_then(|target| {
                let query = target.query()?;
                (!query.is_empty()).then(|| query.to_owned())
            });
            return match query {
                Some(query) => Ok(Some(NextTags(query))),
                None => Err(format!("its next page, `{}`, has no query", link.target)),
            };
        }
    }
    Ok(None)
}

/// Link of a `Link` header.
struct Link {
    target: String,
    is_next: bool,
}

/// Parses the links of a header. In addition to RFC 8288, accepts single quotes, and targets
/// without angle brackets. Some registries send these.
fn parse_links(text: &str) -> Result<Vec<Link>, String> {
    let mut links = Vec::new();
    let mut rest = text.trim_start_matches([',', ' ', '\t']);
    while !rest.is_empty() {
        let target;
        if let Some(bracketed) = rest.strip_prefix('<') {
            let end = bracketed
                .find('>')
                .ok_or_else(|| format!("its Link header, `{text}`, has no `>`"))?;
            target = &bracketed[..end];
            rest = &bracketed[end + 1..];
        } else {
            // A query may contain commas. Only a parameter ends such a target.
            let end = rest.find(';').unwrap_or(rest.len());
            target = rest[..end].trim();
            rest = &rest[end..];
        }
        let mut is_next = false;
        rest = rest.trim_start();
        while let Some(parameter) = rest.strip_prefix(';') {
            let (name, value, behind) = parse_parameter(parameter);
            is_next |= name.eq_ignore_ascii_case("rel")
                && value
                    .split_ascii_whitespace()
                    .any(|relation| relation.eq_ignore_ascii_case("next"));
            rest = behind.trim_start();
        }
        links.push(Link {
            target: target.to_owned(),
            is_next,
        });
        rest = match rest.split_once(',') {
            Some((_, next)) => next.trim_start_matches([',', ' ', '\t']),
            None => "",
        };
    }
    Ok(links)
}

/// Parses one parameter. Returns its name, its value without quotes, and the remaining text.
fn parse_parameter(text: &str) -> (&str, &str, &str) {
    let end = text.find(['=', ';', ',']).unwrap_or(text.len());
    let (name, rest) = (text[..end].trim(), &text[end..]);
    let Some(value) = rest.strip_prefix('=').map(str::trim_start) else {
        return (name, "", rest);
    };
    for quote in ['"', '\''] {
        if let Some(quoted) = value.strip_prefix(quote) {
            let end = quoted.find(quote).unwrap_or(quoted.len());
            let behind = quoted.get(end + 1..).unwrap_or_default();
            return (name, &quoted[..end], behind);
        }
    }
    let end = value.find([';', ',']).unwrap_or(value.len());
    (name, value[..end].trim(), &value[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(links: &[&str]) -> Result<Option<String>, String> {
        let url = Url::parse("https://r.io/v2/a/tags/list?n=1000").unwrap();
        let mut headers = HeaderMap::new();
        for link in links {
            headers.append(header::LINK, link.parse().unwrap());
        }
        next_page(&headers, &url).map(|next| next.map(|NextTags(query)| query))
    }

    #[test]
    fn next_page_parses_links_of_real_registries() {
        for (links, expected) in [
            (
                &["</v2/a/tags/list?last=b&n=2>; rel=\"next\""][..],
                "last=b&n=2",
            ),
            (
                &["<https://elsewhere.example/v2/a/tags/list?n=5&last=x%2F>; rel=next"],
                "n=5&last=x%2F",
            ),
            (
                &["</first>; rel=\"first\", <?last=z>; title=x; rel=\"next\""],
                "last=z",
            ),
            (&["<?last=a,b>; rel=\"next\""], "last=a,b"),
            (&["<?last=b>; rel='next'"], "last=b"),
            (&["<?last=b>; Rel=\"Next\""], "last=b"),
            (&["<?last=b> ; rel = \"prev next\""], "last=b"),
            (&["?last=a,b; rel=\"next\""], "last=a,b"),
            (&["/v2/a/tags/list?last=b;rel=next"], "last=b"),
            (
                &["<?x=1>; title=\"a, b; rel=next\", <?last=c>; rel=next"],
                "last=c",
            ),
            (
                &["<?x=1>; rel=\"first\"", "<?last=c>; rel=\"next\""],
                "last=c",
            ),
            (&[", <?last=c>; rel=next,"], "last=c"),
        ] {
            assert_eq!(read(links), Ok(Some(expected.into())), "{links:?}");
        }
    }

    #[test]
    fn next_page_is_none_without_a_next_link() {
        for links in [
            &[][..],
            &["</v2/a/tags/list?last=b>; rel=\"prev\""],
            &["<?last=b>; rel=\"nextish\""],
            &["<?last=b>; title=\"rel=next\""],
            &["nonsense"],
        ] {
            assert_eq!(read(links), Ok(None), "{links:?}");
        }
    }

    #[test]
    fn next_page_refuses_links_without_a_query() {
        for link in [
            "</v2/a/tags/list>; rel=\"next\"",
            "<?>; rel=next",
            "<?last=b; rel=\"next\"",
        ] {
            assert!(read(&[link]).is_err(), "{link}");
        }
    }
}
