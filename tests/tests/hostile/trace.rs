//! Parser of the output of `strace -f -qq -yy`: started programs, files opened for writing, and
//! connections.

use std::{
    collections::HashMap,
    io::{Read as _, Seek as _, SeekFrom},
    net::{IpAddr, SocketAddr},
    path::{Component, Path, PathBuf},
};

/// System calls that are traced.
pub(crate) const CALLS: &str = "execve,execveat,open,openat,openat2,creat,connect";

/// System call from one line of the trace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    name: String,
    /// Arguments and result.
    rest: String,
}

/// Trace that is still being written.
pub(crate) struct Trace {
    path: PathBuf,
    offset: u64,
    /// Incomplete last line.
    partial: String,
    /// Unfinished calls by process id.
    begun: HashMap<String, String>,
}

/// Calls that a program may make.
pub(crate) struct Allowed {
    /// Names of permitted programs.
    pub(crate) programs: Vec<&'static str>,
    /// Folders in which files may be opened for writing.
    pub(crate) folders: Vec<PathBuf>,
    /// Permitted destinations of connections.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Paths of permitted Unix sockets.
    pub(crate) sockets: Vec<PathBuf>,
}

impl Trace {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            offset: 0,
            partial: String::new(),
            begun: HashMap::new(),
        }
    }

    /// Returns the calls written since the last time.
    pub(crate) fn read_new_calls(&mut self) -> Vec<Call> {
        let mut file = std::fs::File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.offset)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        self.offset += bytes.len() as u64;
        let text = std::mem::take(&mut self.partial) + String::from_utf8_lossy(&bytes).as_ref();
        let (whole, partial) = text.rsplit_once('\n').unwrap_or(("", &text));
        self.partial = partial.to_owned();
        whole
            .lines()
            .filter_map(|line| self.parse_line(line))
            .collect()
    }

    fn parse_line(&mut self, line: &str) -> Option<Call> {
        let (process, line) = line.split_once(char::is_whitespace)?;
        let line = line.trim_start();
        if let Some(begun) = line.strip_suffix("<unfinished ...>") {
            self.begun.insert(process.to_owned(), begun.to_owned());
            return None;
        }
        let whole = match line.strip_prefix("<... ") {
            Some(resumed) => {
                let (_, rest) = resumed.split_once("resumed>")?;
                self.begun.remove(process)? + rest
            }
            None => line.to_owned(),
        };
        let (name, rest) = whole.split_once('(')?;
        Some(Call {
            name: name.to_owned(),
            rest: rest.to_owned(),
        })
    }
}

impl Allowed {
    /// Returns a description of the call if it is not permitted.
    pub(crate) fn describe_forbidden(&self, call: &Call) -> Option<String> {
        let (subject, permitted) = match call.name.as_str() {
            "execve" => {
                let program = PathBuf::from(find_quoted(&call.rest).unwrap_or_default());
                let name = program.file_name().and_then(|name| name.to_str());
                let fine = name.is_some_and(|name| self.programs.contains(&name));
                ("a program", fine)
            }
            "open" | "openat" | "openat2" | "creat" => {
                let flags = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"];
                let writes =
                    call.name == "creat" || flags.iter().any(|flag| call.rest.contains(flag));
                let path = opened_path(&call.rest).unwrap_or_default();
                let inside = self.folders.iter().any(|folder| path.starts_with(folder));
                let fine = !writes || path == Path::new("/dev/null") || inside;
                ("a file", fine)
            }
            "connect" => {
                let fine = match parse_destination(&call.rest) {
                    Destination::Nowhere => true,
                    Destination::Socket(path) => self.sockets.contains(&path),
                    Destination::Address(address) => self.addresses.contains(&address),
                    Destination::Unknown => false,
                };
                ("a connection", fine)
            }
            _ => ("a call", false),
        };
        (!permitted).then(|| format!("{subject}: {}({}", call.name, call.rest))
    }

    /// Returns `true` if the call connects to the address.
    pub(crate) fn is_connection(call: &Call, to: SocketAddr) -> bool {
        call.name == "connect"
            && matches!(parse_destination(&call.rest), Destination::Address(address) if address == to)
    }
}

/// Returns the first text in quotes.
fn find_quoted(text: &str) -> Option<String> {
    let (_, text) = text.split_once('"')?;
    Some(text.split_once('"')?.0.to_owned())
}

/// Returns the path of an opened file: the path of the resulting descriptor, or the requested path
/// if there is none.
fn opened_path(rest: &str) -> Option<PathBuf> {
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if let Some((_, path)) = result.split_once('<')
        && path.starts_with('/')
    {
        let end = path.find(['<', '>']).unwrap_or(path.len());
        return Some(PathBuf::from(&path[..end]));
    }
    let path = PathBuf::from(find_quoted(arguments)?);
    // The target of `..` is certain only if a descriptor was returned.
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    if path.is_absolute() {
        return Some(path);
    }
    // Relative to the folder of the first descriptor.
    let (_, folder) = arguments.split_once('<')?;
    Some(Path::new(&folder[..folder.find(['<', '>'])?]).join(path))
}

