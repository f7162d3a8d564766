//! Input and output of a command: the step's own output, a pipe, a file of the workspace, or none.

use std::{path::PathBuf, sync::Arc};

use acrtask_model::events::Stream;
use acrtask_spec::cmd_line::Redirect;
use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, BufWriter, DuplexStream},
    sync::Mutex,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

use super::expand::expand_word;
use crate::{
    archive::Pack,
    error::error_chain,
    output::{LineSink, StepOutput, now},
    workspace::{Scratch, Workspace, WorkspaceError, resolve_path},
};

/// Size of the buffer of a pipe, in bytes.
pub(crate) const PIPE: usize = 64 * 1024;

/// The standard input of a command.
pub(crate) type Input = Box<dyn AsyncRead + Send + Sync + Unpin>;

/// The destination of one stream of a command.
pub(crate) enum Sink {
    /// The step's output.
    Lines(LineSink),
    /// The next command of the pipeline.
    Pipe(DuplexStream),
    /// A file of the workspace, which is written when the command has ended.
    File(Spool),
    /// Discards the stream.
    Null,
}

/// A buffered file for the workspace. An upload to the workspace needs the size first.
pub(crate) struct Spool {
    scratch: Scratch,
    file: BufWriter<tokio::fs::File>,
    /// Path in the workspace.
    target: String,
}

/// The error of a write after the reader has closed the pipe.
#[derive(Debug)]
pub(crate) struct Broken;

impl Sink {
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        match self {
            Self::Lines(lines) => lines.push(bytes).await,
            Self::Pipe(pipe) => pipe.write_all(bytes).await.map_err(|_| Broken)?,
            Self::File(spool) => spool.file.write_all(bytes).await.map_err(|_| Broken)?,
            Self::Null => {}
        }
        Ok(())
    }
}

/// A sink that both streams of a command may share.
pub(crate) type SharedSink = Arc<Mutex<Sink>>;

fn shared_sink(sink: Sink) -> SharedSink {
    Arc::new(Mutex::new(sink))
}

/// The three streams of a command.
pub(crate) struct Io {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: SharedSink,
    pub(crate) stderr: SharedSink,
    /// All sinks that were opened for this command. They are finished when it has ended.
    opened: Vec<SharedSink>,
}

impl Io {
    /// Returns the streams of a command in a pipeline, before its redirections.
    pub(crate) fn new(
        output: &StepOutput,
        stdin: Option<Input>,
        pipe: Option<DuplexStream>,
    ) -> Self {
        let stdout = shared_sink(match pipe {
            Some(pipe) => Sink::Pipe(pipe),
            None => Sink::Lines(output.line_sink(Stream::Stdout)),
        });
        let stderr = shared_sink(Sink::Lines(output.line_sink(Stream::Stderr)));
        Self {
            stdin,
            opened: vec![Arc::clone(&stdout), Arc::clone(&stderr)],
            stdout,
            stderr,
        }
    }

    /// Applies redirections, in order, as a shell does. Relative names start at `folder`.
    pub(crate) async fn redirect(
        &mut self,
        redirects: &[Redirect],
        workspace: &Workspace,
        folder: &str,
    ) -> Result<(), WorkspaceError> {
        for redirect in redirects {
            match redirect {
                Redirect::Duplicate { fd, onto } => {
                    let target = Arc::clone(if *onto == 2 {
                        &self.stderr
                    } else {
                        &self.stdout
                    });
                    *self.sink_mut(*fd) = target;
                }
                Redirect::Output { fd, to, append } => {
                    let name = expand_word(to, now()).map_err(WorkspaceError::Path)?;
                    let sink = if name == "/dev/null" {
                        Sink::Null
                    } else if name == "/dev/stdout" || name == "/dev/stderr" {
                        let target = if name == "/dev/stderr" {
                            &self.stderr
                        } else {
                            &self.stdout
                        };
                        *self.sink_mut(*fd) = Arc::clone(target);
                        continue;
                    } else {
                        let target = resolve_path(folder, &name)?;
                        Sink::File(Spool::open(workspace, target, *append).await?)
                    };
                    let sink = shared_sink(sink);
                    self.opened.push(Arc::clone(&sink));
                    *self.sink_mut(*fd) = sink;
                }
                Redirect::Input { from } => {
                    let name = expand_word(from, now()).map_err(WorkspaceError::Path)?;
                    self.stdin = Some(if name == "/dev/null" {
                        Box::new(tokio::io::empty())
                    } else {
                        file_reader(workspace.open_file(&resolve_path(folder, &name)?).await?)
                    });
                }
            }
        }
        Ok(())
    }

