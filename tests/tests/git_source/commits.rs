//! Commit that is checked out, the error if it is gone, and the amount of history that is
//! transferred.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn commits_and_tags_are_exact_and_missing_ones_refused() {
    let repositories = Repositories::default();
    repositories.create("app");
    let work = repositories.work_path("app");
    let first = repositories.commit("app", &[("file", "first")]);
    git(&work, &["tag", "--annotate", "v1", "--message", "v1"]);
    git(&work, &["push", "--quiet", "origin", "v1"]);
    for n in 0..20 {
        repositories.commit("app", &[("file", &n.to_string())]);
    }
    let last = repositories.commit("app", &[("file", "last")]);
    // A deleted branch, and a commit that a force push removed.
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
        let (_folder, mut options) = runner_options();
        options.git = at_commit(commit);
        let workspace = fetch_context(&format!("{url}{reference}"), &options)
            .await
            .unwrap();
        assert_eq!(read(&workspace, "file"), content, "{reference}");
        assert_eq!(workspace.variables.commit.as_deref(), Some(commit));
        let shallow = workspace.root.join(".git/shallow").exists();
        let variables = &workspace.variables;
        (variables.branch.clone(), variables.tag.clone(), shallow)
    };
    let main = || Some("main".to_owned());
    assert_eq!(check("#main", &last, "last").await, (main(), None, true));
    assert_eq!(check("", &last, "last").await, (None, None, true));
    assert_eq!(
        check("#v1", &first, "first").await,
        (None, Some("v1".into()), true)
    );
    // The server still has these commits and serves them by their ids.
    assert_eq!(
        check("#main", &forced, "forced").await,
        (main(), None, true)
    );
    let gone = || Some("feature/gone".to_owned());
    assert_eq!(
        check("#feature/gone", &on_branch, "feature").await,
        (gone(), None, true)
    );

    // After pruning, the server no longer has them.
    repositories.prune("app");
    let refused = async |reference: &str, commit: &str| {
        let (folder, mut options) = runner_options();
        options.git = at_commit(commit);
        let error = fetch_context(&format!("{url}{reference}"), &options)
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::CommitGone { .. }), "{error:?}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the failed checkout is left over"
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

    // A server that serves only tips: the history of the branch is fetched as far as necessary.
    server.use_first_protocol();
    let middle = git(&work, &["rev-parse", "main~15"]);
    assert_eq!(check("#main", &last, "last").await, (main(), None, true));
    assert_eq!(check("", &middle, "6").await, (None, None, false));
    assert_eq!(refused("#main", &forced).await, of_main);
    // An id of a tree.
    let tree = git(&work, &["rev-parse", "HEAD^{tree}"]);
    let (_folder, mut options) = runner_options();
    options.git = at_commit(&tree);
    fetch_context(&url, &options).await.unwrap_err();
}

/// Imports incompressible commits of 1 MiB each, without compression.
fn import_history(repositories: &Repositories, commits: u32) -> String {
    const SIZE: usize = 1 << 20;
    let bare = repositories.bare_path("big");
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
        // The content differs in each commit. Without deltas, each is stored in full.
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

/// Returns the bytes of all files below a folder.
fn folder_size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.metadata().unwrap() {
        of if of.is_dir() => folder_size(&entry.path()),
        of => of.len(),
    });
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_history_is_not_downloaded() {
    const COMMITS: u32 = 1024;
    const MIB: u64 = 1 << 20;
    let repositories = Repositories::default();
    repositories.create("big");
    let old = import_history(&repositories, COMMITS);
    let history = folder_size(&repositories.bare_path("big"));
    assert!(history >= 1024 * MIB, "{history} bytes are less than a GiB");
    let server = HttpGit::start(&repositories.root(), None);
    let url = format!("{}#main", server.url("big"));
    for commit in [None, Some(&old)] {
        let (_folder, mut options) = runner_options();
        options.git.commit = commit.map(|commit| commit.parse().unwrap());
        let (begun, before) = (Instant::now(), server.bytes_sent());
        let workspace = fetch_context(&url, &options).await.unwrap();
        let (took, sent) = (begun.elapsed(), server.bytes_sent() - before);
        assert_eq!(
            std::fs::metadata(workspace.root.join("file"))
                .unwrap()
                .len(),
            MIB
        );
        assert!(sent < 2 * MIB, "{sent} bytes were sent of {history}");
        // The file in the work tree and its object.
        let kept = folder_size(&workspace.root);
        assert!(kept < 3 * MIB, "{kept} bytes were kept of {history}");
        assert!(took < Duration::from_secs(30), "{took:?}");
        assert_eq!(git(&workspace.root, &["rev-list", "--count", "HEAD"]), "1");
    }
}
