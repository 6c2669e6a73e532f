//! The modules of a crate, with their items.

use std::path::Path;

use quote::ToTokens;
use syn::{Attribute, File, Item, Meta, Visibility};

/// What the documentation of an unstable item begins with.
pub(crate) const MARK: &str = "**Unstable.** ";

/// A module's items.
pub(crate) struct Module {
    pub(crate) path: String,
    /// The path without modules that are private: what others may write.
    pub(crate) shown: String,
    pub(crate) items: Vec<Item>,
    pub(crate) is_unstable: bool,
    pub(crate) is_marked: bool,
}

impl Module {
    pub(crate) fn is_public(&self) -> bool {
        self.path == self.shown
    }

    /// A name that is re-exported, without the private modules that it comes from.
    pub(crate) fn without_private<'a>(&self, name: &'a str) -> &'a str {
        let first = name.split("::").next().unwrap_or_default();
        let is_private = self.items.iter().any(|item| match item {
            Item::Mod(inner) => inner.ident == first && !is_public(&inner.vis),
            _ => false,
        });
        match name.rsplit_once("::") {
            Some((_, last)) if is_private => last,
            _ => name,
        }
    }
}

pub(crate) fn parse(path: &Path) -> File {
    let text = std::fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Adds a module and those below it. `folder` is where the files of those are.
pub(crate) fn collect(module: Module, folder: &Path, modules: &mut Vec<Module>) {
    for item in &module.items {
        let Item::Mod(inner) = item else { continue };
        if is_hidden(&inner.attrs) {
            continue;
        }
        let name = inner.ident.to_string();
        let below = folder.join(&name);
        let (attrs, items) = match &inner.content {
            Some((_, items)) => (Vec::new(), items.clone()),
            None => {
                let beside = folder.join(format!("{name}.rs"));
                let file = match beside.exists() {
                    true => parse(&beside),
                    false => parse(&below.join("mod.rs")),
                };
                (file.attrs, file.items)
            }
        };
        let is_marked = is_marked(&attrs) || is_marked(&inner.attrs);
        let inner = Module {
            path: format!("{}::{name}", module.path),
            shown: match is_public(&inner.vis) {
                true => format!("{}::{name}", module.shown),
                false => module.shown.clone(),
            },
            items,
            is_unstable: module.is_unstable || is_marked,
            is_marked,
        };
        collect(inner, &below, modules);
    }
    modules.push(module);
}

/// Whether it is no part of the interface: tests, and what is hidden from the documentation.
pub(crate) fn is_hidden(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        let is_cfg = attribute.path().is_ident("cfg");
        (is_cfg && (text.contains("test") || text.contains("fuzzing")))
            || (attribute.path().is_ident("doc") && text.contains("hidden"))
    })
}

pub(crate) fn is_marked(attrs: &[Attribute]) -> bool {
    let first = attrs.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("doc") => {
            Some(meta.value.to_token_stream().to_string())
        }
        _ => None,
    });
    first.is_some_and(|text| text.trim_start_matches('"').trim_start().starts_with(MARK))
}

pub(crate) fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}
