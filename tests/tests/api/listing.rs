//! The public interface of a crate as lines of text, read from its sources.
//!
//! The lint `unreachable_pub`, which CI denies, makes what is `pub` in the sources what users of the
//! crate can reach: so no compiler is needed to tell the two apart, and none of its versions changes
//! the text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, TraitItem, Type, UseTree, parse_quote};

use crate::modules::{Module, collect, is_hidden, is_marked, is_public, parse};
use crate::text::{
    attributes, fields_text, generics_text, signature_text, type_text, variant_text,
};

/// What a line says, and what adding it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The line: where it is defined, what it is, and at its end [`UNSTABLE`] if it is.
    pub(crate) line: String,
    /// The path of what it belongs to, if that breaks whoever uses it when it gets another of these: a
    /// variant of an enum that may be matched whole, a method that a trait demands.
    pub(crate) breaks: Option<String>,
}

/// The end of a line about something that may change in any version.
pub(crate) const UNSTABLE: &str = "  // unstable";

/// The public interface of a crate.
#[derive(Debug, Default)]
pub(crate) struct Interface {
    /// Sorted, each once.
    pub(crate) entries: Vec<Entry>,
    /// The paths of what is marked as unstable.
    pub(crate) marked: BTreeSet<String>,
}

impl Interface {
    /// Of the crate `name`, whose sources begin with `root`.
    pub(crate) fn of(name: &str, root: &Path) -> Self {
        let mut modules = Vec::new();
        let file = parse(root);
        let folder = root.parent().unwrap().to_owned();
        let is_unstable = is_marked(&file.attrs);
        let root = Module {
            path: name.to_owned(),
            shown: name.to_owned(),
            items: file.items,
            is_unstable,
            is_marked: is_unstable,
        };
        collect(root, &folder, &mut modules);
        let mut found = Found::default();
        for module in &modules {
            found.names(module);
        }
        for module in &modules {
            found.module(module);
        }
        let entries = found.lines.into_iter();
        Self {
            entries: entries
                .map(|(line, breaks)| Entry { line, breaks })
                .collect(),
            marked: found.marked,
        }
    }
}
/// The name of the type that an implementation is for.
fn self_name(of: &Type) -> Option<String> {
    match of {
        Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        Type::Reference(reference) => self_name(&reference.elem),
        _ => None,
    }
}

#[derive(Default)]
struct Found {
    lines: BTreeMap<String, Option<String>>,
    marked: BTreeSet<String>,
    /// Public types and traits by their name.
    types: BTreeMap<String, Vec<Named>>,
}

/// A public type or trait.
#[derive(Clone)]
struct Named {
    /// The module that defines it.
    module: String,
    /// The path that others may write.
    path: String,
    is_unstable: bool,
}

impl Found {
    fn add(&mut self, path: &str, text: &str, is_unstable: bool, breaks: Option<String>) {
        let end = if is_unstable { UNSTABLE } else { "" };
        self.lines.insert(format!("{path}: {text}{end}"), breaks);
    }

    /// Takes the names of the module's public types.
    fn names(&mut self, module: &Module) {
        if module.is_marked {
            self.marked.insert(module.shown.clone());
        }
        for item in &module.items {
            let (name, visibility, attrs) = match item {
                Item::Struct(item) => (&item.ident, &item.vis, &item.attrs),
                Item::Enum(item) => (&item.ident, &item.vis, &item.attrs),
                Item::Trait(item) => (&item.ident, &item.vis, &item.attrs),
                Item::Type(item) => (&item.ident, &item.vis, &item.attrs),
                Item::Union(item) => (&item.ident, &item.vis, &item.attrs),
                _ => continue,
            };
            if is_public(visibility) && !is_hidden(attrs) {
                let path = format!("{}::{name}", module.shown);
                let is_unstable = module.is_unstable || is_marked(attrs);
                if is_marked(attrs) {
                    self.marked.insert(path.clone());
                }
                let all = self.types.entry(name.to_string()).or_default();
                all.push(Named {
                    module: module.path.clone(),
                    path,
                    is_unstable,
                });
            }
        }
    }

