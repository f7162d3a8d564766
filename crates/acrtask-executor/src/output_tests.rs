use acrtask_model::Secret;

use super::*;

/// Returns the output of `chunks`.
async fn collect_output(chunks: &[&[u8]], secrets: &[&str], watch: &[&str]) -> (Vec<String>, bool) {
    let (sender, mut receiver) = mpsc::channel(10_000);
    let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(*s)).collect();
    let output = StepOutput::new(
        StepId::new("s").unwrap(),
        Events::new(RunId::new("r").unwrap(), sender, Patterns::new(&secrets)),
        Patterns::new(&secrets),
        &watch.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
    );
    let mut sink = output.line_sink(Stream::Stdout);
    for chunk in chunks {
        sink.push(chunk).await;
    }
    sink.finish().await;
    let found = output.found_retry_text();
    drop((sink, output));
    let mut texts = Vec::new();
    while let Some(event) = receiver.recv().await {
        if let EventKind::Output { text, .. } = event.kind {
            texts.push(text);
        }
    }
    (texts, found)
}

#[tokio::test]
async fn complete_lines_are_sent_at_once() {
    let (out, _) = collect_output(&[b"one\ntw", b"o\nthree\n\nfour"], &[], &[]).await;
    assert_eq!(out, ["one", "two\nthree\n", "four"]);
    assert_eq!(collect_output(&[b"a\r\nb\r\n"], &[], &[]).await.0, ["a\nb"]);
    assert!(collect_output(&[b""], &[], &[]).await.0.is_empty());
}

#[tokio::test]
async fn secret_split_over_chunks_is_masked() {
    let (out, _) = collect_output(&[b"x hunt", b"er2! y\n"], &["hunter2!"], &[]).await;
    assert_eq!(out, ["x *** y"]);
}

#[tokio::test]
async fn messages_are_masked() {
    let (sender, mut receiver) = mpsc::channel(10);
    let secrets = [Secret::new("hunter2!")];
    let run = RunId::new("r").unwrap();
    let events = Events::new(run, sender, Patterns::new(&secrets));
    let step = StepId::new("s").unwrap();
    let help = Some("not hunter2!".to_owned());
    events.warn(Some(&step), "no hunter2!", help).await;
    for kind in [
        EventKind::Progress {
            message: "pulling hunter2!".into(),
        },
        EventKind::StepRetrying {
            step,
            attempt: 1,
            delay_secs: 1,
            reason: "curl -u hunter2! failed".into(),
        },
    ] {
        events.send(kind).await;
    }
    drop(events);
    let mut lines = String::new();
    while let Some(event) = receiver.recv().await {
        lines += &serde_json::to_string(&event).unwrap();
    }
    assert!(
        lines.contains("***") && !lines.contains("hunter2"),
        "{lines}"
    );
}

#[tokio::test]
async fn line_without_end_is_sent_in_pieces_and_complete() {
    let long = "ä".repeat(MAX_LINE);
    let (out, _) = collect_output(&[long.as_bytes()], &[], &[]).await;
    assert!(out.len() >= 2);
    assert!(out.iter().all(|piece| piece.len() <= MAX_LINE));
    assert_eq!(out.concat(), long);
}

/// Pushes each chunk a second after the one before it. Returns the text of each event, and its
/// second.
async fn collect_timed_output(chunks: &[&[u8]], secrets: &[&str]) -> Vec<(u64, String)> {
    let (sender, mut receiver) = mpsc::channel(100);
    let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(*s)).collect();
    let output = StepOutput::new(
        StepId::new("s").unwrap(),
        Events::new(RunId::new("r").unwrap(), sender, Patterns::default()),
        Patterns::new(&secrets),
        &[],
    );
    let start = Instant::now();
    let pushing = async {
        let mut sink = output.line_sink(Stream::Stdout);
        drop(output);
        for chunk in chunks {
            sink.push(chunk).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        sink.finish().await;
    };
    let receiving = async {
        let mut texts = Vec::new();
        while let Some(event) = receiver.recv().await {
            if let EventKind::Output { text, .. } = event.kind {
                texts.push((start.elapsed().as_secs(), text));
            }
        }
        texts
    };
    tokio::join!(pushing, receiving).1
}

fn seconds(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    let owned = |(second, text): &(u64, &str)| (*second, (*text).to_owned());
    expected.iter().map(owned).collect()
}

#[tokio::test(start_paused = true)]
async fn open_line_is_sent_within_a_second() {
    assert_eq!(
        collect_timed_output(&[b".", b".", b".\n", b"Proceed? [y/N] ", b"\nyes\n"], &[]).await,
        seconds(&[
            (0, "."),
            (1, "."),
            (2, "."),
            (3, "Proceed? [y/N] "),
            (4, "yes")
        ])
    );
    // The late line end completes the piece and does not add an empty line.
    assert_eq!(
        collect_timed_output(
            &[
                b"10%\r", b"20%\r", b"done\r", b"\n", b"\n", b"a\r", b"\nb\n"
            ],
            &[]
        )
        .await,
        seconds(&[
            (0, "10%"),
            (1, "20%"),
            (2, "done"),
            (4, ""),
            (5, "a"),
            (6, "b")
        ])
    );
    // A character is not split.
    let euro = "\u{20ac}".as_bytes();
    assert_eq!(
        collect_timed_output(&[&euro[..1], &euro[1..], &[0xff]], &[]).await,
        seconds(&[(1, "\u{20ac}"), (2, "\u{fffd}")])
    );
}

#[tokio::test(start_paused = true)]
async fn secret_that_straddles_a_flush_is_masked() {
    assert_eq!(
        collect_timed_output(&[b"x hunt", b"er", b"2! y", b"\n"], &["hunter2!"]).await,
        seconds(&[(0, "x "), (2, "*** y")])
    );
    assert_eq!(
        collect_timed_output(&[b"x hunt", b"ed\n"], &["hunter2!"]).await,
        seconds(&[(0, "x "), (1, "hunted")])
    );
}

#[tokio::test]
async fn retry_text_split_over_chunks_is_found() {
    assert!(
        collect_output(&[b"connection re", b"set by peer"], &[], &["reset"])
            .await
            .1
    );
    assert!(
        !collect_output(&[b"connection re", b"fused"], &[], &["reset"])
            .await
            .1
    );
}
