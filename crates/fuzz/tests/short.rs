//! Every target passes its corpus and mutated inputs for a total of thirty seconds.

use std::time::Duration;

use fuzz::Limits;

/// Total time for all targets.
const TIME: Duration = Duration::from_secs(30);

#[test]
fn targets_withstand_mutated_inputs() {
    let targets = fuzz::all();
    let each = TIME / u32::try_from(targets.len()).unwrap();
    // The machine that runs the tests is busy with other tests.
    let limits = Limits {
        time: Limits::default().time * 4,
        ..Limits::default()
    };
    for target in targets {
        fuzz::replay(&target, &limits)
            .and_then(|_| fuzz::fuzz(&target, each, 1, &limits, false))
            .map(|report| println!("{:<12} {report}", target.name))
            .unwrap_or_else(|failure| panic!("{}: {failure}", target.name));
    }
}
