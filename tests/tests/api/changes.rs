//! What changed between a list and an interface.

use std::collections::BTreeSet;
use std::fmt;

use crate::listing::{Interface, UNSTABLE};

/// A list that was committed.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The version whose interface it is.
    pub(crate) version: String,
    /// Whether that version has users who rely on it.
    pub(crate) is_released: bool,
    lines: BTreeSet<String>,
}

/// Lines of an interface that are other ones than those of the list.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What whoever uses the library may no longer compile with.
    breaking: Vec<String>,
    /// What they need not care for.
    compatible: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    /// The list has to be written anew.
    Differs,
    /// A released version would be another one.
    Breaks,
}

const NOT_RELEASED: &str = ", not released";

impl Listing {
    /// Of a library that was never listed.
    pub(crate) fn none(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            is_released: false,
            lines: BTreeSet::new(),
        }
    }

    pub(crate) fn parse(text: &str) -> Self {
        let (first, rest) = text.split_once('\n').expect("a list has a first line");
        let title = first.trim_end_matches(NOT_RELEASED);
        let version = title.rsplit(' ').next().unwrap_or_default();
        Self {
            version: version.to_owned(),
            is_released: !first.ends_with(NOT_RELEASED),
            lines: rest.lines().map(str::to_owned).collect(),
        }
    }

    /// The text of a list.
    pub(crate) fn text(interface: &Interface, version: &str, is_released: bool) -> String {
        let end = if is_released { "" } else { NOT_RELEASED };
        let mut text = format!("# The public interface of version {version}{end}\n");
        for entry in &interface.entries {
            text.push_str(&entry.line);
            text.push('\n');
        }
        text
    }

    pub(crate) fn compare(&self, found: &Interface) -> Changes {
        let mut changes = Changes::default();
        let now: BTreeSet<&str> = found.entries.iter().map(|e| e.line.as_str()).collect();
        for line in &self.lines {
            if !now.contains(line.as_str()) {
                changes.note('-', line, !line.ends_with(UNSTABLE));
            }
        }
        for entry in &found.entries {
            if self.lines.contains(&entry.line) {
                continue;
            }
            // More of something that was not there before breaks nobody.
            let was_there = |path: &String| {
                let start = format!("{path}: ");
                self.lines.iter().any(|line| line.starts_with(&start))
            };
            let breaks = entry.breaks.as_ref().is_some_and(was_there);
            changes.note('+', &entry.line, breaks && !entry.line.ends_with(UNSTABLE));
        }
        changes
    }
}

impl Changes {
    fn note(&mut self, sign: char, line: &str, is_breaking: bool) {
        let list = match is_breaking {
            true => &mut self.breaking,
            false => &mut self.compatible,
        };
        list.push(format!("{sign} {line}"));
    }

