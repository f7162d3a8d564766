//! Git servers that send too much or malformed data. A fetch must stay within its limits and
//! execute nothing.

use std::{
    io::Write as _,
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use acrtask_source::{ContextSpec, Options, Origin, SourceError, fetch};
use acrtask_tests::{
    git_server::{HttpGit, Repositories, git, git_command},
    misbehaving::{Misbehaving, ReceivedRequest, Reply},
};

/// Longest time until a fetch is refused.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Returns the options of a runner with low limits.
fn options(scratch: &Path) -> Options {
    let mut options = Options {
        origin: Origin::TaskFile,
        allow_private_addresses: true,
        scratch_dir: scratch.to_owned(),
        ..Options::default()
    };
    options.limits.download_bytes = 32 * MIB;
    options.limits.unpacked_bytes = 32 * MIB;
    options.limits.entries = 5_000;
    options.limits.memory_bytes = 512 * MIB;
    options
}

async fn fetch_refused(url: &str) -> SourceError {
    let scratch = tempfile::tempdir().unwrap();
    let spec = ContextSpec::parse(url).unwrap();
    let options = options(scratch.path());
    let begun = Instant::now();
    let fetched = tokio::time::timeout(LIMIT, fetch(&spec, &options)).await;
    let error = fetched
        .expect("the fetch ends within the limit")
        .expect_err(url);
    let left = std::fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(left, 0, "{url}: files are left after {:?}", begun.elapsed());
    error
}

/// Runs git with `input` on standard input and returns its output.
fn git_with_input(folder: &Path, args: &[&str], input: &[u8]) -> String {
    let mut child = git_command(folder)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git {args:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Sets `tree` as the content of the branch `main`.
fn publish(bare: &Path, tree: &str) {
    let commit = git(bare, &["commit-tree", "-m", "x", tree]);
    git(bare, &["update-ref", "refs/heads/main", &commit]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bombs_are_refused_at_the_limits() {
    let repositories = Repositories::default();
    for name in ["files", "zeros"] {
        repositories.create(name);
        repositories.commit(name, &[("file", "first")]);
    }
    // Three nested levels of a hundred entries each, with a single file: few objects, a million
    // files.
    let bare = repositories.bare_path("files");
    let mut below = git_with_input(&bare, &["hash-object", "-w", "--stdin"], b"x");
    for kind in ["100644 blob", "040000 tree", "040000 tree"] {
        let entries: String = (0..100)
            .map(|n| format!("{kind} {below}\t{n:03}\n"))
            .collect();
        below = git_with_input(&bare, &["mktree"], entries.as_bytes());
    }
    publish(&bare, &below);
    // A file of zeros, which compresses to a thousandth of its size.
    let bare = repositories.bare_path("zeros");
    let zeros = vec![0; 200 << 20];
    let blob = git_with_input(&bare, &["hash-object", "-w", "--stdin"], &zeros);
    let entry = format!("100644 blob {blob}\tzeros\n");
    publish(&bare, &git_with_input(&bare, &["mktree"], entry.as_bytes()));

    let server = HttpGit::start(&repositories.root(), None);
    for (name, expected) in [("files", "files and folders"), ("zeros", "bytes on disk")] {
        match fetch_refused(&format!("{}#main", server.url(name))).await {
            SourceError::TooLarge { unit, .. } => assert_eq!(unit, expected, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Encodes a line of git's protocol.
fn packet_line(text: &[u8]) -> Vec<u8> {
    [format!("{:04x}", text.len() + 4).as_bytes(), text].concat()
}

const COMMIT: &str = "1111111111111111111111111111111111111111";

fn advertisement(end: bool) -> Vec<u8> {
    let first =
        format!("{COMMIT} HEAD\0side-band-64k shallow ofs-delta symref=HEAD:refs/heads/main\n");
    let lines = [
        packet_line(b"# service=git-upload-pack\n"),
        b"0000".to_vec(),
        packet_line(first.as_bytes()),
        packet_line(format!("{COMMIT} refs/heads/main\n").as_bytes()),
        if end { b"0000".to_vec() } else { Vec::new() },
    ];
    lines.concat()
}

fn response_head(kind: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-{kind}\r\nConnection: close\r\n\r\n")
        .into_bytes()
}

/// Returns the part of the response that limits the history to one commit.
fn shallow_info() -> Vec<u8> {
    [
        packet_line(format!("shallow {COMMIT}").as_bytes()),
        b"0000".to_vec(),
    ]
    .concat()
}

/// Returns an endless pack with one file of 2^40 bytes.
fn endless_pack() -> Reply {
    // Type 3 with the lowest four bits of the length, then seven bits per byte.
    let mut start = b"PACK\0\0\0\x02\0\0\0\x01".to_vec();
    start.extend([0xb0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]);
    start.extend([0x78, 0x01]);
    let start = [
        response_head("result"),
        shallow_info(),
        packet_line(b"NAK\n"),
        packet_line(&[&[1], &start[..]].concat()),
    ];
    // An uncompressed deflate block.
    let size = 65_000u16;
    let mut block = vec![1, 0];
    block.extend(size.to_le_bytes());
    block.extend((!size).to_le_bytes());
    block.extend((0..size).map(|n| (n % 251) as u8));
    Reply::RawEndless(start.concat(), packet_line(&block))
}

fn misbehave(seen: &ReceivedRequest) -> Reply {
    let path = seen.request.path.as_str();
    let listing = path.ends_with("/info/refs");
    let advertise = |body: Vec<u8>| Reply::Raw([response_head("advertisement"), body].concat());
    match path.split('/').nth(1).unwrap_or_default() {
        "refs.git" => {
            let refs = (0..200)
                .map(|n| packet_line(format!("{COMMIT} refs/heads/{n:0>200}\n").as_bytes()));
            let start = [response_head("advertisement"), advertisement(false)].concat();
            Reply::RawEndless(start, refs.collect::<Vec<_>>().concat())
        }
        "pack.git" if listing => advertise(advertisement(true)),
        // The client first sends its wants. Nothing else is sent before the client sends `done`.
        "pack.git" if !seen.body.windows(4).any(|word| word == b"done") => {
            Reply::Raw([response_head("result"), shallow_info()].concat())
        }
        "pack.git" => endless_pack(),
        "junk.git" => advertise(b"zzzz".repeat(1000)),
        "lengths.git" => advertise([advertisement(false), b"0003".to_vec()].concat()),
        "names.git" => advertise(
            [
                advertisement(false),
                packet_line(format!("{COMMIT} refs/heads/../../config\n").as_bytes()),
                packet_line(format!("{COMMIT} refs/heads/.lock\n").as_bytes()),
                packet_line(format!("{COMMIT} --upload-pack=x\n").as_bytes()),
                b"0000".to_vec(),
            ]
            .concat(),
        ),
        // The old "dumb" protocol, in which a repository may name other repositories.
        "dumb.git" if listing => Reply::body("text/plain", format!("{COMMIT}\trefs/heads/main\n")),
        "dumb.git" if path.ends_with("/HEAD") => {
            Reply::body("text/plain", "ref: refs/heads/main\n")
        }
        "dumb.git" if path.ends_with("alternates") => Reply::body(
            "text/plain",
            format!("http://localhost:{}/\n", trap_port(seen)),
        ),
        "moved.git" => Reply::redirect(&format!("http://localhost:{}{path}", trap_port(seen))),
        _ => Reply::status(404, &[]),
    }
}

/// Returns the port of the trap, which the test writes into the path.
fn trap_port(seen: &ReceivedRequest) -> &str {
    seen.request.path.split('/').nth(2).unwrap_or("1")
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_send_junk_are_refused() {
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = trap.local_addr().unwrap().port();
    let trapped = Misbehaving::start(trap, None, |_| Reply::status(404, &[]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Misbehaving::start(listener, None, misbehave);
    for (name, too_large) in [
        ("refs.git", Some("bytes of memory")),
        ("pack.git", Some("bytes on disk")),
        ("junk.git", None),
        ("lengths.git", None),
        ("names.git", None),
        ("dumb.git", None),
        ("moved.git", None),
    ] {
        // Git appends its requests to this path.
        let url = format!("http://{address}/{name}/{port}/x.git#main");
        match (fetch_refused(&url).await, too_large) {
            (SourceError::TooLarge { unit, .. }, Some(expected)) => assert_eq!(unit, expected),
            (SourceError::Git { .. } | SourceError::NoSuchReference { .. }, None) => {}
            (SourceError::UnexpectedResponse { .. }, None) if name == "moved.git" => {}
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
    // A redirect is followed only if the user of the program named the URL.
    let strays: Vec<ReceivedRequest> = trapped.requests();
    assert!(
        strays
            .iter()
            .all(|seen| seen.request.path.starts_with("/moved.git")),
        "{strays:?}"
    );
    assert!(server.requests().len() > 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_with_hostile_names_run_nothing() {
    let repositories = Repositories::default();
    let here = tempfile::tempdir().unwrap();
    let mark = here.path().join("mark");
    let hook = format!("#!/bin/sh\ntouch {}\n", mark.display());
    let config = format!(
        "[core]\n\tfsmonitor = touch {m}\n[filter \"x\"]\n\tsmudge = touch {m}\n",
        m = mark.display()
    );
    let server = HttpGit::start(&repositories.root(), None);
    for (n, name) in [".git", ".GIT", ".git ", "git~1", ".g\u{200c}it", "..", "."]
        .iter()
        .enumerate()
    {
        let repository = format!("names-{n}");
        repositories.create(&repository);
        repositories.commit(&repository, &[("file", "first")]);
        let bare = repositories.bare_path(&repository);
        let blob = git_with_input(&bare, &["hash-object", "-w", "--stdin"], hook.as_bytes());
        let config = git_with_input(&bare, &["hash-object", "-w", "--stdin"], config.as_bytes());
        let hooks = format!("100755 blob {blob}\tpost-checkout\n");
        let hooks = git_with_input(&bare, &["mktree"], hooks.as_bytes());
        let inner = format!("100644 blob {config}\tconfig\n040000 tree {hooks}\thooks\n");
        let inner = git_with_input(&bare, &["mktree"], inner.as_bytes());
        // No git command writes such a tree without `--literally`.
        let id: Vec<u8> = (0..40)
            .step_by(2)
            .map(|at| u8::from_str_radix(&inner[at..at + 2], 16).unwrap())
            .collect();
        let raw = [b"40000 ", name.as_bytes(), b"\0", &id].concat();
        let args = ["hash-object", "-t", "tree", "--literally", "-w", "--stdin"];
        publish(&bare, &git_with_input(&bare, &args, &raw));
        let scratch = tempfile::tempdir().unwrap();
        let options = options(scratch.path());
        let spec = ContextSpec::parse(&format!("{}#main", server.url(&repository))).unwrap();
        // Some of these are ordinary names on this system.
        let fetched = fetch(&spec, &options).await;
        assert!(!mark.exists(), "{name:?} executed a command");
        if let Ok(workspace) = fetched {
            assert!(![".git", "..", "."].contains(name), "{name:?} was fetched");
            assert!(!workspace.root.join(".git/hooks/post-checkout").exists());
        }
    }
}
