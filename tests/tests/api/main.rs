//! The public interfaces of the libraries are those that `tests/api` lists, and what of them is unstable
//! says so.
//!
//! `make api` writes the lists anew. What changed is then in the diff of the commit, for whoever reviews
//! it; and once a version is released, what its users may rely on is only changed with another one.
#![allow(clippy::unwrap_used, clippy::panic)]

mod changes;
mod listing;
mod modules;
mod text;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use changes::{Listing, Verdict};
use listing::Interface;

/// The libraries that are listed, and where they begin.
const LISTED: [(&str, &str); 4] = [
    ("reapvm", "vmm/src/lib.rs"),
    ("reapvm_devices", "devices/src/lib.rs"),
    ("reapvm_reap", "reap/src/lib.rs"),
    ("reapvm_snapshot", "snapshot/src/lib.rs"),
];
/// Unstable as a whole.
const NOT_LISTED: [(&str, &str); 1] = [("reapvm_analysis", "reap/analysis/src/lib.rs")];
/// The chapter that lists what is unstable.
const CHAPTER: &str = "vmm/src/guide/stability.rs";
/// If it is set, the lists are written anew: to `release`, as those of a release.
const REFRESH: &str = "REAPVM_REFRESH_API";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn interface(name: &str, root: &str) -> Interface {
    Interface::of(name, &repository().join(root))
}

#[test]
fn interfaces_are_as_listed() {
    let refresh = std::env::var(REFRESH).ok();
    let version = env!("CARGO_PKG_VERSION");
    let mut wrong = String::new();
    for (name, root) in LISTED {
        let path = repository().join(format!("tests/api/{name}.txt"));
        let found = interface(name, root);
        let listed = match std::fs::read_to_string(&path) {
            Ok(text) => Listing::parse(&text),
            Err(_) if refresh.is_some() => Listing::none(version),
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let changes = listed.compare(&found);
        let verdict = changes.verdict(&listed, version);
        match (&refresh, verdict) {
            (_, Verdict::Breaks) => wrong.push_str(&format!(
                "{name}: what {} was released with has changed; raise the version, or keep it:\n{changes}",
                listed.version
            )),
            (Some(how), _) => {
                let is_released = how == "release"
                    || (listed.is_released && !changes::is_incompatible(&listed.version, version));
                let text = Listing::text(&found, version, is_released);
                std::fs::write(&path, text).unwrap();
            }
            (None, Verdict::Differs) => wrong.push_str(&format!(
                "{name} is not as listed; `make api` lists it anew:\n{changes}"
            )),
            (None, Verdict::Same) => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_is_unstable_says_so_and_is_in_the_guide() {
    let mut marked = BTreeSet::new();
    for (name, root) in LISTED.into_iter().chain(NOT_LISTED) {
        marked.extend(interface(name, root).marked);
    }
    let chapter = std::fs::read_to_string(repository().join(CHAPTER)).unwrap();
    let named = unstable_in(&chapter);
    assert!(named.len() > 10, "{named:?}");
    let unmarked: Vec<_> = named.difference(&marked).collect();
    let unnamed: Vec<_> = marked.difference(&named).collect();
    assert!(
        unmarked.is_empty() && unnamed.is_empty(),
        "in the chapter, but not marked by '{}': {unmarked:?}; marked, but not in the chapter: {unnamed:?}",
        modules::MARK
    );
}

/// The paths in the first column of the chapter's table of what is unstable.
fn unstable_in(chapter: &str) -> BTreeSet<String> {
    let rows = chapter
        .lines()
        .map(|line| line.trim_start_matches("//! "))
        .skip_while(|line| !line.starts_with("| unstable"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let path = |cell: &str| {
        let target = cell.split_once("](").map(|(_, target)| target);
        let text = target
            .unwrap_or(cell)
            .trim_matches(['[', ']', '(', ')', '`', ' ']);
        text.replace("crate::", "reapvm::")
    };
    rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(','))
        .map(path)
        .collect()
}
