//! `docker WORD ...`, carried out by the executor itself on the run's own images and containers.

use acrtask_spec::cmd_line::Word;

use super::{
    io::{Exit, Io},
    words,
};
use crate::{context::StepContext, output::now};

/// Runs one line.
pub(crate) async fn run(_ctx: &StepContext, line: &[Word], _io: &mut Io) -> Exit {
    let words = match words::expand_all(line, now()) {
        Ok(words) => words,
        Err(why) => return Exit::refused(2, why),
    };
    Exit::refused(
        125,
        format!("docker {}: not carried out yet", words.join(" ")),
    )
}