enum Destination {
    /// Destination that needs no check. The resolver connects UDP sockets to determine its own
    /// address. DNS queries go to the name server of the test.
    Nowhere,
    Address(SocketAddr),
    Socket(PathBuf),
    Unknown,
}

fn parse_destination(rest: &str) -> Destination {
    let descriptor = rest.split(',').next().unwrap_or_default();
    if descriptor.contains("<UDP") || rest.contains("AF_UNSPEC") || rest.contains("AF_NETLINK") {
        return Destination::Nowhere;
    }
    if rest.contains("sa_family=AF_UNIX") {
        return find_quoted(rest).map_or(Destination::Unknown, |path| {
            Destination::Socket(PathBuf::from(path))
        });
    }
    let port = rest
        .split_once("port=htons(")
        .and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok());
    let address = find_quoted(rest).and_then(|text| text.parse::<IpAddr>().ok());
    match (address, port) {
        (Some(address), Some(port)) => Destination::Address(SocketAddr::new(address, port)),
        _ => Destination::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_calls(text: &str) -> Vec<Call> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Trace::new(file.path().to_owned()).read_new_calls()
    }

    #[test]
    fn calls_that_are_not_permitted_are_reported() {
        let allowed = Allowed {
            programs: vec!["git"],
            folders: vec!["/data".into()],
            addresses: vec!["93.184.215.14:443".parse().unwrap()],
            sockets: vec!["/run/docker.sock".into()],
        };
        for (line, fine) in [
            (
                r#"execve("/usr/bin/git", ["git", "x"], 0x1 /* 9 vars */) = 0"#,
                true,
            ),
            (
                r#"execve("/bin/sh", ["sh", "-c", "git"], 0x1 /* 9 vars */) = 0"#,
                false,
            ),
            (
                r#"execve("/no/bin/touch", ["touch"], 0x1 /* 9 vars */) = -1 ENOENT (No such file or directory)"#,
                false,
            ),
            (
                r#"openat(AT_FDCWD</>, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3</etc/passwd>"#,
                true,
            ),
            (
                r#"openat(AT_FDCWD</>, "/data/x", O_WRONLY|O_CREAT, 0666) = 3</data/x>"#,
                true,
            ),
            (
                r#"openat(AT_FDCWD</>, "/dev/null", O_RDWR) = 3</dev/null<char 1:3>>"#,
                true,
            ),
            // A symbolic link: the resolved path counts.
            (
                r#"openat(AT_FDCWD</>, "/data/x", O_WRONLY|O_CREAT, 0666) = 3</etc/x>"#,
                false,
            ),
            (
                r#"openat(7</data>, "x", O_WRONLY|O_CREAT, 0666) = 3</data/x>"#,
                true,
            ),
            (
                r#"openat(7</data>, "x", O_RDWR) = -1 ENOENT (No such file or directory)"#,
                true,
            ),
            (
                r#"openat(7</data>, "../x", O_RDWR) = -1 ENOENT (No such file or directory)"#,
                false,
            ),
            (
                r#"openat(AT_FDCWD</>, "/etc/x", O_RDWR|O_CREAT, 0600) = -1 EROFS (Read-only file system)"#,
                false,
            ),
            (
                r#"connect(3<UNIX-STREAM:[1]>, {sa_family=AF_UNIX, sun_path="/run/docker.sock"}, 110) = 0"#,
                true,
            ),
            (
                r#"connect(3<UNIX-STREAM:[1]>, {sa_family=AF_UNIX, sun_path="/run/other"}, 110) = 0"#,
                false,
            ),
            (
                r#"connect(3<UDP:[1]>, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.1")}, 16) = 0"#,
                true,
            ),
            (
                r#"connect(3<TCP:[1]>, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("93.184.215.14")}, 16) = -1 EINPROGRESS (Operation now in progress)"#,
                true,
            ),
            (
                r#"connect(3<TCP:[1]>, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("127.0.0.1")}, 16) = 0"#,
                false,
            ),
            (
                r#"connect(3<TCPv6:[1]>, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::1", &sin6_addr), sin6_scope_id=0}, 28) = 0"#,
                false,
            ),
        ] {
            let calls = parse_calls(&format!("17  {line}\n"));
            assert_eq!(calls.len(), 1, "{line}");
            let objection = allowed.describe_forbidden(&calls[0]);
            assert_eq!(objection.is_none(), fine, "{line}: {objection:?}");
        }
    }

    #[test]
    fn interrupted_calls_of_threads_are_joined() {
        let calls = parse_calls(
            "7 execve(\"/usr/bin/git\", [\"git\"], 0x1 <unfinished ...>\n8 creat(\"/x\", 0600) = 3</x>\n\
             7 <... execve resumed>) = 0\n7 openat(AT_FD",
        );
        let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["creat", "execve"]);
        assert!(calls[1].rest.ends_with(") = 0"), "{:?}", calls[1]);
    }
}
