//! The tags of a repository, a page at a time and without patience, so that whoever asks can keep to a budget.
//!
//! Invariant: the next page is asked for at the registry's own address; of what its `Link` says only the query counts.

use acrtask_model::ImageRef;
use reqwest::{Method, header};
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
    /// What the next page is asked for with; nothing: there is none.
    pub next: Option<NextTags>,
    /// What the registry says it allows from now on.
    pub allowance: Option<Allowance>,
}

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
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
            reason,
        };
        let allowance = Allowance::read(response.headers());
        let next = response
            .headers()
            .get(header::LINK)
            .and_then(|value| next(value.to_str().ok()?, &url));
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

/// Reads `</v2/a/tags/list?last=b&n=2>; rel="next"`.
///
/// Source: distribution specification, "Listing Tags".
fn next(link: &str, url: &Url) -> Option<NextTags> {
    link.split(',').find_map(|one| {
        let (target, parameters) = one.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters
            .split(';')
            .any(|part| matches!(part.trim(), "rel=next" | "rel=\"next\""));
        let target = url.join(target).ok().filter(|_| is_next)?;
        target.query().map(|query| NextTags(query.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_as_registries_write_it() {
        let url = Url::parse("https://r.io/v2/a/tags/list?n=1000").unwrap();
        let read = |text: &str| next(text, &url).map(|NextTags(query)| query);
        let some = |query: &str| Some(query.to_owned());
        for (link, expected) in [
            (
                "</v2/a/tags/list?last=b&n=2>; rel=\"next\"",
                some("last=b&n=2"),
            ),
            (
                "<https://elsewhere.example/v2/a/tags/list?n=5&last=x%2F>; rel=next",
                some("n=5&last=x%2F"),
            ),
            (
                "</first>; rel=\"first\", <?last=z>; title=x; rel=\"next\"",
                some("last=z"),
            ),
            ("</v2/a/tags/list>; rel=\"next\"", None),
            ("</v2/a/tags/list?last=b>; rel=\"prev\"", None),
            ("nonsense", None),
        ] {
            assert_eq!(read(link), expected, "{link}");
        }
    }
}
