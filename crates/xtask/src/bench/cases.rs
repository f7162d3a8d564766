//! Comparisons of builds and plans with the `docker` command.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::measure::{Taken, take};
use super::{Bench, Case, Row, spread, write};
use crate::{cargo, progress};

/// Memory limit of a build, for contexts of any size.
const BUILD_MEMORY_MIB: f64 = 64.0;

impl Bench {
    pub(super) fn run(&self, case: Case) -> Result<Vec<Row>> {
        match case {
            Case::Cached => self.cached(),
            Case::Files => self.context("100,000 small files", "files", 3, many_files),
            Case::Big => self.context("1 GiB in one file", "big", 3, one_gibibyte),
            Case::Run => self.build_run_push(),
            Case::Plan => self.plan(),
            Case::Dispatch => self.dispatch(),
            Case::Latency => self.latency(),
            Case::Idle => self.idle(),
            Case::Logs => self.logs(),
            Case::Webhook => self.webhook(),
            Case::Rebuild => self.rebuild(),
            Case::Watch => self.watch(),
            Case::CascadePlan => self.cascade_plan(),
            Case::Load => self.strangers(),
        }
    }

    fn cached(&self) -> Result<Vec<Row>> {
        let folder = self.folder("ten-layers")?;
        let mut dockerfile = format!("FROM {}/base/busybox:1.36\n", self.environment.registry);
        for layer in 1..=5 {
            write(&folder.join(format!("file{layer}")), &format!("{layer}\n"))?;
            dockerfile.push_str(&format!(
                "COPY file{layer} /file{layer}\nRUN echo {layer} > /made{layer}\n"
            ));
        }
        write(&folder.join("Dockerfile"), &dockerfile)?;
        let image = self.image("ten-layers");
        let rounds = 15;
        let kept = self.compare("cached build of ten layers", rounds, 1.0, |_| {
            Ok((
                self.ours_build(&image, &["--no-push"], &folder),
                self.docker_build(&image, &[], &folder),
            ))
        })?;
        let pushed = self.compare("the same and push", rounds, 1.0, |_| {
            Ok((
                self.ours_build(&image, &[], &folder),
                self.docker_build(&image, &["--push"], &folder),
            ))
        })?;
        Ok(vec![kept.row, pushed.row])
    }

    /// Renames the folder of a context before each run. Both sides name a context by its folder, so
    /// an unused name makes the engine receive all files.
    fn context(
        &self,
        what: &str,
        name: &str,
        rounds: usize,
        fill: impl Fn(&Path) -> Result<()>,
    ) -> Result<Vec<Row>> {
        progress::announce(format!("Making a context of {what}"));
        let mut folder = self.folder(name)?;
        fill(&folder)?;
        let dockerfile = format!(
            "FROM {}/base/busybox:1.36\nCOPY . /context\n",
            self.environment.registry
        );
        write(&folder.join("Dockerfile"), &dockerfile)?;
        let image = self.image(name);
        let once = std::process::id();
        let mut rename = |to: String| -> Result<PathBuf> {
            let next = self.scratch.join(to);
            fs::rename(&folder, &next)
                .with_context(|| format!("cannot rename {}", folder.display()))?;
            folder.clone_from(&next);
            Ok(next)
        };
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        progress::announce(format!(
            "Measuring: context of {what}, sent for the first time ({rounds} rounds)"
        ));
        for round in 0..=rounds {
            // Data of the run before must reach the disk before the next run.
            nix::unistd::sync();
            let context = rename(format!("{name}-{once}-{round}-a"))?;
            let a = take(
                &self.ours_build(&image, &["--no-push"], &context),
                &self.log(),
            )?;
            nix::unistd::sync();
            let context = rename(format!("{name}-{once}-{round}-b"))?;
            let b = take(&self.docker_build(&image, &[], &context), &self.log())?;
            if round > 0 {
                ours.push(a);
                theirs.push(b);
            }
        }
        let first = Comparison::of(
            &format!("context of {what}, first time"),
            1.0,
            &ours,
            &theirs,
        )?;
        let context = rename(format!("{name}-{once}"))?;
        let again = self.compare(
            &format!("context of {what}, unchanged"),
            rounds + 2,
            1.0,
            |_| {
                Ok((
                    self.ours_build(&image, &["--no-push"], &context),
                    self.docker_build(&image, &[], &context),
                ))
            },
        )?;
        let peak = peak_row(
            &format!("peak memory, {what}"),
            BUILD_MEMORY_MIB,
            &[first.ours, again.ours].concat(),
        )?;
        crate::cache::remove_tree(&context)?;
        Ok(vec![first.row, again.row, peak])
    }

