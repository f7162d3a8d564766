//! Collection of the pages of a list of a registry.
//!
//! A registry decides how many pages a list has, and what they contain. Every reader of a list adds
//! its pages to a [`Listing`], which limits the memory of all pages together.

use std::collections::HashSet;

use acrtask_model::{ImageRef, reference::check_tag};

use crate::{
    acr_api::{AcrManifest, AcrTag},
    error::RegistryError,
    manifest::Descriptor,
    tags::TagPage,
};

/// Maximum number of entries of a list.
const MAX_ENTRIES: usize = 500_000;
/// Maximum size of the texts of all entries of a list, in bytes.
const MAX_SIZE: usize = 32 << 20;
/// Maximum number of pages of a list.
const MAX_PAGES: usize = 5_000;
/// Maximum length of the name of a repository, in bytes.
const MAX_NAME: usize = 255;
/// Maximum length of other texts of an entry, such as its media type, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// List that grows page by page.
#[derive(Debug)]
pub struct Listing<T> {
    /// Attempted operation and its target, for errors.
    attempt: String,
    host: String,
    entries: Vec<T>,
    /// Size of all entries and of the requests for pages, in bytes.
    size: usize,
    pages: usize,
    /// Requests for the pages that were read.
    requests: HashSet<String>,
    max_entries: usize,
    max_pages: usize,
    /// Returns the size of an entry in bytes. `None` if the entry is not valid.
    measure: fn(&T) -> Option<usize>,
}

impl Listing<String> {
    /// Creates a list of the tags of a repository.
    pub fn of_tags(image: &ImageRef) -> Self {
        let attempt = format!("list the tags of {}", image.name());
        Self::new(attempt, image.registry(), |tag| measure_tag(tag))
    }

    /// Adds a page of tags.
    ///
    /// # Errors
    /// The page has invalid tags or links to an earlier page, or the list is too long.
    pub fn add_tags(&mut self, page: TagPage) -> Result<(), RegistryError> {
        let next = page.next.as_ref().map(|next| next.query());
        self.add(page.tags, next)
    }

    pub(crate) fn of_repositories(attempt: &str, host: &str) -> Self {
        Self::new(attempt.to_owned(), host, |name| measure_name(name))
    }
}

impl Listing<Descriptor> {
    pub(crate) fn of_referrers(attempt: &str, host: &str) -> Self {
        Self::new(attempt.to_owned(), host, |entry| {
            let texts = entry.urls.iter().chain(entry.artifact_type.as_ref());
            let texts = texts.map(String::len);
            let annotations = entry.annotations.iter();
            let annotations = annotations.map(|(name, value)| name.len() + value.len());
            let size = texts.chain(annotations).sum::<usize>() + entry.media_type.len();
            (size <= MAX_TEXT).then_some(size + entry.digest.as_str().len())
        })
    }
}

impl Listing<AcrTag> {
    pub(crate) fn of_acr_tags(attempt: &str, host: &str) -> Self {
        Self::new(attempt.to_owned(), host, |entry| {
            let time = entry.last_update_time.as_ref().map_or(0, String::len);
            let size = measure_tag(&entry.name)? + time;
            (size <= MAX_TEXT).then_some(size + entry.digest.as_str().len())
        })
    }
}

impl Listing<AcrManifest> {
    pub(crate) fn of_acr_manifests(attempt: &str, host: &str) -> Self {
        Self::new(attempt.to_owned(), host, |entry| {
            let texts = [&entry.last_update_time, &entry.media_type];
            let size = texts.into_iter().flatten().map(String::len).sum::<usize>();
            (size <= MAX_TEXT).then_some(size + entry.digest.as_str().len())
        })
    }
}

impl<T> Listing<T> {
    fn new(attempt: String, host: &str, measure: fn(&T) -> Option<usize>) -> Self {
        Self {
            attempt,
            host: host.to_owned(),
            entries: Vec::new(),
            size: 0,
            pages: 0,
            requests: HashSet::new(),
            max_entries: MAX_ENTRIES,
            max_pages: MAX_PAGES,
            measure,
        }
    }

    /// Sets smaller limits of the numbers of entries and pages.
    #[must_use]
    pub fn with_limits(mut self, entries: usize, pages: usize) -> Self {
        self.max_entries = entries.min(MAX_ENTRIES);
        self.max_pages = pages.min(MAX_PAGES);
        self
    }

