//! Images, their bases, and base tags, as text. Pure.

use std::fmt::Write as _;

use acrtask_api::{
    cascade::{CascadeNodeState, Rebuild},
    image::{Base, BaseEffect, BasePolicy, BaseStatus, BlastRadius, Image, ImageDetail, ImageTree},
};
use acrtask_model::{Digest, events::BaseRole};
use jiff::Timestamp;

use super::{
    proposals,
    run::format_age,
    style::Style,
    table::{key_values, render_list, write_section},
    text,
};

fn short_digest(digest: &Digest) -> String {
    digest.short().to_owned()
}

fn role_name(role: BaseRole) -> &'static str {
    match role {
        BaseRole::Runtime => "runtime base",
        BaseRole::BuildTime => "build stage",
        BaseRole::Frontend => "frontend",
        BaseRole::Cmd => "container",
    }
}

fn effect_text(effect: BaseEffect) -> &'static str {
    match effect {
        BaseEffect::WouldRebuild => "a new digest triggers a rebuild",
        BaseEffect::Stale => "its digest changed: the image is stale",
        BaseEffect::OtherPlatform => "its digest changed, for other platforms only",
        BaseEffect::Ignored => "ignored by the task",
        BaseEffect::Pinned => "pinned by digest: it cannot change",
        BaseEffect::NoTask => "no task rebuilds the image",
    }
}