    /// What the changes mean if the version is now `version`.
    pub(crate) fn verdict(&self, listed: &Listing, version: &str) -> Verdict {
        let may_break = !listed.is_released || is_incompatible(&listed.version, version);
        if !self.breaking.is_empty() && !may_break {
            return Verdict::Breaks;
        }
        match self.breaking.is_empty() && self.compatible.is_empty() && listed.version == version {
            true => Verdict::Same,
            false => Verdict::Differs,
        }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, lines) in [
            ("breaking", &self.breaking),
            ("compatible, or unstable", &self.compatible),
        ] {
            if !lines.is_empty() {
                writeln!(f, "{title}:")?;
            }
            for line in lines {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

/// Whether who uses version `old` does not get `new` without asking for it: by semantic versioning, the
/// first part that is not zero is another one.
pub(crate) fn is_incompatible(old: &str, new: &str) -> bool {
    let parts = |version: &str| -> Vec<u64> {
        let numbers = version
            .split(['.', '-', '+'])
            .map_while(|part| part.parse().ok());
        numbers.take(3).collect()
    };
    let (old, new) = (parts(old), parts(new));
    let first = old.iter().position(|part| *part > 0).unwrap_or(2);
    old.get(..=first) != new.get(..=first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "
        //! A crate.
        mod inner;
        pub use inner::{Gone, Kept};
        /// A type.
        #[derive(Clone, Debug)]
        pub struct Plain { pub one: u32 }
        pub struct Closed { pub one: u32, two: u32 }
        pub enum Open { A(u8) }
        #[non_exhaustive]
        pub enum More { A }
        pub trait Demands { fn one(&self) -> u32; }
        impl<T: Copy> Demands for Vec<T> { fn one(&self) -> u32 { 1 } }
        impl Plain { pub fn get(&self, at: usize) -> Option<&u32> { None } fn own() {} }
        /// **Unstable.** Something.
        pub struct Shaky { pub one: u32 }
        pub(crate) fn inside() {}
        #[cfg(test)]
        pub mod tests { pub fn nothing() {} }
    ";
    const INNER: &str = "pub struct Gone; pub struct Kept; impl Kept { pub const ONE: u8 = 1; }";

    fn of(lib: &str, inner: &str) -> Interface {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("lib.rs");
        std::fs::write(&root, lib).unwrap();
        std::fs::write(dir.path().join("inner.rs"), inner).unwrap();
        Interface::of("a", &root)
    }

    /// What changes when `from` in the sources becomes `to`.
    fn changes(from: &str, to: &str) -> Changes {
        let listed = Listing::text(&of(BEFORE, INNER), "0.1.0", true);
        assert!(BEFORE.contains(from) || INNER.contains(from));
        let after = of(&BEFORE.replace(from, to), &INNER.replace(from, to));
        Listing::parse(&listed).compare(&after)
    }

    #[test]
    fn an_interface_has_what_is_public_and_nothing_else() {
        let text = Listing::text(&of(BEFORE, INNER), "0.1.0", false);
        for line in [
            "# The public interface of version 0.1.0, not released",
            "a: pub use Kept",
            "a::Plain: #[derive(Clone, Debug)] pub struct Plain",
            "a::Plain::get: pub fn get(&self, at: usize) -> Option<&u32>",
            "a::Closed: pub struct Closed { .. }",
            "a::Open::A: A(u8)",
            "a::Demands::one: fn one(&self) -> u32",
            "a::Shaky: pub struct Shaky  // unstable",
            "a::Shaky::one: pub one: u32  // unstable",
            "a::Kept::ONE: pub const ONE: u8",
        ] {
            assert!(
                text.lines().any(|one| one == line),
                "no '{line}' in:\n{text}"
            );
        }
        for not in ["own", "inside", "nothing", "two", "A crate"] {
            assert!(!text.contains(not), "'{not}' in:\n{text}");
        }
    }

    #[test]
    fn what_breaks_users_is_told_from_what_does_not() {
        for (from, to) in [
            ("pub use inner::{Gone, Kept}", "pub use inner::Kept"),
            ("at: usize", "at: u32"),
            ("#[derive(Clone, Debug)]", "#[derive(Debug)]"),
            (
                "pub struct Plain { pub one: u32 }",
                "pub struct Plain { pub one: u32, pub two: u8 }",
            ),
            ("enum Open { A(u8) }", "enum Open { A(u8), B }"),
            (
                "fn one(&self) -> u32; }",
                "fn one(&self) -> u32; fn two(&self); }",
            ),
            ("pub const ONE", "const ONE"),
            ("/// A type.", "/// **Unstable.** A type."),
        ] {
            let changes = changes(from, to);
            assert!(!changes.breaking.is_empty(), "{from} to {to}: {changes}");
        }
        for (from, to) in [
            ("enum More { A }", "enum More { A, B }"),
            (
                "pub one: u32, two: u32",
                "pub one: u32, pub three: u8, two: u32",
            ),
            (
                "fn one(&self) -> u32; }",
                "fn one(&self) -> u32; fn two(&self) {} }",
            ),
            (
                "pub struct Shaky { pub one: u32 }",
                "pub struct Shaky { pub other: u32 }",
            ),
            ("pub struct Kept;", "pub struct Kept; pub enum New { A, B }"),
        ] {
            let changes = changes(from, to);
            assert!(changes.breaking.is_empty(), "{from} to {to}: {changes}");
            assert!(!changes.compatible.is_empty(), "{from} to {to}");
        }
        let none = changes("A crate.", "Another text.");
        assert!(
            none.breaking.is_empty() && none.compatible.is_empty(),
            "{none}"
        );
    }

    #[test]
    fn only_another_version_may_break_a_released_one() {
        let breaking = changes("at: usize", "at: u32");
        let adding = changes("enum More { A }", "enum More { A, B }");
        let same = Changes::default();
        let listed = |is_released| Listing {
            is_released,
            ..Listing::none("0.1.0")
        };
        assert_eq!(breaking.verdict(&listed(true), "0.1.0"), Verdict::Breaks);
        assert_eq!(breaking.verdict(&listed(true), "0.1.1"), Verdict::Breaks);
        assert_eq!(breaking.verdict(&listed(true), "0.2.0"), Verdict::Differs);
        assert_eq!(breaking.verdict(&listed(false), "0.1.0"), Verdict::Differs);
        assert_eq!(adding.verdict(&listed(true), "0.1.0"), Verdict::Differs);
        assert_eq!(same.verdict(&listed(true), "0.1.0"), Verdict::Same);
        assert_eq!(same.verdict(&listed(true), "0.1.1"), Verdict::Differs);
        assert!(is_incompatible("1.2.3", "2.0.0") && !is_incompatible("1.2.3", "1.3.0"));
        assert!(is_incompatible("0.0.1", "0.0.2") && is_incompatible("0.9.0", "1.0.0"));
    }
}
