//! Git LFS: files are fetched only on request, match their pointers, and cause no request to
//! forbidden addresses.

use super::*;

/// Stores an object at the server and returns its id and the pointer for the repository.
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
async fn lfs_files_are_fetched_on_request() {
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
    std::os::unix::fs::symlink("small.bin", repositories.work_path("app").join("link.bin"))
        .unwrap();
    let program = repositories.work_path("app").join("large.bin");
    std::fs::set_permissions(program, Permissions::from_mode(0o755)).unwrap();
    add_submodule(&repositories, "app", "lib", "../lib.git", &lib);
    repositories.commit("app", &[]);
    let server = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
    let url = format!("{}#main", server.url("app"));

    let (folder, mut options) = runner_options();
    options.git_credentials.push(git_credential("127.0.0.1"));
    let workspace = fetch_context(&url, &options).await.unwrap();
    assert_eq!(read(&workspace, "large.bin"), pointer);
    drop(workspace);
    options.git = GitOptions {
        lfs: true,
        submodules: true,
        ..GitOptions::default()
    };
    let workspace = fetch_context(&url, &options).await.unwrap();
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

    // Wrong content of the right length, longer content, shorter content, and no object.
    let object = repositories.root().join("lfs-objects").join(&oid);
    let mut wrong = large.clone();
    wrong[17] ^= 1;
    let longer = [&large[..], b"x"].concat();
    for (content, expected) in [
        (Some(wrong), "but its pointer names sha256:"),
        (
            Some(longer),
            "it has more than the 3000000 bytes of its pointer",
        ),
        (Some(large[1..].to_vec()), "it has 2999999 bytes"),
        (
            None,
            "the server responded with error 404: Object does not exist",
        ),
    ] {
        match content {
            Some(content) => std::fs::write(&object, content).unwrap(),
            None => std::fs::remove_file(&object).unwrap(),
        }
        let error = error_text(&fetch_context(&url, &options).await.unwrap_err());
        assert!(
            error.contains(expected) && error.contains("large.bin`"),
            "{error}"
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the failed checkout is left over"
        );
    }
    // A file above the download limit is refused before the download.
    options.limits.download_bytes = 1_000_000;
    let error = fetch_context(&url, &options).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lfs_server_cannot_redirect_to_forbidden_addresses() {
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
    let (_folder, mut options) = runner_options();
    options.git_credentials.push(git_credential("127.0.0.1"));
    options.git.lfs = true;

    // A download from another host gets the headers that the server named, but no stored login.
    let there = format!(
        "http://localhost:{}",
        elsewhere.address().split_once(':').unwrap().1
    );
    let link = json!({
        "href": format!("{there}/lfs-objects/{oid}"),
        "header": { "Authorization": "Bearer for-this-download", "X-Mine": "yes" },
    });
    server.set_lfs_download(link);
    let workspace = fetch_context(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers["authorization"], "Bearer for-this-download");
    assert_eq!(seen[0].headers["x-mine"], "yes");
    server.set_lfs_download(json!({ "href": format!("{there}/lfs-objects/{oid}") }));
    fetch_context(&server.url("app"), &options).await.unwrap();
    let seen = elsewhere.requests();
    assert!(!seen[1].headers.contains_key("authorization"), "{seen:?}");

    for (href, expected) in [
        ("file:///etc/passwd", "downloads require https://"),
        ("ftp://example.com/x", "downloads require https://"),
        ("http://example.com/x", "neither encryption"),
        ("not a url", "is not a URL"),
        ("gopher://127.0.0.1/x", "downloads require https://"),
    ] {
        server.set_lfs_download(json!({ "href": href }));
        let error = error_text(
            &fetch_context(&server.url("app"), &options)
                .await
                .unwrap_err(),
        );
        assert!(
            error.contains(expected) || error.contains("named a location that is not a URL"),
            "{href}: {error}"
        );
    }
    // The repository itself names a server. The same rules apply, and no foreign login is sent.
    let name = |url: &str| {
        let config = format!("[lfs]\n\turl = {url}\n[include]\n\tpath = /etc/passwd\n");
        repositories.commit("app", &[(".lfsconfig", &config)]);
    };
    name(&format!("{there}/app.git/info/lfs"));
    let workspace = fetch_context(&server.url("app"), &options).await.unwrap();
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
        let error = fetch_context(&server.url("app"), &options)
            .await
            .unwrap_err();
        assert!(
            matches!(error, SourceError::Refused { .. } | SourceError::Lfs { .. }),
            "{url}: {error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lfs_files_of_an_ssh_repository_are_fetched() {
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
    let response = json!({
        "href": format!("{}/info/lfs", objects.url("app")),
        // ci:hunter2-the-token
        "header": { "Authorization": "Basic Y2k6aHVudGVyMi10aGUtdG9rZW4=" },
        "expires_in": 600,
    });
    std::fs::write(
        repositories.root().join("lfs-authenticate.json"),
        response.to_string(),
    )
    .unwrap();
    let (_folder, mut options) = runner_options();
    let login = Secret::new(server.private_key() + server.known_hosts().as_str());
    options
        .ssh_keys
        .extend(SshKey::from_login("127.0.0.1", &login));
    // Login for the objects, whose URLs the server returns without one.
    options.git_credentials.push(git_credential("127.0.0.1"));
    options.git.lfs = true;
    let workspace = fetch_context(&server.url("app"), &options).await.unwrap();
    assert_eq!(read(&workspace, "a.bin"), "content");
}