    fn module(&mut self, module: &Module) {
        let path = &module.shown;
        for item in &module.items {
            let unstable = |attrs: &[Attribute]| module.is_unstable || is_marked(attrs);
            match item {
                Item::Fn(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    let text = attributes(&item.attrs) + "pub " + &signature_text(&item.sig);
                    let is_unstable = unstable(&item.attrs);
                    let name = format!("{path}::{}", item.sig.ident);
                    if is_marked(&item.attrs) {
                        self.marked.insert(name.clone());
                    }
                    self.add(&name, &text, is_unstable, None);
                }
                Item::Struct(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    self.structure(path, item, unstable(&item.attrs));
                }
                Item::Enum(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    self.enumeration(path, item, unstable(&item.attrs));
                }
                Item::Trait(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    self.interface(path, item, unstable(&item.attrs));
                }
                Item::Type(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    let name = format!("{path}::{}", item.ident);
                    let generics = generics_text(&item.generics);
                    let of = type_text(&item.ty);
                    let text = format!("pub type {}{generics} = {of}", item.ident);
                    self.add(&name, &text, unstable(&item.attrs), None);
                }
                Item::Const(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    let name = format!("{path}::{}", item.ident);
                    let text = format!("pub const {}: {}", item.ident, type_text(&item.ty));
                    self.add(&name, &text, unstable(&item.attrs), None);
                }
                Item::Static(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    let name = format!("{path}::{}", item.ident);
                    let text = format!("pub static {}: {}", item.ident, type_text(&item.ty));
                    self.add(&name, &text, unstable(&item.attrs), None);
                }
                Item::Mod(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                    let inner = format!("{path}::{}", item.ident);
                    let is_unstable = module.is_unstable || self.marked.contains(&inner);
                    self.add(
                        &inner,
                        &format!("pub mod {}", item.ident),
                        is_unstable,
                        None,
                    );
                }
                // Names that a private module gathers are only for the one above.
                Item::Use(item) if is_public(&item.vis) && module.is_public() => {
                    let mut names = Vec::new();
                    used(&item.tree, "", &mut names);
                    for name in names {
                        let is_unstable = module.is_unstable || self.is_unstable(module, &name);
                        let name = module.without_private(&name);
                        self.add(path, &format!("pub use {name}"), is_unstable, None);
                    }
                }
                Item::Macro(item)
                    if item.attrs.iter().any(|a| a.path().is_ident("macro_export")) =>
                {
                    let name = item
                        .ident
                        .as_ref()
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    self.add(path, &format!("macro {name}!"), module.is_unstable, None);
                }
                Item::Impl(item) if !is_hidden(&item.attrs) => self.implementation(module, item),
                _ => {}
            }
        }
    }

    /// Whether what `module` re-exports as `name` is unstable.
    fn is_unstable(&self, module: &Module, name: &str) -> bool {
        let (from, last) = name.rsplit_once("::").unwrap_or(("", name));
        let from = format!("{}::{from}", module.path);
        let all = self.types.get(last).into_iter().flatten();
        let mut of_it = all.filter(|named| named.module.starts_with(&from));
        of_it.any(|named| named.is_unstable)
    }

    fn structure(&mut self, path: &str, item: &syn::ItemStruct, is_unstable: bool) {
        let name = format!("{path}::{}", item.ident);
        let mut text = attributes(&item.attrs);
        text.push_str(&format!("pub struct {}", item.ident));
        text.push_str(&generics_text(&item.generics));
        text.push_str(&fields_text(&item.fields));
        let is_named = matches!(item.fields, Fields::Named(_));
        let has_private = item.fields.iter().any(|field| !is_public(&field.vis));
        if is_named && has_private {
            text.push_str(" { .. }");
        }
        let is_open = has_private || text.contains("#[non_exhaustive]");
        for field in &item.fields {
            if let (true, Some(ident)) = (is_public(&field.vis), &field.ident) {
                let breaks = (!is_open).then(|| name.clone());
                let of = format!("pub {ident}: {}", type_text(&field.ty));
                self.add(&format!("{name}::{ident}"), &of, is_unstable, breaks);
            }
        }
        self.add(&name, &text, is_unstable, None);
    }

    fn enumeration(&mut self, path: &str, item: &syn::ItemEnum, is_unstable: bool) {
        let name = format!("{path}::{}", item.ident);
        let mut text = attributes(&item.attrs);
        text.push_str(&format!("pub enum {}", item.ident));
        text.push_str(&generics_text(&item.generics));
        let is_open = text.contains("#[non_exhaustive]");
        for variant in &item.variants {
            let breaks = (!is_open).then(|| name.clone());
            let of = format!("{name}::{}", variant.ident);
            self.add(&of, &variant_text(variant), is_unstable, breaks);
        }
        self.add(&name, &text, is_unstable, None);
    }

