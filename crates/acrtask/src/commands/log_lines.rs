//! `acrtask runs logs` with `--step`, `--grep`, `--tail` or `--around`: prints lines that the server
//! selects.

use acrtask_api::outline::{LogLine, LogLines, SearchEnd, SearchItem};
use acrtask_model::count;

use super::remote::print_message;
use crate::{
    args::runs::LogsArgs,
    client::Client,
    error::CliError,
    exit::Exit,
    render::{style::Style, text},
};

/// Lines per request, at most.
const PAGE: u64 = 1000;
/// Printed hits of a search, at most.
const MAX_HITS: u64 = 1000;
/// Lines around an address, with it.
const AROUND: u64 = 21;
/// Maximum length of an item of a search in bytes.
const MAX_ITEM: usize = 1 << 20;

/// Prints the selected lines.
pub(crate) async fn print_lines(
    client: &Client,
    args: &LogsArgs,
    json: bool,
    style: Style,
) -> Result<Exit, CliError> {
    let mut query = Vec::new();
    query.extend(args.attempt.map(|attempt| ("attempt", attempt.to_string())));
    query.extend(args.lines.step.iter().map(|step| ("step", step.clone())));
    let printer = LinePrinter {
        json,
        with_address: args.lines.grep.is_some() || args.lines.around.is_some(),
        style,
    };
    if let Some(text) = &args.lines.grep {
        query.push(("q", text.clone()));
        query.push(("limit", MAX_HITS.to_string()));
        query.push(("ignoreCase", args.lines.ignore_case.to_string()));
        query.push(("regex", args.lines.regex.to_string()));
        return search(client, args, &query, printer).await;
    }
    let path = ["runs", args.id.as_str(), "lines"];
    if let Some(tail) = args.lines.tail {
        query.push(("tail", tail.to_string()));
    } else if let Some(address) = &args.lines.around {
        query.push(("around", address.clone()));
        query.push(("count", AROUND.to_string()));
    } else {
        query.push(("count", PAGE.to_string()));
    }
    let is_whole = args.lines.tail.is_none() && args.lines.around.is_none();
    let mut cursor: Option<String> = None;
    loop {
        let mut page_query = query.clone();
        page_query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: LogLines = client.get(&path, &page_query).await?;
        printer.print(&page.lines)?;
        cursor = page.next.filter(|_| is_whole);
        if cursor.is_none() {
            return Ok(Exit::Succeeded);
        }
    }
}

async fn search(
    client: &Client,
    args: &LogsArgs,
    query: &[(&str, String)],
    printer: LinePrinter,
) -> Result<Exit, CliError> {
    let path = ["runs", args.id.as_str(), "search"];
    let mut response = client.stream(&path, query).await?;
    let incomplete = || {
        CliError::unreachable("the server ended the search before the end of the log")
            .help("try again, or search a step: `--step NAME`")
    };
    let mut buffer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| incomplete())? {
        for part in chunk.split_inclusive(|&byte| byte == b'\n') {
            buffer.extend_from_slice(part);
            if buffer.len() > MAX_ITEM {
                return Err(incomplete());
            }
            if !part.ends_with(b"\n") {
                continue;
            }
            let item = serde_json::from_slice(&buffer).map_err(|_| incomplete())?;
            buffer.clear();
            match item {
                SearchItem::Hit(line) => printer.print(&[line])?,
                SearchItem::End(end) => {
                    print_message(&describe_hits(&end));
                    return Ok(Exit::Succeeded);
                }
            }
        }
    }
    Err(incomplete())
}

/// Describes the counts of a search in one line.
fn describe_hits(end: &SearchEnd) -> String {
    let hits = usize::try_from(end.hits).unwrap_or(usize::MAX);
    let mut message = match hits {
        0 => "no line matches".to_owned(),
        1 => "1 line matches".to_owned(),
        _ => format!("{} match", count(hits, "line")),
    };
    if end.steps.len() > 1 {
        let steps = end.steps.iter().map(|(step, hits)| match step.as_str() {
            "" => format!("the run {hits}"),
            step => format!("{} {hits}", text::plain_line(step)),
        });
        message = format!("{message}: {}", steps.collect::<Vec<_>>().join(", "));
    }
    if end.hits > MAX_HITS {
        message = format!("{message}; the first {MAX_HITS} are shown");
    }
    if !end.is_complete {
        message.push_str("; the run is not finished");
    }
    message
}

/// Printer of lines.
#[derive(Debug, Clone, Copy)]
struct LinePrinter {
    json: bool,
    /// Prints the number of each line within its step.
    with_address: bool,
    style: Style,
}

impl LinePrinter {
    fn print(self, lines: &[LogLine]) -> Result<(), CliError> {
        let mut out = String::new();
        for line in lines {
            if self.json {
                let json = serde_json::to_string(line).map_err(|error| {
                    CliError::unreachable("cannot write a line").because(&error)
                })?;
                out.push_str(&text::escape_json(&json));
            } else {
                out.push_str(&self.format(line));
            }
            out.push('\n');
        }
        super::write_out(text::sanitize(&out).as_bytes())?;
        Ok(())
    }

    /// Formats a line as `STEP | TEXT` or `STEP:NUMBER | TEXT`.
    fn format(self, line: &LogLine) -> String {
        let text = text::printed_line(&line.text, self.style.is_colored());
        let step = text::plain_line(&line.step);
        let prefix = match (self.with_address, line.step.is_empty()) {
            (true, _) => format!("{step}:{}", line.number),
            (false, false) => step.into_owned(),
            (false, true) => return text.into_owned(),
        };
        format!("{} | {text}", self.style.dim(&prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_printed_with_its_address_and_without_control_characters() {
        let line = LogLine {
            step: "build".into(),
            number: 12,
            time: None,
            text: "\x1b[31mred\x1b[0m\x1b[2J\u{202e}".into(),
            is_cut: false,
        };
        let printer = |with_address| LinePrinter {
            json: false,
            with_address,
            style: Style::PLAIN,
        };
        assert_eq!(printer(true).format(&line), "build:12 | red");
        assert_eq!(printer(false).format(&line), "build | red");
        let of_run = LogLine {
            step: String::new(),
            ..line
        };
        assert_eq!(printer(true).format(&of_run), ":12 | red");
        assert_eq!(printer(false).format(&of_run), "red");
    }

    #[test]
    fn counts_name_the_steps() {
        let end = |hits, steps: &[(&str, u64)]| SearchEnd {
            hits,
            steps: steps
                .iter()
                .map(|(step, hits)| ((*step).to_owned(), *hits))
                .collect(),
            is_complete: true,
        };
        assert_eq!(describe_hits(&end(0, &[])), "no line matches");
        assert_eq!(describe_hits(&end(1, &[("a", 1)])), "1 line matches");
        assert_eq!(
            describe_hits(&end(1500, &[("", 1), ("a", 1499)])),
            "1500 lines match: the run 1, a 1499; the first 1000 are shown"
        );
    }
}
