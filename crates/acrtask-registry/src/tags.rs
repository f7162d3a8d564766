//! The tags of a repository, a page at a time and without repetition, so that the caller can keep to a budget.
//!
//! Invariant: the next page is asked for at the registry's own address; of what its `Link` says only the query counts.

use acrtask_model::ImageRef;
use reqwest::{
    Method,
    header::{self, HeaderMap},
};
use serde::Deserialize;
use url::Url;

use crate::{
    client::{Registry, pull},
    error::RegistryError,
    look::Allowance,
    transport::{Body, Call, How, read_limited},
};

/// Tags of one page that are asked for. A registry may give fewer.
const PAGE: u32 = 1000;
/// Largest page that is read, in bytes.
const MAX_PAGE: u64 = 4 << 20;

/// A page of the tags of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    /// Tags, in the registry's order.
    pub tags: Vec<String>,
    /// Request for the next page. `None` for the last page.
    pub next: Option<NextTags>,
    /// What the registry says it allows from now on.
    pub allowance: Option<Allowance>,
}

/// The query of a next page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NextTags(String);

#[derive(Debug, Deserialize)]
struct Answer {
    /// `null` where a repository has lost all its tags.
    tags: Option<Vec<String>>,
}

impl Registry {
    /// Asks once for tags of the repository of `reference`: the first page, or the one that an earlier page named.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::RateLimited`] at once, however short the wait that is asked for.
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
            scopes: vec![pull(reference)],
            accept: &["application/json"],
            body: Body::None,
        };
        let how = How {
            tries: 1,
            ..How::default()
        };
        let response = self.transport.send_so(call, how).await?;
        let invalid = |reason: String| RegistryError::Invalid {
            attempt: attempt.clone(),
            reason: format!("{}: {reason}", reference.registry()),
        };
        let allowance = Allowance::read(response.headers());
        let next = next_page(response.headers(), &url).map_err(invalid)?;
        if next.is_some() && next.as_ref() == from {
            return Err(invalid("a page of it names itself as the next one".into()));
        }
        let body = read_limited(response, MAX_PAGE, &attempt, reference.registry()).await?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
        Ok(TagPage {
            tags: answer.tags.unwrap_or_default(),
            next,
            allowance,
        })
    }
}

/// Returns the query of the next page, of all `Link` headers of an answer. `None` if they name no next page.
///
/// Source: distribution specification, "Listing Tags"; RFC 8288, section 3.
///
/// # Errors
/// The reason why a link cannot be followed: without it, a list would end early in silence.
fn next_page(headers: &HeaderMap, url: &Url) -> Result<Option<NextTags>, String> {
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

/// A link of a `Link` header.
struct Link {
    target: String,
    is_next: bool,
}

/// Parses the links of a header. Accepts what registries write beside RFC 8288: single quotes, and targets without
/// angle brackets.
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
            // A query may hold commas: only a parameter ends such a target.
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

/// Parses one parameter. Returns its name, its value without quotes, and the text behind it.
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
    fn links_are_read_as_registries_write_them() {
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
    fn lists_end_without_a_next_page() {
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
    fn links_that_lead_nowhere_are_errors() {
        for link in [
            "</v2/a/tags/list>; rel=\"next\"",
            "<?>; rel=next",
            "<?last=b; rel=\"next\"",
        ] {
            assert!(read(&[link]).is_err(), "{link}");
        }
    }
}
