//! The words of the languages that the targets parse.

#[rustfmt::skip]
pub(crate) const SPEC: &[&str] = &[
    "version: v1.1.0\n", "version: v1.0.0\n", "steps:\n", "  - ", "- ", "cmd: ", "build: ",
    "push: ", "id: a", "when: [", "]", "\n", "    ", "{{", "}}", "{{.Run.ID}}", "{{.Values.a}}",
    "{{.Secrets.s}}", "$ID", "$Registry", "$$", "alias:\n", "values:\n", "src: ", "'", "\"", "&a ",
    "*a", "<<: ", "|\n", ">\n", "#", ": ", "$(date +%F)", "&&", "2>&1", "secrets:\n", "volumes:\n",
    "networks:\n", "skipCreation: true", "volumeMounts:\n", "mountPath: /a", "env: [A=1]",
    "\u{feff}", "---\n", "!!str ", "-t app .", "-v a:/b", "docker ", "> /dev/null", "? ",
    "timeout: 5", "retries: 3", "repeat: 2", "detach: true", "--secret id=a,env=B",
    "--build-arg A=B", "cache: enabled", "entryPoint: sh", "%YAML 1.2\n",
];

#[rustfmt::skip]
pub(crate) const TEMPLATE: &[&str] = &[
    "{{", "}}", "{{-", "-}}", "(", ")", "|", ":=", "=", ",", "$", "$x", ".a", ".l", ".n", "$.a",
    "{{end}}", "{{else}}", "{{if ", "{{range ", "{{with ", "{{define \"d\"}}",
    "{{template \"d\" .}}", "{{block \"e\" .}}", "{{break}}", "{{/*", "*/}}", "`raw`", "'c'",
    "0x1F", "nil", "true", "\"%v %d %q %5.2f\"", "\"[a-z]+\"", "\"2006-01-02\"", " printf ",
    " index ", " repeat ", " until ", " replace ", " regexReplaceAll ", " trunc ", " b64dec ",
    " fromJson ", " toJson ", " splitList ", " dict ", " list ", " join ", " date ", " semver ",
    " substr ", " wrap ", " nindent ", " ternary ", " default ",
];

#[rustfmt::skip]
pub(crate) const DOCKERFILE: &[&str] = &[
    "FROM ", " AS ", "ARG ", "RUN ", "COPY --from=", "# syntax=", "# escape=`\n", "\\\n",
    "<<EOF\n", "EOF\n", "$", "${A}", "${A:-b}", "${A:+b}", "${A#*b}", "${A//a/b}", "\"", "'",
    "--platform=$BUILDPLATFORM ", "scratch", "a AS b\n", "ARG A=$A$A\n", "ONBUILD ",
    "HEALTHCHECK CMD ", "[\"a\"]", "\u{feff}",
];

#[rustfmt::skip]
pub(crate) const REFERENCE: &[&str] = &[
    "docker.io/", "library/", "localhost", ":5000", "[::1]", "@sha256:", ":latest", "/", "..", "_",
    "__", "-", "A", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
];

#[rustfmt::skip]
pub(crate) const JSON: &[&str] = &[
    "null", "true", "{}", "[]", "\"\"", "{\"a\":", "[[", "]]", "\\u0000", "\\ud800", "\\u202e",
    "\"ref\":", "\"refs/heads/", "refs/tags/", "\"after\":", "\"clone_url\":", "\"repository\":",
    "\"commits\":[", "\"full_name\":", "../", "--upload-pack",
    "0000000000000000000000000000000000000000", "https://", "git@", "\"event\":", "\"output\"",
    "\"step\":",
];

#[rustfmt::skip]
pub(crate) const ARCHIVE: &[&str] = &[
    "../", "/", "./", "a", "a/b", "..", "/etc/passwd", "\0", "ustar\0", "ustar  \0", "path=",
    "linkpath=", "size=", "././@LongLink", "77777777777", "0000644\0", "0120777\0",
];

#[rustfmt::skip]
pub(crate) const LOG: &[&str] = &[
    "\n", "\r\n", "\\n", "\\\\", "\\\"", "%2F", "%25", "&amp;", "&#x2f;", "\\u002f", "\\x2f",
    "'\\''", "***", "\x1b[31m", "aHVudGVy", "68756e74", "\u{202e}", "hunter2/+",
];

#[rustfmt::skip]
pub(crate) const URL: &[&str] = &[
    "https://", "http://", "ssh://", "git://", "file://", "oci://", "git@", "ext::",
    "--upload-pack=", "-", "#", ":", "@", "/", "..", ".git", "?", "%2e%2e", "%00", "%0a", "[::1]",
    "[::ffff:127.0.0.1]", "127.0.0.1", "0x7f.1", "2130706433", "localhost", "user:pass@",
    "refs/pull/1/head", ".tar.gz", "#main:folder", "\u{202e}",
];

#[rustfmt::skip]
pub(crate) const CRON: &[&str] = &[
    "*", "*/5", "0", "1-7", "MON", "MON-FRI", "SUN", "L", "W", "#", "?", ",", "-", "/", " ", "JAN",
    "31", "59", "23", "29 2", "|Europe/Berlin", "|UTC", "|5m",
];
