//! Templates that would take far too much time or memory. Each is refused within 50 ms, and all
//! within 64 MiB, in a release build. A debug build is about twenty times slower.

use std::time::{Duration, Instant};

use acrtask_template::{Limits, Template, TemplateErrorKind};

/// Name and template of each bomb.
const BOMBS: &[(&str, &str)] = &[
    ("repeat", r#"{{repeat 1000000000 "x"}}"#),
    (
        "repeat of the largest count",
        r#"{{repeat 9223372036854775807 "xy"}}"#,
    ),
    (
        "repeat of repeat",
        r#"{{range until 1000}}{{$x := repeat 1000000 "x"}}{{end}}"#,
    ),
    ("until", "{{until 100000000}}"),
    ("until, downwards", "{{until -9223372036854775807}}"),
    ("untilStep", "{{untilStep 0 9223372036854775807 1}}"),
    ("seq", "{{seq 1 1 100000000}}"),
    ("range over an integer", "{{range 1000000000}}x{{end}}"),
    (
        "range over an integer, empty",
        "{{range 9223372036854775807}}{{end}}",
    ),
    (
        "nested ranges",
        "{{range until 1000}}{{range until 1000}}{{range until 1000}}x{{end}}{{end}}{{end}}",
    ),
    (
        "nested ranges, empty",
        "{{$l := until 1000}}{{range $l}}{{range $l}}{{range $l}}{{end}}{{end}}{{end}}",
    ),
    ("indent", r#"{{indent 1000000000 "x"}}"#),
    (
        "indent of many lines",
        "{{$x := repeat 100000 \"\\n\"}}{{indent 10000 $x}}",
    ),
    (
        "nindent in a loop",
        r#"{{$x := "a\nb"}}{{range until 100000}}{{$x = nindent 100 $x}}{{end}}"#,
    ),
    (
        "doubling a text",
        r#"{{$x := "xxxxxxxx"}}{{range until 100}}{{$x = print $x $x}}{{end}}"#,
    ),
    (
        "doubling with printf",
        r#"{{$x := "xxxxxxxx"}}{{range until 100}}{{$x = printf "%s%s%s" $x $x $x}}{{end}}"#,
    ),
    (
        "doubling with cat",
        r#"{{$x := "x"}}{{range until 100}}{{$x = cat $x $x}}{{end}}"#,
    ),
    (
        "doubling with replace",
        r#"{{$x := "x"}}{{range until 100}}{{$x = replace "x" "xx" $x}}{{end}}"#,
    ),
    (
        "doubling with quote",
        r#"{{$x := "\""}}{{range until 100}}{{$x = quote $x}}{{end}}"#,
    ),
    (
        "doubling with join",
        r#"{{$x := "x"}}{{range until 100}}{{$x = join $x (list $x $x $x)}}{{end}}"#,
    ),
    (
        "doubling with toJson",
        r#"{{$x := "\""}}{{range until 100}}{{$x = toJson $x}}{{end}}"#,
    ),
    (
        "doubling with html",
        r#"{{$x := "&"}}{{range until 1000000}}{{$x = html $x $x}}{{end}}"#,
    ),
    (
        "doubling with js",
        r#"{{$x := "<"}}{{range until 1000000}}{{$x = js $x $x}}{{end}}"#,
    ),
    (
        "doubling with urlquery",
        r#"{{$x := "%"}}{{range until 1000000}}{{$x = urlquery $x $x}}{{end}}"#,
    ),
    (
        "doubling with regexReplaceAll",
        r#"{{$x := "x"}}{{range until 100}}{{$x = regexReplaceAll "x" $x "$0$0$0"}}{{end}}"#,
    ),
    (
        "doubling with regexQuoteMeta",
        r#"{{$x := "."}}{{range until 100}}{{$x = regexQuoteMeta $x}}{{end}}"#,
    ),
    (
        "doubling with b64enc",
        r#"{{$x := "xxxx"}}{{range until 100}}{{$x = b64enc $x}}{{end}}"#,
    ),
    (
        "doubling with wrapWith",
        r#"{{$x := repeat 10000 "x"}}{{$y := repeat 10000 "y"}}{{wrapWith 1 $y $x}}"#,
    ),
    (
        "doubling a list",
        "{{$l := list 1}}{{range until 100}}{{$l = concat $l $l}}{{end}}",
    ),
    (
        "nesting lists by doubling",
        "{{$l := list 1}}{{range until 90}}{{$l = list $l $l}}{{end}}{{$l}}",
    ),
    (
        "nesting lists deep",
        "{{$l := list 1}}{{range until 1000000}}{{$l = list $l}}{{end}}",
    ),
    (
        "nesting dicts by doubling",
        r#"{{$d := dict}}{{range until 90}}{{$d = dict "a" $d "b" $d}}{{end}}{{toJson $d}}"#,
    ),
    (
        "a chain of dicts",
        r#"{{$d := dict}}{{range until 1000000}}{{$d = dict "a" $d}}{{end}}{{$d}}"#,
    ),
    (
        "a chain of dicts from its head",
        r#"{{$h := dict}}{{$d := $h}}{{range until 1000000}}{{$n := dict}}{{$_ := set $d "n" $n}}{{$d = $n}}{{end}}"#,
    ),
    (
        "appending",
        "{{$l := list}}{{range until 100000}}{{$l = append $l .}}{{end}}",
    ),
    (
        "prepending",
        "{{$l := list}}{{range until 100000}}{{$l = prepend $l .}}{{end}}",
    ),
    (
        "growing a dict",
        r#"{{$d := dict}}{{range until 10000000}}{{$_ := set $d (toString .) .}}{{end}}"#,
    ),
    (
        "a dict that holds itself, printed",
        r#"{{$d := dict}}{{$_ := set $d "d" $d}}{{$d}}"#,
    ),
    (
        "a dict that holds itself, as JSON",
        r#"{{$d := dict}}{{$_ := set $d "d" $d}}{{toJson $d}}"#,
    ),
    (
        "a dict that holds itself, as pretty JSON",
        r#"{{$d := dict}}{{$_ := set $d "d" $d}}{{toPrettyJson $d}}"#,
    ),
    (
        "a dict that holds itself, copied",
        r#"{{$d := dict}}{{$_ := set $d "d" $d}}{{$x := deepCopy $d}}"#,
    ),
    (
        "a dict that holds itself twice, copied",
        r#"{{$d := dict}}{{$_ := set $d "d" $d}}{{$_ := set $d "e" $d}}{{$x := deepCopy $d}}"#,
    ),
    (
        "dicts that hold themselves, compared",
        r#"{{$d := dict}}{{$_ := set $d "d" $d}}{{$e := dict}}{{$_ := set $e "d" $e}}{{deepEqual $d $e}}"#,
    ),
    (
        "dicts that hold themselves, merged",
        r#"{{$d := dict}}{{$_ := set $d "d" $d}}{{$e := dict}}{{$_ := set $e "d" (dict "d" $d)}}{{merge $d $e | toJson}}"#,
    ),
    (
        "template recursion",
        r#"{{define "a"}}{{template "a" .}}{{end}}{{template "a" .}}"#,
    ),
    (
        "template recursion, twice",
        r#"{{define "a"}}{{template "a" .}}{{template "a" .}}{{end}}{{template "a" .}}"#,
    ),
    (
        "template recursion within depth",
        r#"{{define "a"}}{{if gt . 0}}{{$n := int (sub . 1)}}{{template "a" $n}}{{template "a" $n}}{{end}}{{end}}{{template "a" 60}}"#,
    ),
    (
        "templates that call each other",
        r#"{{define "a"}}{{template "b"}}{{end}}{{define "b"}}{{template "a"}}{{end}}{{template "a"}}"#,
    ),
    (
        "printf, width",
        r#"{{range until 1000000}}{{$x := printf "%1000000d" 1}}{{end}}"#,
    ),
    (
        "printf, precision",
        r#"{{range until 1000000}}{{$x := printf "%.1000000f" 1.5}}{{end}}"#,
    ),
    (
        "printf, precision of %e",
        r#"{{range until 1000000}}{{$x := printf "%.999999e" 1.5}}{{end}}"#,
    ),
    (
        "printf, star",
        r#"{{range until 1000000}}{{$x := printf "%*d" 1000000 1}}{{end}}"#,
    ),
    (
        "printf, many widths",
        r#"{{printf "%999999d%999999d%999999d%999999d%999999d" 1 1 1 1 1}}"#,
    ),
    (
        "printf of a list with a width",
        r#"{{printf "%10000d" (until 10000)}}"#,
    ),
    (
        "a regular expression that counts",
        r#"{{regexMatch "((((a{100}){100}){100}){100})" "a"}}"#,
    ),
    (
        "many regular expressions",
        r#"{{range until 100000}}{{$x := regexMatch "(a|b|c|[d-z])*x{30}" "abc"}}{{end}}"#,
    ),
    (
        "a regular expression over a long text",
        r#"{{$x := repeat 1000000 "ab"}}{{range until 1000}}{{$y := regexFindAll "(a*)*b" $x -1}}{{end}}"#,
    ),
    (
        "a regular expression that matches everywhere",
        r#"{{$x := repeat 500000 "a"}}{{regexReplaceAll "" $x (repeat 1000 "y")}}"#,
    ),
    (
        "matches that read to the end",
        r#"{{$x := repeat 250000 "A"}}{{$y := regexFindAll ".*[^A-Z]|[A-Z]" $x -1}}"#,
    ),
    (
        "an automaton of many states",
        r#"{{$x := repeat 100000 "ab"}}{{$y := regexMatch "[ab]*a[ab]{500}c" $x}}"#,
    ),
    (
        "large classes",
        r#"{{range until 100000}}{{$x := regexMatch "\\pL{20}" "a"}}{{end}}"#,
    ),
    (
        "blocks within recursion",
        r#"{{define "a"}}{{range .}}{{with .}}{{if .}}{{template "a" $}}{{end}}{{end}}{{end}}{{end}}{{template "a" (list (list 1))}}"#,
    ),
    (
        "splitting a long text",
        r#"{{$x := repeat 1000000 ","}}{{range until 100}}{{$y := splitList "," $x}}{{end}}"#,
    ),
    (
        "splitting into a dict",
        r#"{{$x := repeat 1000000 ","}}{{$y := split "," $x}}"#,
    ),
    (
        "digests of a long text",
        r#"{{$x := repeat 2000000 "a"}}{{range until 10000}}{{$y := sha512sum $x}}{{end}}"#,
    ),
    (
        "case of a long text",
        r#"{{$x := repeat 1000000 "a"}}{{range until 10000}}{{$y := title $x}}{{end}}"#,
    ),
    (
        "words of a long text",
        r#"{{$x := repeat 100000 "aB1_"}}{{range until 10000}}{{$y := snakecase $x}}{{end}}"#,
    ),
    (
        "trimming a long text",
        r#"{{$x := repeat 100000 "a"}}{{$y := repeat 100000 "b"}}{{range until 10000}}{{$z := trimAll $y $x}}{{end}}"#,
    ),
    (
        "comparing long texts",
        r#"{{$x := repeat 1000000 "a"}}{{$y := repeat 1000000 "a"}}{{range until 100000}}{{$z := eq $x $y}}{{end}}"#,
    ),
    (
        "has over a long list",
        "{{$l := until 100000}}{{range until 100000}}{{$x := has -1 $l}}{{end}}",
    ),
    ("uniq of a long list", "{{$x := uniq (until 100000)}}"),
    (
        "without of long lists",
        "{{$l := until 10000}}{{range $l}}{{$x := without $l 1 2 3 4 5}}{{end}}",
    ),
    (
        "sorting",
        r#"{{$l := until 100000}}{{range until 1000}}{{$x := sortAlpha $l}}{{end}}"#,
    ),
    (
        "dates",
        r#"{{range until 1000000}}{{$x := toDate "2006-01-02" "2020-01-01"}}{{end}}"#,
    ),
    (
        "zones",
        r#"{{range until 1000000}}{{$x := dateInZone "2006" 0 "Europe/Berlin"}}{{end}}"#,
    ),
    (
        "a long layout",
        r#"{{$x := repeat 500000 "2006"}}{{range until 100}}{{$y := date $x 0}}{{end}}"#,
    ),
    (
        "a long layout, read",
        r#"{{$x := repeat 500000 "2006"}}{{range until 100}}{{$y := toDate $x $x}}{{end}}"#,
    ),
    (
        "constraints",
        r#"{{$x := repeat 1000 "1.2.3 || "}}{{range until 10000}}{{$y := semverCompare (print $x "1") "1.2.3"}}{{end}}"#,
    ),
    (
        "texts that elements share, joined",
        r#"{{$x := repeat 500000 "x"}}{{$l := list $x}}{{range until 9}}{{$l = concat $l $l}}{{end}}{{join "" $l}}"#,
    ),
    (
        "an abbreviation of a zone that does not end",
        r#"{{$d := toDate "MST" (print "GMT+" (repeat 200000 "0"))}}{{$x := $d.Format (repeat 1000 "MST ")}}{{range 10000000}}{{end}}"#,
    ),
    (
        "a replacement that is read for each match",
        r#"{{$x := repeat 2000 "a"}}{{$r := repeat 200000 "$1"}}{{$y := regexReplaceAll "a()" $x $r}}"#,
    ),
    (
        "versions of many parts",
        r#"{{$v := semver (print "1.0.0-a" (repeat 50000 ".a"))}}{{range 100000}}{{$x := $v.Compare $v}}{{end}}"#,
    ),
    (
        "decimals",
        "{{range until 1000000}}{{$x := divf 1 3 7 9 11}}{{end}}",
    ),
    (
        "paths",
        r#"{{$x := repeat 100000 "a/../"}}{{range until 10000}}{{$y := clean $x}}{{end}}"#,
    ),
    (
        "reading JSON",
        r#"{{$x := print "[" (repeat 500000 "1,") "1]"}}{{range until 100}}{{$y := fromJson $x}}{{end}}"#,
    ),
    (
        "reading deep JSON",
        r#"{{$x := repeat 100000 "["}}{{$y := fromJson $x}}{{range until 10000000}}{{end}}"#,
    ),
    (
        "chunks",
        "{{$l := until 100000}}{{range until 1000}}{{$x := chunk 1 $l}}{{end}}",
    ),
    (
        "shadowing a variable",
        "{{$x := 1}}{{range until 10000000}}{{$x := .}}{{end}}",
    ),
    (
        "omit",
        r#"{{$d := dict}}{{range until 10000}}{{$_ := set $d (toString .) .}}{{end}}{{range until 10000}}{{$x := omit $d "a"}}{{end}}"#,
    ),
];

/// Bombs that are too long to write out: name, start, repeated part, count, and end.
const LONG_BOMBS: &[(&str, &str, &str, usize, &str)] = &[
    ("parentheses", "{{", "(", 100_000, ""),
    ("parentheses, closed", "{{1", "|print", 80_000, "}}"),
    ("blocks", "", "{{if true}}", 40_000, ""),
    ("ranges", "", "{{range .}}", 40_000, ""),
    (
        "else if",
        "{{if 0}}",
        "{{else if 0}}",
        30_000,
        "{{end}}{{range 10000000}}{{end}}",
    ),
    ("inner templates", "", "{{block \"x\" .}}", 30_000, ""),
    ("actions", "", "{{.}}", 100_000, ""),
    ("words", "{{print", " 1", 250_000, "}}"),
    ("fields", "{{", ".a", 250_000, "}}"),
    (
        "variables",
        "{{range 100000000}}",
        "{{$x := 1}}",
        20_000,
        "{{end}}",
    ),
    ("variables in one scope", "", "{{$x := 1}}", 5_000, ""),
    (
        "assigning to the first of many variables",
        "{{$a := 1}}",
        "{{$x := 1}}",
        900,
        "{{range 10000000}}{{$a = 1}}{{end}}",
    ),
    ("a long file", "", "x", 3_000_000, ""),
];

/// Returns the maximum time of one bomb.
fn limit() -> Duration {
    Duration::from_millis(if cfg!(debug_assertions) { 3_000 } else { 50 })
}

/// Returns the processor time of this thread, which excludes that of other programs. If the system
/// does not provide it, returns the time since `start`.
fn processor_time(start: Instant) -> Duration {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|stat| stat.split_whitespace().next()?.parse().ok())
        .map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// Returns the peak memory of this process in KiB. `None` if the system does not provide it.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn refusal(text: &str) -> Option<TemplateErrorKind> {
    let data = serde_json::json!({"Values": {}, "Run": {"ID": "ca1"}});
    Template::parse("bomb", text)
        .and_then(|template| template.render(&data, &Limits::default()))
        .err()
        .map(|error| error.kind)
}

#[test]
fn every_bomb_is_refused_in_time_and_memory() {
    let long = LONG_BOMBS.iter().map(|(name, before, part, count, after)| {
        (*name, format!("{before}{}{after}", part.repeat(*count)))
    });
    let all = BOMBS
        .iter()
        .map(|(name, text)| (*name, (*text).to_owned()))
        .chain(long);
    let start = Instant::now();
    let mut problems = Vec::new();
    for (name, text) in all {
        let before = processor_time(start);
        let kind = refusal(&text);
        let elapsed = processor_time(start).saturating_sub(before);
        if kind != Some(TemplateErrorKind::Limit) {
            problems.push(format!("{name}: refused as {kind:?}"));
        }
        if elapsed > limit() {
            problems.push(format!("{name}: took {elapsed:?}"));
        }
    }
    assert_eq!(problems, Vec::<String>::new());
    if let Some(peak) = peak_kib() {
        assert!(peak < 64 << 10, "the process had {peak} KiB");
    }
}

/// Faults in very long words.
#[test]
fn long_words_are_refused_in_time() {
    let start = Instant::now();
    let mut problems = Vec::new();
    for (before, part, after) in [
        ("{{", "a", "}}"),
        ("{{.", "a", "-b}}"),
        ("{{.a-", "b", "}}"),
        ("{{", "1", "}}"),
        ("{{\"", "a", ""),
        ("{{`", "a", ""),
        ("{{'", "a", "'}}"),
        ("{{$", "a", "}}"),
        ("{{/*", "a", ""),
        ("{{template \"", "a", "\"}}"),
    ] {
        let text = format!("{before}{}{after}", part.repeat(500_000));
        let earlier = processor_time(start);
        let kind = refusal(&text);
        let elapsed = processor_time(start).saturating_sub(earlier);
        if kind.is_none() || elapsed > limit() {
            problems.push(format!("{before}{part}...{after}: {kind:?} in {elapsed:?}"));
        }
    }
    assert_eq!(problems, Vec::<String>::new());
}
