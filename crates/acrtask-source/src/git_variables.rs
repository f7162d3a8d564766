//! Run variables from the git repository of a folder: `.Run.Commit`, `.Run.Branch`, `.Run.GitTag`,
//! `.Run.Repository`.

use std::path::Path;

use crate::spec::remove_password;

/// Run variables from git. Each one is `None` if the repository has no such value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitVariables {
    /// Full name of the commit.
    pub commit: Option<String>,
    /// Branch, without `refs/heads/`.
    pub branch: Option<String>,
    /// Tag, without `refs/tags/`.
    pub tag: Option<String>,
    /// URL of the repository, without a password.
    pub repository: Option<String>,
}

/// Reads the variables from the repository of `folder`. All are `None` if the folder is outside of
/// a repository, or if the repository belongs to another user.
pub fn read_folder(folder: &Path) -> GitVariables {
    match read_variables(folder) {
        Ok(variables) => variables,
        Err(error) => {
            tracing::debug!(folder = %folder.display(), %error, "no run variables from git");
            GitVariables::default()
        }
    }
}

fn read_variables(folder: &Path) -> Result<GitVariables, git2::Error> {
    let repository = git2::Repository::discover(folder)?;
    let mut variables = GitVariables {
        repository: remote_url(&repository),
        ..GitVariables::default()
    };
    // A repository without a commit still has the other variables.
    let Ok(head) = repository.head() else {
        return Ok(variables);
    };
    let commit = head.peel_to_commit()?.id();
    variables.commit = Some(commit.to_string());
    if head.is_branch() {
        variables.branch = head.shorthand().ok().map(str::to_owned);
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
    // Selects the greatest of several tags, so that the result does not depend on the order of the
    // files.
    variables.tag = tags.into_iter().max();
    Ok(variables)
}

/// Returns the URL of `origin`, or else of the only remote.
fn remote_url(repository: &git2::Repository) -> Option<String> {
    let names = repository.remotes().ok()?;
    let name = match repository.find_remote("origin") {
        Ok(_) => "origin".to_owned(),
        Err(_) if names.len() == 1 => names.get(0).ok()??.to_owned(),
        Err(_) => return None,
    };
    let remote = repository.find_remote(&name).ok()?;
    Some(remove_password(remote.url().ok()?))
}