    fn build_run_push(&self) -> Result<Vec<Row>> {
        let folder = self.folder("three-steps")?;
        let registry = &self.environment.registry;
        let dockerfile = format!(
            "FROM {registry}/base/busybox:1.36\nRUN echo fine > /state\nCMD [\"cat\", \"/state\"]\n"
        );
        write(&folder.join("Dockerfile"), &dockerfile)?;
        let image = self.image("three-steps");
        let task = format!(
            "version: v1.1.0\nsteps:\n  - build: -t {image} .\n  - cmd: {image}\n  - push: [\"{image}\"]\n"
        );
        write(&folder.join("acr-task.yaml"), &task)?;
        let compared = self.compare("build, run and push, all cached", 9, 0.8, |_| {
            let mut ours = self.ours();
            ours.arg("run").args(["-r", registry]).arg(&folder);
            let mut theirs = self.with_docker(Command::new("sh"));
            theirs
                .args([
                    "-ec",
                    "\"$0\" build -t \"$1\" \"$2\"; \"$0\" run --rm \"$1\"; \"$0\" push \"$1\"",
                ])
                .arg(&self.docker)
                .arg(&image)
                .arg(&folder);
            Ok((ours, theirs))
        })?;
        Ok(vec![compared.row])
    }

    fn plan(&self) -> Result<Vec<Row>> {
        let largest = largest_task()?;
        let command = || {
            let mut command = self.ours();
            command
                .args(["plan", "-o", "json", "-r", "reg.example.com", "-f"])
                .arg(&largest.file);
            for pair in &largest.set {
                command.arg("--set").arg(pair);
            }
            command.arg("/dev/null");
            command
        };
        progress::announce(format!(
            "Measuring: acrtask plan of {}",
            largest.file.display()
        ));
        take(&command(), &self.log())?;
        let runs = (0..31)
            .map(|_| take(&command(), &self.log()))
            .collect::<Result<Vec<_>>>()?;
        let times: Vec<f64> = runs.iter().map(|taken| taken.seconds * 1000.0).collect();
        let (low, median, high) = spread(&times)?;
        let time = Row {
            what: format!("plan of a task file of {} bytes", largest.size),
            low,
            median,
            high,
            decides: median,
            bound: 10.0,
            unit: "ms",
            scale: String::new(),
        };
        Ok(vec![time, peak_row("peak memory, plan", 20.0, &runs)?])
    }

    /// Runs both commands in turn. `commands` returns the pair of a round.
    fn compare(
        &self,
        what: &str,
        rounds: usize,
        bound: f64,
        commands: impl Fn(usize) -> Result<(Command, Command)>,
    ) -> Result<Comparison> {
        progress::announce(format!("Measuring: {what} ({rounds} rounds)"));
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for round in 0..=rounds {
            let (a, b) = commands(round)?;
            let (a, b) = (take(&a, &self.log())?, take(&b, &self.log())?);
            if round > 0 {
                ours.push(a);
                theirs.push(b);
            }
        }
        Comparison::of(what, bound, &ours, &theirs)
    }

    fn log(&self) -> PathBuf {
        self.scratch.join("last.log")
    }

    fn image(&self, name: &str) -> String {
        format!("{}/bench/{name}:1", self.environment.registry)
    }

    fn ours(&self) -> Command {
        self.with_docker(Command::new(&self.acrtask))
    }

    fn ours_build(&self, image: &str, flags: &[&str], context: &Path) -> Command {
        let mut command = self.ours();
        command
            .args(["build", "-t", image])
            .args(flags)
            .arg(context);
        command
    }

    fn docker_build(&self, image: &str, flags: &[&str], context: &Path) -> Command {
        let mut command = self.with_docker(Command::new(&self.docker));
        command
            .args(["buildx", "build", "-t", image])
            .args(flags)
            .arg(context);
        command
    }