    fn interface(&mut self, path: &str, item: &syn::ItemTrait, is_unstable: bool) {
        let name = format!("{path}::{}", item.ident);
        let mut text = attributes(&item.attrs);
        text.push_str(&format!("pub trait {}", item.ident));
        text.push_str(&generics_text(&item.generics));
        let bounds = item.supertraits.iter().map(|bound| {
            let line = type_text(&parse_quote!(dyn #bound));
            line.trim_start_matches("dyn ").to_owned()
        });
        let bounds: Vec<String> = bounds.collect();
        if !bounds.is_empty() {
            text.push_str(&format!(": {}", bounds.join(" + ")));
        }
        for inner in &item.items {
            let (of, text, has_default) = match inner {
                TraitItem::Fn(item) => {
                    let text = attributes(&item.attrs) + &signature_text(&item.sig);
                    (item.sig.ident.to_string(), text, item.default.is_some())
                }
                TraitItem::Const(item) => {
                    let text = format!("const {}: {}", item.ident, type_text(&item.ty));
                    (item.ident.to_string(), text, item.default.is_some())
                }
                TraitItem::Type(item) => {
                    let text = item.to_token_stream().to_string();
                    (item.ident.to_string(), text, false)
                }
                _ => continue,
            };
            let (end, breaks) = match has_default {
                true => (" { .. }", None),
                false => ("", Some(name.clone())),
            };
            self.add(&format!("{name}::{of}"), &(text + end), is_unstable, breaks);
        }
        self.add(&name, &text, is_unstable, None);
    }

    fn implementation(&mut self, module: &Module, item: &ItemImpl) {
        let Some(name) = self_name(&item.self_ty) else {
            return;
        };
        // What nobody else can name has no interface.
        let Some(all) = self.types.get(&name) else {
            return;
        };
        // The nearest of that name: that of the module, or one above or below.
        let nearest = all.iter().max_by_key(|named| {
            let common = named.module.split("::").zip(module.path.split("::"));
            common.take_while(|(a, b)| a == b).count()
        });
        let Some(Named {
            path, is_unstable, ..
        }) = nearest.cloned()
        else {
            return;
        };
        let is_unstable = is_unstable || module.is_unstable;
        let generics = generics_text(&item.generics);
        let of = type_text(&item.self_ty);
        if let Some((not, of_trait, _)) = &item.trait_ {
            let of_trait = type_text(&parse_quote!(#of_trait));
            let not = if not.is_some() { "!" } else { "" };
            let text = format!("impl{generics} {not}{of_trait} for {of}");
            self.add(&path, &text, is_unstable, None);
            for inner in &item.items {
                if let ImplItem::Type(inner) = inner {
                    let text = format!("{text}, {} = {}", inner.ident, type_text(&inner.ty));
                    self.add(&path, &text, is_unstable, None);
                }
            }
            return;
        }
        let prefix = match generics.is_empty() {
            true => String::new(),
            false => format!("impl{generics} {of}: "),
        };
        for inner in &item.items {
            let (ident, text) = match inner {
                ImplItem::Fn(inner) if is_public(&inner.vis) && !is_hidden(&inner.attrs) => {
                    let text = attributes(&inner.attrs) + "pub " + &signature_text(&inner.sig);
                    (&inner.sig.ident, text)
                }
                ImplItem::Const(inner) if is_public(&inner.vis) && !is_hidden(&inner.attrs) => {
                    let text = format!("pub const {}: {}", inner.ident, type_text(&inner.ty));
                    (&inner.ident, text)
                }
                _ => continue,
            };
            let text = format!("{prefix}{text}");
            self.add(&format!("{path}::{ident}"), &text, is_unstable, None);
        }
    }
}

/// The names that a `use` brings, each with its path.
fn used(tree: &UseTree, before: &str, names: &mut Vec<String>) {
    match tree {
        UseTree::Path(path) => used(&path.tree, &format!("{before}{}::", path.ident), names),
        UseTree::Name(name) => names.push(format!("{before}{}", name.ident)),
        UseTree::Rename(rename) => {
            names.push(format!("{before}{} as {}", rename.ident, rename.rename));
        }
        UseTree::Glob(_) => names.push(format!("{before}*")),
        UseTree::Group(group) => {
            for tree in &group.items {
                used(tree, before, names);
            }
        }
    }
}