    /// Adds a page. `next` is the request for the next page.
    pub(crate) fn add(&mut self, page: Vec<T>, next: Option<&str>) -> Result<(), RegistryError> {
        self.pages += 1;
        if self.entries.len() + page.len() > self.max_entries {
            return Err(self.invalid(&format!(
                "its list has more than {} entries",
                self.max_entries
            )));
        }
        for entry in &page {
            let Some(size) = (self.measure)(entry) else {
                return Err(self.invalid(&format!(
                    "page {} of its list has an entry that is not valid",
                    self.pages
                )));
            };
            self.size += size;
        }
        self.size += next.map_or(0, str::len);
        if self.size > MAX_SIZE {
            return Err(self.invalid(&format!("its list has more than {} MiB", MAX_SIZE >> 20)));
        }
        self.entries.extend(page);
        let Some(next) = next else {
            return Ok(());
        };
        if self.pages >= self.max_pages {
            return Err(self.invalid(&format!("its list has more than {} pages", self.max_pages)));
        }
        if !self.requests.insert(next.to_owned()) {
            return Err(self.invalid(&format!(
                "page {} of its list links to an earlier page",
                self.pages
            )));
        }
        Ok(())
    }

    /// Returns all entries.
    pub fn into_entries(self) -> Vec<T> {
        self.entries
    }

    fn invalid(&self, reason: &str) -> RegistryError {
        crate::listing::invalid(&self.attempt, &self.host, reason)
    }
}

fn measure_tag(tag: &str) -> Option<usize> {
    check_tag(tag).is_ok().then_some(tag.len())
}

fn measure_name(name: &str) -> Option<usize> {
    let is_valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_graphic());
    is_valid.then_some(name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags() -> Listing<String> {
        Listing::of_tags(&"r.io/a".parse().unwrap())
    }

    fn refusal(added: Result<(), RegistryError>) -> String {
        added.unwrap_err().to_string()
    }

    #[test]
    fn entries_are_validated() {
        for bad in ["", "a\nb", "-a", "a/b", "\u{202e}a", &"a".repeat(129)] {
            let refused = refusal(tags().add(vec![bad.to_owned()], None));
            assert!(refused.contains("not valid"), "{bad}: {refused}");
        }
        let longest = "a".repeat(128);
        let mut list = tags();
        list.add(vec![longest.clone()], Some("n=1")).unwrap();
        list.add(vec!["v1".into()], None).unwrap();
        assert_eq!(list.into_entries(), [longest, "v1".into()]);
        for bad in ["", "a\u{1b}[0m", &"a".repeat(256)] {
            let mut list = Listing::of_repositories("list", "r.io");
            assert!(list.add(vec![bad.to_owned()], None).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_may_not_repeat() {
        let mut list = tags();
        list.add(vec!["a".into()], Some("last=a")).unwrap();
        list.add(vec!["b".into()], Some("last=b")).unwrap();
        let refused = refusal(list.add(vec!["a".into()], Some("last=a")));
        assert!(
            refused.contains("page 3 of its list links to an earlier page"),
            "{refused}"
        );
    }

    #[test]
    fn endless_lists_end_at_each_limit() {
        let endless = |entries: Vec<String>, next: &str| {
            let mut list = tags();
            let mut page = 0;
            loop {
                page += 1;
                if let Err(error) = list.add(entries.clone(), Some(&format!("{next}{page}"))) {
                    return (error.to_string(), list.size);
                }
            }
        };
        let (error, _) = endless(vec!["a".repeat(128); 1000], "last=");
        assert!(error.contains("more than 32 MiB"), "{error}");
        let (error, _) = endless(vec!["a".into(); 1000], "last=");
        assert!(error.contains("more than 500000 entries"), "{error}");
        let (error, _) = endless(Vec::new(), "last=");
        assert!(error.contains("more than 5000 pages"), "{error}");
        let (error, size) = endless(Vec::new(), &"x".repeat(100_000));
        assert!(error.contains("more than 32 MiB"), "{error}");
        assert!(size < 33 << 20, "{size}");
        let mut small = tags().with_limits(2, 2);
        assert!(small.add(vec!["a".into(); 3], None).is_err());
        let mut small = tags().with_limits(2, 2);
        small.add(Vec::new(), Some("1")).unwrap();
        assert!(small.add(Vec::new(), Some("2")).is_err());
    }
}
