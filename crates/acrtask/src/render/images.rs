//! Images, what they stand on, and base tags, as text. Pure.

use std::fmt::Write as _;

use acrtask_api::{
    cascade::{CascadeNodeState, Rebuild},
    image::{Base, BaseEffect, BasePolicy, BaseStatus, BlastRadius, Image, ImageDetail, ImageTree},
};
use acrtask_model::{Digest, events::BaseRole};
use jiff::Timestamp;

use super::{
    proposals,
    run::ago,
    style::Style,
    table::{facts, list, titled},
    text,
};

fn short(digest: &Digest) -> String {
    digest.short().to_owned()
}

fn role(role: BaseRole) -> &'static str {
    match role {
        BaseRole::Runtime => "runtime base",
        BaseRole::BuildTime => "build stage",
        BaseRole::Frontend => "frontend",
        BaseRole::Ran => "container",
    }
}

fn effect(effect: BaseEffect) -> &'static str {
    match effect {
        BaseEffect::WouldRebuild => "a new digest builds it again",
        BaseEffect::Stale => "it has moved: the image is stale",
        BaseEffect::OtherPlatform => "it has moved, for other platforms only",
        BaseEffect::DoesNotCount => "does not count for the task",
        BaseEffect::Pinned => "named by its digest: it cannot move",
        BaseEffect::NoTask => "no task builds the image again",
    }
}

/// A list of images. `stale`: with what makes them stale.
pub(crate) fn images(images: &[Image], stale: bool, now: Timestamp, style: Style) -> String {
    let rows = images.iter().map(|image| {
        let mut row = vec![
            image.name.clone(),
            short(&image.digest),
            image.task.clone().unwrap_or_else(|| "-".into()),
            ago(image.built_at, now),
        ];
        if stale {
            let bases: Vec<&str> = image.stale.iter().map(|base| base.name.as_str()).collect();
            row.push(bases.join(", "));
        } else {
            row.push(if !image.stale.is_empty() {
                style.warn("stale")
            } else if image.newest {
                String::new()
            } else {
                style.dim("older")
            });
        }
        row
    });
    let last = if stale { "BASE THAT MOVED" } else { "" };
    let nothing = if stale {
        "no image is stale"
    } else {
        "there are no images"
    };
    list(
        &["IMAGE", "DIGEST", "TASK", "BUILT", last],
        rows.collect(),
        nothing,
        style,
    )
}

fn head(detail: &ImageDetail, now: Timestamp, style: Style) -> String {
    let image = &detail.image;
    facts(
        &[
            ("image", image.name.clone()),
            ("digest", image.digest.to_string()),
            ("task", image.task.clone().unwrap_or_default()),
            ("run", image.run.to_string()),
            ("built", ago(image.built_at, now)),
            ("platforms", image.platforms.join(", ")),
        ],
        style,
    )
}

/// An image.
pub(crate) fn image(detail: &ImageDetail, now: Timestamp, style: Style) -> String {
    let mut out = head(detail, now, style);
    let bases = detail.bases.iter().map(|base| {
        vec![
            base.name.clone(),
            short(&base.digest),
            role(base.role).to_owned(),
            base.built_by
                .as_ref()
                .map(|task| format!("built by {task}"))
                .unwrap_or_default(),
        ]
    });
    titled("Built from", bases.collect(), style, &mut out);
    let history = detail.history.iter().map(|build| {
        vec![
            short(&build.digest),
            build.run.to_string(),
            ago(build.built_at, now),
        ]
    });
    titled("Pushed", history.collect(), style, &mut out);
    out
}

/// What would make an image be built again.
pub(crate) fn why(detail: &ImageDetail, now: Timestamp, style: Style) -> String {
    let mut out = head(detail, now, style);
    let image = &detail.image;
    let verdict = if !image.stale.is_empty() {
        style.warn("it is stale: a base has moved since it was built")
    } else if !image.newest {
        "it is left as it is: the last run of its task pushed other names".to_owned()
    } else {
        match detail.policy {
            BasePolicy::None => "no base makes it be built again".to_owned(),
            BasePolicy::Runtime => "it is fresh; what it stands on counts".to_owned(),
            BasePolicy::All => "it is fresh; everything that its run used counts".to_owned(),
        }
    };
    let _ = writeln!(out, "\n{verdict}");
    if !image.stale.is_empty() {
        let _ = writeln!(out, "{}", rebuild(detail.rebuild.as_ref()));
    }
    let bases = detail.bases.iter().map(|base| {
        let digests = match &base.now {
            Some(now) if *now != base.digest => {
                format!("{} -> {}", short(&base.digest), short(now))
            }
            _ => short(&base.digest),
        };
        let words = effect(base.effect);
        vec![
            base.name.clone(),
            role(base.role).to_owned(),
            digests,
            if base.effect == BaseEffect::Stale {
                style.warn(words)
            } else {
                words.to_owned()
            },
        ]
    });
    titled("Bases", bases.collect(), style, &mut out);
    let newer = detail.bases.iter().filter_map(|base| {
        let newer = base.newer.as_ref()?;
        let words = proposals::newer(newer, style);
        Some(vec![base.name.clone(), newer.tag.clone(), words])
    });
    titled("Newer tags", newer.collect(), style, &mut out);
    out
}

