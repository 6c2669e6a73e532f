//! `chameleon`: renders a page with an HTML table from the parsed templates of a site's theme.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::helloworld::person;
use super::{Workload, fields};
use crate::FunctionError;
use crate::digest::sha256_hex;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::runtime::library::WORDS;
use crate::serde_json::{Map, Value, json};
use crate::template::Templates;

pub(crate) const SIZES: [SizeParameter; 2] = [
    SizeParameter {
        name: "rows",
        description: "how many rows the table has",
        default: 120,
        minimum: 1,
        maximum: 1000,
    },
    SizeParameter {
        name: "columns",
        description: "how many columns the table has",
        default: 10,
        minimum: 1,
        maximum: 40,
    },
];

/// How many partial templates the theme has.
const PARTIALS: usize = 4000;
/// The page includes one partial in this many.
pub(crate) const PARTIAL_STRIDE: usize = 16;

/// The table's template.
const TABLE: &str = "<table>{% for row in table %}<tr>{% for cell in row.cells %}<td>{{ cell }}\
                     </td>{% endfor %}</tr>\n{% endfor %}</table>\n";

/// A partial of the theme.
pub(crate) struct Partial {
    /// The texts before the condition, if the theme is wide, if it is not, and after it.
    pub(crate) texts: [String; 4],
    /// Whether the visitor's name stands in it in upper case.
    pub(crate) is_loud: bool,
}

/// Partial `number` of the theme.
pub(crate) fn draw_partial(number: usize) -> Partial {
    let mut random = Random::labelled("partial", number as u64);
    let texts = [(); 4].map(|()| {
        let mut text = format!("<p class=\"{}\">", WORDS[random.index(WORDS.len())]);
        for _ in 0..20 + random.below(50) {
            text.push_str(WORDS[random.index(WORDS.len())]);
            text.push(' ');
        }
        text.push_str("</p>\n");
        text
    });
    Partial {
        texts,
        is_loud: random.below(2) == 0,
    }
}

fn partial_source(partial: &Partial) -> String {
    let [before, within, otherwise, after] = &partial.texts;
    let filter = if partial.is_loud { "|upper" } else { "" };
    format!(
        "{before}{{{{ visitor.name{filter} }}}}{{% if theme.wide %}}{within}{{% else \
         %}}{otherwise}{{% endif %}}{after}"
    )
}

/// The partials that the page includes, in order.
pub(crate) fn included_partials() -> impl Iterator<Item = usize> {
    (0..PARTIALS).step_by(PARTIAL_STRIDE)
}

/// The cells of a table, row by row: some need escaping.
pub(crate) fn draw_table(random: &mut Random, rows: usize, columns: usize) -> Vec<Vec<String>> {
    let mut cell = || {
        let word = WORDS[random.index(WORDS.len())];
        match random.below(4) {
            0 => format!("<{word}>"),
            1 => format!("{word} & '{}'", random.below(1000)),
            _ => format!("{word} {}", random.below(1000)),
        }
    };
    (0..rows)
        .map(|_| (0..columns).map(|_| cell()).collect())
        .collect()
}

struct Chameleon {
    theme: Templates,
}

/// Parses the theme.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let mut theme = Templates::with_capacity(PARTIALS);
    for number in 0..PARTIALS {
        let source = partial_source(&draw_partial(number));
        theme.add(&format!("partial-{number:04}"), &source)?;
    }
    let mut page = String::new();
    for (position, number) in included_partials().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(page, "{{% include \"partial-{number:04}\" %}}");
        if position == 0 {
            page.push_str("{% include \"table\" %}");
        }
    }
    theme.add("table", TABLE)?;
    theme.add("page", &page)?;
    Ok(Box::new(Chameleon { theme }))
}

impl Workload for Chameleon {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let mut random = Random::labelled("page", parameters.seed);
        let name = person(&mut random);
        let table: Vec<Value> = draw_table(&mut random, parameters.size(0), parameters.size(1))
            .into_iter()
            .map(|cells| json!({ "cells": cells }))
            .collect();
        let data =
            json!({ "table": table, "theme": { "wide": true }, "visitor": { "name": name } });
        let mut html = String::with_capacity(1 << 19);
        self.theme.render("page", &data, &mut html)?;
        Ok(fields([
            ("html_bytes", Value::from(html.len())),
            ("html_sha256", Value::from(sha256_hex(html.as_bytes()))),
        ]))
    }
}
