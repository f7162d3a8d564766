//! What git knows about a folder: `.Run.Commit`, `.Run.Branch`, `.Run.GitTag`, `.Run.Repository`.

use std::path::Path;

use crate::spec::without_password;

/// Facts for templates; each is missing where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitFacts {
    /// The commit, in full.
    pub commit: Option<String>,
    /// The branch, without `refs/heads/`.
    pub branch: Option<String>,
    /// The tag, without `refs/tags/`.
    pub tag: Option<String>,
    /// The repository's URL, without a password.
    pub repository: Option<String>,
}

/// Reads them from the repository that `folder` is in. None where it is in no repository, or in one that
/// belongs to somebody else.
pub fn of_folder(folder: &Path) -> GitFacts {
    match read(folder) {
        Ok(facts) => facts,
        Err(error) => {
            tracing::debug!(folder = %folder.display(), %error, "no facts from git");
            GitFacts::default()
        }
    }
}

fn read(folder: &Path) -> Result<GitFacts, git2::Error> {
    let repository = git2::Repository::discover(folder)?;
    let mut facts = GitFacts {
        repository: remote(&repository),
        ..GitFacts::default()
    };
    // A repository without a commit has the rest of the facts nonetheless.
    let Ok(head) = repository.head() else {
        return Ok(facts);
    };
    let commit = head.peel_to_commit()?.id();
    facts.commit = Some(commit.to_string());
    if head.is_branch() {
        facts.branch = head.shorthand().ok().map(str::to_owned);
    }
    let mut tags = Vec::new();
    for reference in repository.references_glob("refs/tags/*")?.flatten() {
        if reference
            .peel_to_commit()
            .is_ok_and(|tagged| tagged.id() == commit)
            && let Ok(name) = reference.shorthand()
        {
            tags.push(name.to_owned());
        }
    }
    // Of several the greatest, so that the answer does not depend on the order of the files.
    facts.tag = tags.into_iter().max();
    Ok(facts)
}

/// The URL of `origin`, else of the only remote.
fn remote(repository: &git2::Repository) -> Option<String> {
    let names = repository.remotes().ok()?;
    let name = match repository.find_remote("origin") {
        Ok(_) => "origin".to_owned(),
        Err(_) if names.len() == 1 => names.get(0).ok()??.to_owned(),
        Err(_) => return None,
    };
    let remote = repository.find_remote(&name).ok()?;
    Some(without_password(remote.url().ok()?))
}
