use acrtask_model::Secret;

use super::*;

/// Returns the output of `chunks`.
async fn lines(chunks: &[&[u8]], secrets: &[&str], watch: &[&str]) -> (Vec<String>, bool) {
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
    let found = output.found();
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
async fn whole_lines_as_soon_as_they_are_whole() {
    let (out, _) = lines(&[b"one\ntw", b"o\nthree\n\nfour"], &[], &[]).await;
    assert_eq!(out, ["one", "two\nthree\n", "four"]);
    assert_eq!(lines(&[b"a\r\nb\r\n"], &[], &[]).await.0, ["a\nb"]);
    assert!(lines(&[b""], &[], &[]).await.0.is_empty());
}

#[tokio::test]
async fn a_secret_split_over_chunks_is_masked() {
    let (out, _) = lines(&[b"x hunt", b"er2! y\n"], &["hunter2!"], &[]).await;
    assert_eq!(out, ["x *** y"]);
}

#[tokio::test]
async fn sentences_are_masked_too() {
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
    let mut told = String::new();
    while let Some(event) = receiver.recv().await {
        told += &serde_json::to_string(&event).unwrap();
    }
    assert!(told.contains("***") && !told.contains("hunter2"), "{told}");
}

#[tokio::test]
async fn a_line_without_end_comes_in_pieces_and_whole() {
    let long = "ä".repeat(MAX_LINE);
    let (out, _) = lines(&[long.as_bytes()], &[], &[]).await;
    assert!(out.len() >= 2);
    assert!(out.iter().all(|piece| piece.len() <= MAX_LINE));
    assert_eq!(out.concat(), long);
}

/// Pushes each chunk a second after the one before it. Returns the text of each event, and its second.
async fn timed(chunks: &[&[u8]], secrets: &[&str]) -> Vec<(u64, String)> {
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
async fn an_open_line_is_shown_within_a_second() {
    assert_eq!(
        timed(&[b".", b".", b".\n", b"Proceed? [y/N] ", b"\nyes\n"], &[]).await,
        seconds(&[
            (0, "."),
            (1, "."),
            (2, "."),
            (3, "Proceed? [y/N] "),
            (4, "yes")
        ])
    );
    // The line end that comes later ends the piece, and is not an empty line.
    assert_eq!(
        timed(
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
    // A character is not cut.
    let euro = "\u{20ac}".as_bytes();
    assert_eq!(
        timed(&[&euro[..1], &euro[1..], &[0xff]], &[]).await,
        seconds(&[(1, "\u{20ac}"), (2, "\u{fffd}")])
    );
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_straddles_a_flush_is_masked() {
    assert_eq!(
        timed(&[b"x hunt", b"er", b"2! y", b"\n"], &["hunter2!"]).await,
        seconds(&[(0, "x "), (2, "*** y")])
    );
    assert_eq!(
        timed(&[b"x hunt", b"ed\n"], &["hunter2!"]).await,
        seconds(&[(0, "x "), (1, "hunted")])
    );
}

#[tokio::test]
async fn a_watched_text_is_found_over_chunks() {
    assert!(
        lines(&[b"connection re", b"set by peer"], &[], &["reset"])
            .await
            .1
    );
    assert!(
        !lines(&[b"connection re", b"fused"], &[], &["reset"])
            .await
            .1
    );
}