    fn with_docker(&self, mut command: Command) -> Command {
        command
            .envs(self.environment.variables())
            .env("DOCKER_CONFIG", &self.docker_config);
        command
    }
}

struct Comparison {
    row: Row,
    ours: Vec<Taken>,
}

impl Comparison {
    fn of(what: &str, bound: f64, ours: &[Taken], theirs: &[Taken]) -> Result<Self> {
        let ratios: Vec<f64> = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| a.seconds / b.seconds)
            .collect();
        let (low, median, high) = spread(&ratios)?;
        let middle = |taken: &[Taken]| -> Result<f64> {
            let seconds: Vec<f64> = taken.iter().map(|taken| taken.seconds).collect();
            Ok(spread(&seconds)?.1)
        };
        let row = Row {
            what: what.to_owned(),
            low,
            median,
            high,
            decides: median,
            bound,
            unit: "x",
            scale: format!(
                "acrtask {:.3} s, docker {:.3} s",
                middle(ours)?,
                middle(theirs)?
            ),
        };
        Ok(Self {
            row,
            ours: ours.to_vec(),
        })
    }
}

fn peak_row(what: &str, bound: f64, runs: &[Taken]) -> Result<Row> {
    let peaks: Vec<f64> = runs.iter().map(|taken| taken.peak_mib).collect();
    let (low, median, high) = spread(&peaks)?;
    Ok(Row {
        what: what.to_owned(),
        low,
        median,
        high,
        // The highest figure counts for memory, not the median.
        decides: high,
        bound,
        unit: "MiB",
        scale: String::new(),
    })
}

fn many_files(folder: &Path) -> Result<()> {
    for dir in 0..100 {
        let dir_path = folder.join(format!("dir{dir:03}"));
        fs::create_dir(&dir_path)
            .with_context(|| format!("cannot create {}", dir_path.display()))?;
        for file in 0..1000 {
            write(
                &dir_path.join(format!("file{file:04}.txt")),
                &format!("file {file} in folder {dir}\n"),
            )?;
        }
    }
    Ok(())
}

fn one_gibibyte(folder: &Path) -> Result<()> {
    let path = folder.join("data.bin");
    let mut file =
        File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    // Random bytes (xorshift): a file of zeros would be sparse or compressed.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..1024 {
        for chunk in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

struct Largest {
    file: PathBuf,
    size: u64,
    /// Variables as `KEY=VALUE`.
    set: Vec<String>,
}

/// Returns the largest valid task file of `../shared/corpus`, or of `examples/` if that is missing.
fn largest_task() -> Result<Largest> {
    let root = cargo::checkout()?;
    let corpus = root.join("../shared/corpus/tasks");
    let mut found = if corpus.is_dir() {
        corpus_tasks(&corpus)?
    } else {
        Vec::new()
    };
    if found.is_empty() {
        progress::report("../shared/corpus is absent: the examples are measured instead");
        for entry in list(&root.join("examples"))? {
            let file = entry.join("acr-task.yaml");
            if let Ok(metadata) = fs::metadata(&file) {
                found.push(Largest {
                    file,
                    size: metadata.len(),
                    set: Vec::new(),
                });
            }
        }
    }
    found
        .into_iter()
        .max_by_key(|task| task.size)
        .context("there is no task file to measure")
}

fn corpus_tasks(dir: &Path) -> Result<Vec<Largest>> {
    #[derive(Deserialize)]
    struct Case {
        #[serde(default)]
        set: Vec<String>,
        expect: Expect,
    }
    #[derive(Deserialize)]
    struct Expect {
        ok: bool,
    }
    let mut found = Vec::new();
    for file in list(dir)? {
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let beside = file.with_extension("expect.json");
        let text =
            fs::read(&beside).with_context(|| format!("cannot read {}", beside.display()))?;
        let case: Case = serde_json::from_slice(&text)
            .with_context(|| format!("cannot read {}", beside.display()))?;
        if case.expect.ok {
            let size = fs::metadata(&file)
                .with_context(|| format!("cannot read {}", file.display()))?
                .len();
            found.push(Largest {
                file,
                size,
                set: case.set,
            });
        }
    }
    Ok(found)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    entries
        .map(|entry| {
            Ok(entry
                .with_context(|| format!("cannot list {}", dir.display()))?
                .path())
        })
        .collect()
}