/// What cascades do about a stale image.
fn rebuild(rebuild: Option<&Rebuild>) -> String {
    let Some(rebuild) = rebuild else {
        return "no cascade has taken it up yet: `acrtask cascade list`".into();
    };
    let why = rebuild.why.as_deref().map(text::plain).unwrap_or_default();
    let Some((id, state)) = rebuild.cascade.zip(rebuild.state) else {
        return format!("it is not built again: {why}");
    };
    let (open, word) = (state.is_open(), state.as_str());
    let built = state == CascadeNodeState::Succeeded;
    let verb = if open {
        "builds it again"
    } else if built {
        "has built it"
    } else {
        "has not built it"
    };
    let mut out = match &*why {
        why if built => format!("cascade {id} {verb}: {why}"),
        "" => format!("cascade {id} {verb}: {word}"),
        // `canceled by somebody`
        why if why.starts_with(word) => format!("cascade {id} {verb}: {why}"),
        why => format!("cascade {id} {verb}: {word}: {why}"),
    };
    if let Some(run) = &rebuild.run {
        let _ = write!(out, " (run {run})");
    }
    let _ = if built {
        write!(out, "\nmove its tags: `acrtask cascade promote {id}`")
    } else if open {
        write!(out, "\nfollow it: `acrtask cascade show {id}`")
    } else {
        write!(out, "\ntry it again: `acrtask cascade retry {id}`")
    };
    out
}

/// What stands on what.
pub(crate) fn trees(trees: &[ImageTree], style: Style) -> String {
    if trees.is_empty() {
        return format!("{}\n", style.dim("there are no images"));
    }
    let mut out = String::new();
    for tree in trees {
        let _ = writeln!(out, "{}", line(tree, style));
        below(tree, "", style, &mut out);
    }
    out
}

fn line(tree: &ImageTree, style: Style) -> String {
    let mut words = vec![tree.name.clone()];
    words.extend(tree.task.as_ref().map(|task| style.dim(task)));
    if tree.stale {
        words.push(style.warn("stale"));
    }
    if tree.repeated {
        words.push(style.dim("(see above)"));
    }
    words.join("  ")
}

fn below(tree: &ImageTree, indent: &str, style: Style, out: &mut String) {
    for (place, image) in tree.images.iter().enumerate() {
        let last = place + 1 == tree.images.len();
        let (branch, next) = if last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        let _ = writeln!(out, "{indent}{branch}{}", line(image, style));
        below(image, &format!("{indent}{next}"), style, out);
    }
}

/// Everything that stands on a base.
pub(crate) fn blast_radius(blast: &BlastRadius, style: Style) -> String {
    let rows = blast.images.iter().map(|image| {
        let through: Vec<&str> = image.through.keys().map(String::as_str).collect();
        vec![
            image.distance.to_string(),
            image.name.clone(),
            image.task.clone().unwrap_or_else(|| "-".into()),
            if image.rebuilt {
                "built again".into()
            } else {
                style.dim("left as it is")
            },
            through.join(", "),
        ]
    });
    let mut out = list(
        &["DISTANCE", "IMAGE", "TASK", "BY A NEW DIGEST", "THROUGH"],
        rows.collect(),
        "nothing stands on it",
        style,
    );
    let rebuilt = blast.images.iter().filter(|image| image.rebuilt).count();
    let _ = writeln!(
        out,
        "\na new digest of {} builds {rebuilt} of {} images again",
        blast.base,
        blast.images.len()
    );
    out
}

fn status(base: &Base, style: Style) -> String {
    if base.paused {
        return style.dim("paused");
    }
    let word = base.status.as_str();
    match base.status {
        BaseStatus::Ok => style.good(word),
        BaseStatus::New => style.dim(word),
        BaseStatus::Limited => style.warn(word),
        BaseStatus::Vanished | BaseStatus::Denied | BaseStatus::Unreachable => style.bad(word),
    }
}

fn when(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(|| "-".into(), |time| ago(time, now))
}

/// A list of base tags.
pub(crate) fn bases(bases: &[Base], now: Timestamp, style: Style) -> String {
    let rows = bases.iter().map(|base| {
        vec![
            base.name.clone(),
            base.login_of.clone().unwrap_or_else(|| "*".into()),
            status(base, style),
            base.digest.as_ref().map_or_else(|| "-".into(), short),
            when(base.checked_at, now),
            when(base.changed_at, now),
            base.used_by.to_string(),
        ]
    });
    list(
        &[
            "BASE", "LOGIN OF", "STATUS", "DIGEST", "CHECKED", "MOVED", "IMAGES",
        ],
        rows.collect(),
        "no base tag is watched",
        style,
    )
}

/// A base tag, once for each login.
pub(crate) fn base(bases: &[Base], now: Timestamp, style: Style) -> String {
    let mut out = String::new();
    for base in bases {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &facts(
            &[
                ("base", base.name.clone()),
                ("login of", base.login_of.clone().unwrap_or_default()),
                ("status", status(base, style)),
                (
                    "why",
                    base.detail
                        .as_deref()
                        .map(|detail| text::plain(detail).into_owned())
                        .unwrap_or_default(),
                ),
                (
                    "digest",
                    base.digest
                        .as_ref()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                ),
                ("checked", when(base.checked_at, now)),
                ("next check", base.next_check_at.to_string()),
                ("images", base.used_by.to_string()),
            ],
            style,
        );
        let platforms = base
            .platforms
            .iter()
            .map(|(platform, digest)| vec![platform.clone(), short(digest)]);
        titled("Platforms", platforms.collect(), style, &mut out);
        let newer = base.newer.iter().map(|newer| {
            let words = proposals::newer(newer, style);
            vec![newer.task.clone(), newer.tag.clone(), words]
        });
        titled("Newer tags", newer.collect(), style, &mut out);
        let changes = base.changes.iter().map(|change| {
            vec![
                ago(change.at, now),
                format!("{} -> {}", short(&change.old), short(&change.new)),
                change.platforms.join(", "),
                if change.moved_back {
                    style.warn("moved back")
                } else {
                    String::new()
                },
            ]
        });
        titled("Moves", changes.collect(), style, &mut out);
    }
    out
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
