//! Parts of an interface as text.

use syn::{
    Attribute, Fields, File, FnArg, Generics, Item, Meta, Pat, Signature, Type, parse_quote,
};

use crate::modules::is_public;

/// The attributes that matter to who uses an item.
pub(crate) fn attributes(attrs: &[Attribute]) -> String {
    let kept = [
        "non_exhaustive",
        "must_use",
        "repr",
        "derive",
        "deprecated",
        "cfg",
    ];
    let mut text = String::new();
    for attribute in attrs {
        let Some(name) = kept.iter().find(|name| attribute.path().is_ident(name)) else {
            continue;
        };
        match (*name, &attribute.meta) {
            // Why it has to be used is for people.
            ("must_use", _) => text.push_str("#[must_use] "),
            (_, Meta::List(list)) => {
                let inner = list
                    .tokens
                    .to_string()
                    .replace(" ,", ",")
                    .replace(" :: ", "::");
                text.push_str(&format!("#[{name}({inner})] "));
            }
            _ => text.push_str(&format!("#[{name}] ")),
        }
    }
    text
}

/// An item on one line, as the formatter writes it.
fn one_line(item: Item) -> String {
    let file = File {
        shebang: None,
        attrs: Vec::new(),
        items: vec![item],
    };
    let text = prettyplease::unparse(&file);
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    for (long, short) in [
        ("( ", "("),
        (", )", ")"),
        ("< ", "<"),
        (", >", ">"),
        (" .", "."),
    ] {
        line = line.replace(long, short);
    }
    line
}

pub(crate) fn type_text(of: &Type) -> String {
    let line = one_line(parse_quote!(type T = #of;));
    line["type T = ".len()..].trim_end_matches(';').to_owned()
}

pub(crate) fn signature_text(of: &Signature) -> String {
    let mut of = of.clone();
    // Whether a function changes what it was given for its own is its own affair.
    for input in &mut of.inputs {
        match input {
            FnArg::Receiver(own) if own.reference.is_none() => own.mutability = None,
            FnArg::Typed(typed) => {
                if let Pat::Ident(name) = &mut *typed.pat {
                    name.mutability = None;
                }
            }
            FnArg::Receiver(_) => {}
        }
    }
    let line = one_line(parse_quote!(#of {}));
    line.trim_end_matches("{}")
        .trim_end()
        .trim_end_matches(',')
        .to_owned()
}

pub(crate) fn generics_text(of: &Generics) -> String {
    let clause = &of.where_clause;
    let line = one_line(parse_quote!(struct T #of (()) #clause;));
    let line = line["struct T".len()..]
        .trim_end_matches(';')
        .replacen("(())", "", 1);
    line.trim_end_matches(',').to_owned()
}

pub(crate) fn fields_text(fields: &Fields) -> String {
    let Fields::Unnamed(fields) = fields else {
        return String::new();
    };
    let text = fields
        .unnamed
        .iter()
        .map(|field| match is_public(&field.vis) {
            true => format!("pub {}", type_text(&field.ty)),
            false => "_".to_owned(),
        });
    format!("({})", text.collect::<Vec<_>>().join(", "))
}

/// A variant with its fields: they are as public as it is.
pub(crate) fn variant_text(variant: &syn::Variant) -> String {
    let fields = variant.fields.iter().map(|field| {
        let of = type_text(&field.ty);
        match &field.ident {
            Some(name) => format!("{name}: {of}"),
            None => of,
        }
    });
    let fields = fields.collect::<Vec<_>>().join(", ");
    let name = &variant.ident;
    let attrs = attributes(&variant.attrs);
    match &variant.fields {
        Fields::Unit => format!("{attrs}{name}"),
        Fields::Unnamed(_) => format!("{attrs}{name}({fields})"),
        Fields::Named(_) => format!("{attrs}{name} {{ {fields} }}"),
    }
}
