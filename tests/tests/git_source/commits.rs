//! Which commit is checked out, what is said where it is gone, and how much of a history is sent.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn exact_commits_tags_and_what_is_gone() {
    let repositories = Repositories::default();
    repositories.create("app");
    let work = repositories.work("app");
    let first = repositories.commit("app", &[("file", "first")]);
    git(&work, &["tag", "--annotate", "v1", "--message", "v1"]);
    git(&work, &["push", "--quiet", "origin", "v1"]);
    for n in 0..20 {
        repositories.commit("app", &[("file", &n.to_string())]);
    }
    let last = repositories.commit("app", &[("file", "last")]);
    // A branch that was deleted, and a commit that was pushed away.
    git(&work, &["checkout", "--quiet", "-b", "feature/gone"]);
    let on_branch = repositories.commit("app", &[("file", "feature")]);
    git(&work, &["push", "--quiet", "origin", ":feature/gone"]);
    git(&work, &["checkout", "--quiet", "main"]);
    let forced = repositories.commit("app", &[("file", "forced")]);
    git(&work, &["reset", "--quiet", "--hard", &last]);
    repositories.commit("app", &[("file", "instead")]);
    let server = HttpGit::start(&repositories.root(), None);
    let url = server.url("app");

    let check = async |reference: &str, commit: &str, content: &str| {
        let (_folder, mut options) = options();
        options.git = exactly(commit);
        let workspace = fetched(&format!("{url}{reference}"), &options)
            .await
            .unwrap();
        assert_eq!(read(&workspace, "file"), content, "{reference}");
        assert_eq!(workspace.facts.commit.as_deref(), Some(commit));
        let shallow = workspace.root.join(".git/shallow").exists();
        let facts = &workspace.facts;
        (facts.branch.clone(), facts.tag.clone(), shallow)
    };
    let main = || Some("main".to_owned());
    assert_eq!(check("#main", &last, "last").await, (main(), None, true));
    assert_eq!(check("", &last, "last").await, (None, None, true));
    assert_eq!(
        check("#v1", &first, "first").await,
        (None, Some("v1".into()), true)
    );
    // The server still has these, and gives out what is asked for by its name.
    assert_eq!(
        check("#main", &forced, "forced").await,
        (main(), None, true)
    );
    let gone = || Some("feature/gone".to_owned());
    assert_eq!(
        check("#feature/gone", &on_branch, "feature").await,
        (gone(), None, true)
    );

    // It has not any more.
    repositories.prune("app");
    let refused = async |reference: &str, commit: &str| {
        let (folder, mut options) = options();
        options.git = exactly(commit);
        let error = fetched(&format!("{url}{reference}"), &options)
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::CommitGone { .. }), "{error:?}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "it is removed"
        );
        error
            .to_string()
            .replace(&url, "URL")
            .replace(commit, "COMMIT")
    };
    let of_main = "URL has no commit COMMIT in the history of `refs/heads/main`";
    assert_eq!(refused("#main", &forced).await, of_main);
    assert_eq!(
        refused("#feature/gone", &on_branch).await,
        "URL has no commit COMMIT"
    );
    assert_eq!(refused("#main", &"d".repeat(40)).await, of_main);

    // One that gives out tips alone: the history of the branch is fetched as far as it has to be.
    server.be_old();
    let middle = git(&work, &["rev-parse", "main~15"]);
    assert_eq!(check("#main", &last, "last").await, (main(), None, true));
    assert_eq!(check("", &middle, "6").await, (None, None, false));
    assert_eq!(refused("#main", &forced).await, of_main);
    // A commit that is no commit.
    let tree = git(&work, &["rev-parse", "HEAD^{tree}"]);
    let (_folder, mut options) = options();
    options.git = exactly(&tree);
    fetched(&url, &options).await.unwrap_err();
}

/// Commits of one mebibyte each that cannot be compressed, and are not.
fn import_history(repositories: &Repositories, commits: u32) -> String {
    const SIZE: usize = 1 << 20;
    let bare = repositories.bare("big");
    let mut child = git_command(&bare)
        .args(["-c", "core.compression=0", "-c", "fastimport.unpackLimit=0"])
        .args(["fast-import", "--quiet", "--depth=0"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0u8; SIZE];
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    for _ in 0..commits {
        // Another file each time; without deltas each is stored whole.
        block.rotate_left(8191);
        let head =
            "commit refs/heads/main\ncommitter A <a@example.com> 1767225600 +0000\ndata 1\nx\n";
        write!(input, "{head}M 100644 inline file\ndata {SIZE}\n").unwrap();
        input.write_all(&block).unwrap();
        writeln!(input).unwrap();
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    git(&bare, &["rev-parse", "main~100"])
}

/// Bytes of all files below a folder.
fn stored(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.metadata().unwrap() {
        of if of.is_dir() => stored(&entry.path()),
        of => of.len(),
    });
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_history_stays_where_it_is() {
    const COMMITS: u32 = 1024;
    const MIB: u64 = 1 << 20;
    let repositories = Repositories::default();
    repositories.create("big");
    let old = import_history(&repositories, COMMITS);
    let history = stored(&repositories.bare("big"));
    assert!(history >= 1024 * MIB, "{history} bytes are no GiB");
    let server = HttpGit::start(&repositories.root(), None);
    let url = format!("{}#main", server.url("big"));
    for commit in [None, Some(&old)] {
        let (_folder, mut options) = options();
        options.git.commit = commit.map(|commit| commit.parse().unwrap());
        let (begun, before) = (Instant::now(), server.sent());
        let workspace = fetched(&url, &options).await.unwrap();
        let (took, sent) = (begun.elapsed(), server.sent() - before);
        assert_eq!(
            std::fs::metadata(workspace.root.join("file"))
                .unwrap()
                .len(),
            MIB
        );
        assert!(sent < 2 * MIB, "{sent} bytes were sent of {history}");
        // The file, and the one object that it is from.
        let kept = stored(&workspace.root);
        assert!(kept < 3 * MIB, "{kept} bytes were kept of {history}");
        assert!(took < Duration::from_secs(30), "{took:?}");
        assert_eq!(git(&workspace.root, &["rev-list", "--count", "HEAD"]), "1");
    }
}