/// Renders a list of images. `stale` adds the bases that make them stale.
pub(crate) fn render_images(images: &[Image], stale: bool, now: Timestamp, style: Style) -> String {
    let rows = images.iter().map(|image| {
        let mut row = vec![
            image.name.clone(),
            short_digest(&image.digest),
            image.task.clone().unwrap_or_else(|| "-".into()),
            format_age(image.built_at, now),
        ];
        if stale {
            let bases: Vec<&str> = image
                .stale
                .iter()
                .map(|base| base.reference.as_str())
                .collect();
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
    let last = if stale { "CHANGED BASE" } else { "" };
    let if_empty = if stale {
        "no image is stale"
    } else {
        "no images"
    };
    render_list(
        &["IMAGE", "DIGEST", "TASK", "BUILT", last],
        rows.collect(),
        if_empty,
        style,
    )
}

fn image_heading(detail: &ImageDetail, now: Timestamp, style: Style) -> String {
    let image = &detail.image;
    key_values(
        &[
            ("image", image.name.clone()),
            ("digest", image.digest.to_string()),
            ("task", image.task.clone().unwrap_or_default()),
            ("run", image.run.to_string()),
            ("built", format_age(image.built_at, now)),
            ("platforms", image.platforms.join(", ")),
        ],
        style,
    )
}

/// Renders one image.
pub(crate) fn render_image(detail: &ImageDetail, now: Timestamp, style: Style) -> String {
    let mut out = image_heading(detail, now, style);
    let bases = detail.bases.iter().map(|base| {
        vec![
            base.name.clone(),
            short_digest(&base.digest),
            role_name(base.role).to_owned(),
            base.built_by
                .as_ref()
                .map(|task| format!("built by {task}"))
                .unwrap_or_default(),
        ]
    });
    write_section("Built from", bases.collect(), style, &mut out);
    let history = detail.history.iter().map(|build| {
        vec![
            short_digest(&build.digest),
            build.run.to_string(),
            format_age(build.built_at, now),
        ]
    });
    write_section("Pushed", history.collect(), style, &mut out);
    out
}

/// Explains if an image is stale, and why.
pub(crate) fn render_staleness(detail: &ImageDetail, now: Timestamp, style: Style) -> String {
    let mut out = image_heading(detail, now, style);
    let image = &detail.image;
    let verdict = if !image.stale.is_empty() {
        style.warn("the image is stale: a base has a newer digest than the one it was built from")
    } else if !image.newest {
        "the image is not rebuilt: the last run of its task pushed other names".to_owned()
    } else {
        match detail.policy {
            BasePolicy::None => "no base image triggers a rebuild of it".to_owned(),
            BasePolicy::Runtime => {
                "the image is fresh; its runtime bases trigger rebuilds".to_owned()
            }
            BasePolicy::All => {
                "the image is fresh; all bases of its run trigger rebuilds".to_owned()
            }
        }
    };
    let _ = writeln!(out, "\n{verdict}");
    if !image.stale.is_empty() {
        let _ = writeln!(out, "{}", rebuild_text(detail.rebuild.as_ref()));
    }
    let bases = detail.bases.iter().map(|base| {
        let digests = match &base.current_digest {
            Some(now) if *now != base.digest => {
                format!("{} -> {}", short_digest(&base.digest), short_digest(now))
            }
            _ => short_digest(&base.digest),
        };
        let effect = effect_text(base.effect);
        vec![
            base.name.clone(),
            role_name(base.role).to_owned(),
            digests,
            if base.effect == BaseEffect::Stale {
                style.warn(effect)
            } else {
                effect.to_owned()
            },
        ]
    });
    write_section("Bases", bases.collect(), style, &mut out);
    let newer = detail.bases.iter().filter_map(|base| {
        let newer = base.newer.as_ref()?;
        let state = proposals::newer_tag(newer, style);
        Some(vec![base.name.clone(), newer.tag.clone(), state])
    });
    write_section("Newer tags", newer.collect(), style, &mut out);
    out
}

/// Returns the state of a stale image's rebuild.
fn rebuild_text(rebuild: Option<&Rebuild>) -> String {
    let Some(rebuild) = rebuild else {
        return "no cascade rebuilds it yet: `acrtask cascade list`".into();
    };
    let why = rebuild
        .reason
        .as_deref()
        .map(text::plain_line)
        .unwrap_or_default();
    let Some((id, state)) = rebuild.cascade.zip(rebuild.state) else {
        return format!("it is not rebuilt: {why}");
    };
    let (open, name) = (state.is_open(), state.as_str());
    let built = state == CascadeNodeState::Succeeded;
    let verb = if open {
        "rebuilds it"
    } else if built {
        "has rebuilt it"
    } else {
        "has not rebuilt it"
    };
    let mut out = match &*why {
        why if built => format!("cascade {id} {verb}: {why}"),
        "" => format!("cascade {id} {verb}: {name}"),
        // The reason may repeat the state: `canceled by sam`.
        why if why.starts_with(name) => format!("cascade {id} {verb}: {why}"),
        why => format!("cascade {id} {verb}: {name}: {why}"),
    };
    if let Some(run) = &rebuild.run {
        let _ = write!(out, " (run {run})");
    }
    let _ = if built {
        write!(out, "\nset its tags: `acrtask cascade promote {id}`")
    } else if open {
        write!(out, "\nfollow it: `acrtask cascade show {id}`")
    } else {
        write!(out, "\nretry it: `acrtask cascade retry {id}`")
    };
    out
}

/// Renders trees of bases and the images built from them.
pub(crate) fn render_trees(trees: &[ImageTree], style: Style) -> String {
    if trees.is_empty() {
        return format!("{}\n", style.dim("no images"));
    }
    let mut out = String::new();
    for tree in trees {
        let _ = writeln!(out, "{}", tree_line(tree, style));
        write_children(tree, "", style, &mut out);
    }
    out
}

fn tree_line(tree: &ImageTree, style: Style) -> String {
    let mut parts = vec![tree.name.clone()];
    parts.extend(tree.task.as_ref().map(|task| style.dim(task)));
    if tree.stale {
        parts.push(style.warn("stale"));
    }
    if tree.repeated {
        parts.push(style.dim("(see above)"));
    }
    parts.join("  ")
}

fn write_children(tree: &ImageTree, indent: &str, style: Style, out: &mut String) {
    for (index, image) in tree.images.iter().enumerate() {
        let last = index + 1 == tree.images.len();
        let (branch, next) = if last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        let _ = writeln!(out, "{indent}{branch}{}", tree_line(image, style));
        write_children(image, &format!("{indent}{next}"), style, out);
    }
}

/// Renders all images that were built from a base, directly or not.
pub(crate) fn render_blast_radius(blast: &BlastRadius, style: Style) -> String {
    let rows = blast.images.iter().map(|image| {
        let through: Vec<&str> = image.through.keys().map(String::as_str).collect();
        vec![
            image.distance.to_string(),
            image.name.clone(),
            image.task.clone().unwrap_or_else(|| "-".into()),
            if image.rebuilt {
                "rebuilt".into()
            } else {
                style.dim("unchanged")
            },
            through.join(", "),
        ]
    });
    let mut out = render_list(
        &["DISTANCE", "IMAGE", "TASK", "AFTER A CHANGE", "THROUGH"],
        rows.collect(),
        "no image was built from it",
        style,
    );
    let rebuilt = blast.images.iter().filter(|image| image.rebuilt).count();
    let _ = writeln!(
        out,
        "\na new digest of {} rebuilds {rebuilt} of {} images",
        blast.base,
        blast.images.len()
    );
    out
}

fn styled_status(base: &Base, style: Style) -> String {
    if base.paused {
        return style.dim("paused");
    }
    let name = base.status.as_str();
    match base.status {
        BaseStatus::Ok => style.good(name),
        BaseStatus::New => style.dim(name),
        BaseStatus::Limited => style.warn(name),
        BaseStatus::Vanished | BaseStatus::Denied | BaseStatus::Unreachable => style.bad(name),
    }
}

fn format_time(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(|| "-".into(), |time| format_age(time, now))
}

/// Renders a list of base tags.
pub(crate) fn render_bases(bases: &[Base], now: Timestamp, style: Style) -> String {
    let rows = bases.iter().map(|base| {
        vec![
            base.name.clone(),
            base.login_of.clone().unwrap_or_else(|| "*".into()),
            styled_status(base, style),
            base.digest
                .as_ref()
                .map_or_else(|| "-".into(), short_digest),
            format_time(base.checked_at, now),
            format_time(base.changed_at, now),
            base.used_by.to_string(),
        ]
    });
    render_list(
        &[
            "BASE", "LOGIN OF", "STATUS", "DIGEST", "CHECKED", "CHANGED", "IMAGES",
        ],
        rows.collect(),
        "no base tag is watched",
        style,
    )
}

/// Renders a base tag, once for each login.
pub(crate) fn render_base(bases: &[Base], now: Timestamp, style: Style) -> String {
    let mut out = String::new();
    for base in bases {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &key_values(
            &[
                ("base", base.name.clone()),
                ("login of", base.login_of.clone().unwrap_or_default()),
                ("status", styled_status(base, style)),
                (
                    "why",
                    base.detail
                        .as_deref()
                        .map(|detail| text::plain_line(detail).into_owned())
                        .unwrap_or_default(),
                ),
                (
                    "digest",
                    base.digest
                        .as_ref()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                ),
                ("checked", format_time(base.checked_at, now)),
                ("next check", base.next_check_at.to_string()),
                ("images", base.used_by.to_string()),
            ],
            style,
        );
        let platforms = base
            .platforms
            .iter()
            .map(|(platform, digest)| vec![platform.clone(), short_digest(digest)]);
        write_section("Platforms", platforms.collect(), style, &mut out);
        let newer = base.newer.iter().map(|newer| {
            let state = proposals::newer_tag(newer, style);
            vec![newer.task.clone(), newer.tag.clone(), state]
        });
        write_section("Newer tags", newer.collect(), style, &mut out);
        let changes = base.changes.iter().map(|change| {
            vec![
                format_age(change.changed_at, now),
                format!(
                    "{} -> {}",
                    short_digest(&change.from),
                    short_digest(&change.to)
                ),
                change.platforms.join(", "),
                if change.moved_back {
                    style.warn("reverted")
                } else {
                    String::new()
                },
            ]
        });
        write_section("Digest changes", changes.collect(), style, &mut out);
    }
    out
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
