//! The functions that make texts: `helloworld`, `chameleon`, `json_serdes`.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use super::Case;
use crate::functions::chameleon::{draw_partial, draw_table, included_partials};
use crate::functions::helloworld::{GREETINGS, person};
use crate::functions::json_serdes::{draw_order, draw_product};
use crate::random::Random;

/// Checks a result of `helloworld`.
pub(super) fn helloworld(case: &Case<'_>) -> Result<(), String> {
    let mut random = Random::labelled("people", case.seed);
    let lines: Vec<String> = GREETINGS
        .iter()
        .cycle()
        .take(case.sizes[0])
        .map(|(_, pattern)| {
            let (before, after) = pattern.split_once("{}").unwrap_or((pattern, ""));
            [before, &person(&mut random), after].concat()
        })
        .collect();
    case.expect_text("first", &lines[0])?;
    case.expect_text("last", &lines[lines.len() - 1])?;
    case.expect_digest("text", lines.join("\n").as_bytes())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// Checks a result of `chameleon`.
pub(super) fn chameleon(case: &Case<'_>) -> Result<(), String> {
    let mut random = Random::labelled("page", case.seed);
    let name = person(&mut random);
    let mut html = String::new();
    for (position, number) in included_partials().enumerate() {
        let partial = draw_partial(number);
        html += &partial.texts[0];
        html += &if partial.is_loud {
            name.to_uppercase()
        } else {
            name.clone()
        };
        html += &partial.texts[1];
        html += &partial.texts[3];
        if position == 0 {
            html += "<table>";
            for row in draw_table(&mut random, case.sizes[0], case.sizes[1]) {
                let cells: Vec<String> = row
                    .iter()
                    .map(|cell| format!("<td>{}</td>", escape(cell)))
                    .collect();
                html += &format!("<tr>{}</tr>\n", cells.concat());
            }
            html += "</table>\n";
        }
    }
    case.expect_digest("html", html.as_bytes())
}

/// Checks a result of `json_serdes`.
pub(super) fn json_serdes(case: &Case<'_>) -> Result<(), String> {
    let mut random = Random::labelled("orders", case.seed);
    let mut orders = Vec::new();
    let mut lines = Vec::new();
    let mut total_cents = 0;
    for number in 0..case.sizes[0] {
        let order = draw_order(&mut random, number);
        let (product, _) = draw_product(order.product);
        orders.push(format!(
            r#"{{"note":"{}","product":{},"quantity":{}}}"#,
            order.note, order.product, order.quantity
        ));
        let net_cents = order.quantity * product.price_cents;
        let gross_cents = net_cents + net_cents * product.tax_percent / 100;
        total_cents += gross_cents;
        lines.push(format!(
            r#"{{"gross_cents":{gross_cents},"name":"{}","net_cents":{net_cents},"note":"{}"}}"#,
            product.name.replace('"', "\\\""),
            order.note
        ));
    }
    let document = format!(r#"{{"orders":[{}]}}"#, orders.join(","));
    let invoice = format!(
        r#"{{"lines":[{}],"total_cents":{total_cents}}}"#,
        lines.join(",")
    );
    case.expect_digest("document", document.as_bytes())?;
    case.expect_digest("invoice", invoice.as_bytes())?;
    let found = case.integer("total_cents")?.to_string();
    if found != total_cents.to_string() {
        return Err(format!(
            "result field \"total_cents\" is {found}, not {total_cents}"
        ));
    }
    Ok(())
}