    fn sink_mut(&mut self, fd: u8) -> &mut SharedSink {
        if fd == 2 {
            &mut self.stderr
        } else {
            &mut self.stdout
        }
    }

    /// Uploads files to the workspace, sends the last lines and closes pipes, after the command has
    /// ended.
    pub(crate) async fn finish(self, workspace: &Workspace) -> Result<(), WorkspaceError> {
        let Self {
            opened,
            stdout,
            stderr,
            ..
        } = self;
        drop((stdout, stderr));
        for sink in opened {
            match &mut *sink.lock().await {
                Sink::Lines(lines) => lines.finish().await,
                Sink::Pipe(pipe) => {
                    // The other end may have ended first.
                    let _ = pipe.shutdown().await;
                }
                Sink::File(spool) => spool.upload(workspace).await?,
                Sink::Null => {}
            }
        }
        Ok(())
    }
}

impl Spool {
    async fn open(
        workspace: &Workspace,
        target: String,
        append: bool,
    ) -> Result<Self, WorkspaceError> {
        let scratch = workspace.scratch()?;
        let path = Self::path(&scratch);
        let file = tokio::fs::File::create(&path)
            .await
            .map_err(|source| WorkspaceError::Io {
                attempted: format!("make {}", path.display()),
                source,
            })?;
        let mut spool = Self {
            scratch,
            file: BufWriter::with_capacity(PIPE, file),
            target,
        };
        if append {
            // If the file does not exist, the append creates it.
            if let Ok(mut content) = workspace.open_file(&spool.target).await {
                while let Some(chunk) = content.recv().await {
                    let chunk = chunk.map_err(|source| spool.error(source))?;
                    spool
                        .file
                        .write_all(&chunk)
                        .await
                        .map_err(|source| spool.error(source))?;
                }
            }
        }
        Ok(spool)
    }

    fn path(scratch: &Scratch) -> PathBuf {
        scratch.path().join("output")
    }

    fn error(&self, source: std::io::Error) -> WorkspaceError {
        WorkspaceError::Io {
            attempted: format!("write {}", self.target),
            source,
        }
    }

    async fn upload(&mut self, workspace: &Workspace) -> Result<(), WorkspaceError> {
        self.file
            .flush()
            .await
            .map_err(|source| self.error(source))?;
        let (folder, name) = self.target.rsplit_once('/').unwrap_or(("", &self.target));
        let pack = Pack::File {
            from: Self::path(&self.scratch),
            at: name.into(),
            mode: 0o644,
        };
        workspace.put_files(folder, vec![pack]).await
    }
}

/// Returns the chunks of a file as a reader.
pub(crate) fn file_reader(content: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>) -> Input {
    Box::new(StreamReader::new(ReceiverStream::new(content)))
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code; 0 is success. Docker's codes apply: 125 if the engine refused, 126 and 127 if
    /// the program could not be run.
    pub(crate) code: i64,
    /// The reason, in addition to the code.
    pub(crate) why: Option<String>,
}

impl Exit {
    pub(crate) const OK: Self = Self { code: 0, why: None };

    pub(crate) fn code(code: i64) -> Self {
        Self { code, why: None }
    }

    pub(crate) fn refused(code: i64, why: impl Into<String>) -> Self {
        Self {
            code,
            why: Some(why.into()),
        }
    }

    /// Returns exit code 125 with an error and its causes.
    pub(crate) fn error(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::refused(125, error_chain(error))
    }
}
