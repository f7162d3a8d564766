//! Files of Git LFS: where they are asked for, that they are what their pointers say, and where nothing is sent to.

use super::*;

/// A file that git gives to Git LFS: its pointer in the repository, its object at the server.
fn add_object(repositories: &Repositories, content: &[u8]) -> (String, String) {
    let oid: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = repositories.root().join("lfs-objects");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(&oid), content).unwrap();
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n",
        content.len()
    );
    (oid, pointer)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_git_lfs_where_they_are_asked_for() {
    let repositories = Repositories::default();
    repositories.create("app");
    repositories.create("lib");
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let (oid, pointer) = add_object(&repositories, &large);
    let (_, small) = add_object(&repositories, b"small");
    let attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n";
    let lib = repositories.commit(
        "lib",
        &[(".gitattributes", attributes), ("lib.bin", &small)],
    );
    repositories.commit(
        "app",
        &[
            (".gitattributes", attributes),
            ("large.bin", &pointer),
            ("again/large.bin", &pointer),
            ("small.bin", &small),
            ("not-a-pointer.bin", "plain"),
            ("no-attribute.txt", &pointer),
        ],
    );
    std::os::unix::fs::symlink("small.bin", repositories.work("app").join("link.bin")).unwrap();
    let program = repositories.work("app").join("large.bin");
    std::fs::set_permissions(program, Permissions::from_mode(0o755)).unwrap();
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    repositories.commit("app", &[]);
    let server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let url = format!("{}#main", server.url("app"));

    let (folder, mut options) = options();
    options.git_credentials.push(token("127.0.0.1"));
    let workspace = fetched(&url, &options).await.unwrap();
    assert_eq!(read(&workspace, "large.bin"), pointer);
    drop(workspace);
    options.git = GitOptions {
        lfs: true,
        submodules: true,
        ..GitOptions::default()
    };
    let workspace = fetched(&url, &options).await.unwrap();
    for path in ["large.bin", "again/large.bin"] {
        assert!(
            std::fs::read(workspace.root.join(path)).unwrap() == large,
            "{path}"
        );
    }
    for (path, content) in [
        ("small.bin", "small"),
        ("link.bin", "small"),
        ("not-a-pointer.bin", "plain"),
        ("no-attribute.txt", &pointer),
        ("lib/lib.bin", "small"),
    ] {
        assert_eq!(read(&workspace, path), content, "{path}");
    }
    assert!(workspace.root.join("link.bin").is_symlink());
    for (path, program) in [("large.bin", true), ("again/large.bin", false)] {
        let mode = workspace
            .root
            .join(path)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o111 != 0, program, "{path}: {mode:o}");
    }
    assert_eq!(files_with(folder.path(), TOKEN), Vec::<PathBuf>::new());
    let downloads = server.requests();
    let of_large = downloads
        .iter()
        .filter(|request| request.path.ends_with(&oid));
    assert_eq!(of_large.count(), 1, "one object is downloaded once");
    drop(workspace);

    // Another object than the pointer's, of the same length; a longer one; none.
    let object = repositories.root().join("lfs-objects").join(&oid);
    let mut wrong = large.clone();
    wrong[17] ^= 1;
    let longer = [&large[..], b"x"].concat();
    for (content, expected) in [
        (Some(wrong), "and its pointer says sha256:"),
        (
            Some(longer),
            "it has more than the 3000000 bytes of its pointer",
        ),
        (Some(large[1..].to_vec()), "it has 2999999 bytes"),
        (None, "the server says: 404 Object does not exist"),
    ] {
        match content {
            Some(content) => std::fs::write(&object, content).unwrap(),
            None => std::fs::remove_file(&object).unwrap(),
        }
        let error = said(&fetched(&url, &options).await.unwrap_err());
        assert!(
            error.contains(expected) && error.contains("large.bin`"),
            "{error}"
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "it is removed"
        );
    }
    // More than may be downloaded is not begun.
    options.limits.download_bytes = 1_000_000;
    let error = fetched(&url, &options).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_lfs_server_leads_nowhere_it_should_not() {
    let repositories = Repositories::default();
    repositories.create("app");
    let (oid, pointer) = add_object(&repositories, b"content");
    let attributes = "*.bin filter=lfs\n";
    repositories.commit(
        "app",
        &[(".gitattributes", attributes), ("a.bin", &pointer)],
    );
    let server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let elsewhere = HttpGit::start(&repositories.root(), None);
    let (_folder, mut options) = options();
    options.git_credentials.push(token("127.0.0.1"));
    options.git.lfs = true;

    // To another host: without our login, with what the server gave for it.
    let there = format!(
        "http://localhost:{}",
        elsewhere.address().split_once(':').unwrap().1
    );
    let link = json!({
        "href": format!("{there}/lfs-objects/{oid}"),
        "header": { "Authorization": "Bearer for-this-download", "X-Mine": "yes" },
    });
    server.answer_downloads_with(link);
    let workspace = fetched(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers["authorization"], "Bearer for-this-download");
    assert_eq!(seen[0].headers["x-mine"], "yes");
    server.answer_downloads_with(json!({ "href": format!("{there}/lfs-objects/{oid}") }));
    fetched(&server.url("app"), &options).await.unwrap();
    let seen = elsewhere.requests();
    assert!(!seen[1].headers.contains_key("authorization"), "{seen:?}");

    for (href, expected) in [
        ("file:///etc/passwd", "come over https:// only"),
        ("ftp://example.com/x", "come over https:// only"),
        ("http://example.com/x", "neither encryption"),
        ("not a url", "is not a URL"),
        ("gopher://127.0.0.1/x", "come over https:// only"),
    ] {
        server.answer_downloads_with(json!({ "href": href }));
        let error = said(&fetched(&server.url("app"), &options).await.unwrap_err());
        assert!(
            error.contains(expected) || error.contains("names what is not a URL"),
            "{href}: {error}"
        );
    }
    // The repository itself names a server: by the same rules, without a login that is not its own.
    let name = |url: &str| {
        let config = format!("[lfs]\n\turl = {url}\n[include]\n\tpath = /etc/passwd\n");
        repositories.commit("app", &[(".lfsconfig", &config)]);
    };
    name(&format!("{there}/app.git/info/lfs"));
    let workspace = fetched(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
    assert!(
        elsewhere
            .requests()
            .iter()
            .skip(2)
            .all(|seen| !seen.headers.contains_key("authorization"))
    );
    for url in [
        "file:///srv/lfs",
        "ssh://-oProxyCommand=x/lfs",
        "http://example.com/lfs",
        "--x",
    ] {
        name(url);
        let error = fetched(&server.url("app"), &options).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Refused { .. } | SourceError::Lfs { .. }),
            "{url}: {error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn git_lfs_of_a_repository_behind_ssh() {
    let repositories = Repositories::default();
    repositories.create("app");
    let (_, pointer) = add_object(&repositories, b"content");
    repositories.commit(
        "app",
        &[
            (".gitattributes", "*.bin filter=lfs\n"),
            ("a.bin", &pointer),
        ],
    );
    let Some(server) = SshGit::start(&repositories.root()) else {
        return;
    };
    let objects = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let told = json!({
        "href": format!("{}/info/lfs", objects.url("app")),
        // ci:hunter2-the-token
        "header": { "Authorization": "Basic Y2k6aHVudGVyMi10aGUtdG9rZW4=" },
        "expires_in": 600,
    });
    std::fs::write(
        repositories.root().join("lfs-authenticate.json"),
        told.to_string(),
    )
    .unwrap();
    let (_folder, mut options) = options();
    let login = Secret::new(server.private_key() + &server.known_hosts());
    options
        .ssh_keys
        .extend(SshKey::from_login("127.0.0.1", &login));
    // For the objects themselves, which the server names without a login.
    options.git_credentials.push(token("127.0.0.1"));
    options.git.lfs = true;
    let workspace = fetched(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
}
