//! The page of a study.

use std::fmt::Write;

use reapvm_reap::study::{Study, StudyPlan};

use super::claims::Claim;
use super::figures;
use super::findings::Function;
use super::tables::Tables;
use crate::plot::{PlotError, grouped};
use crate::report::{Figure, add_facts, add_figure, add_warning, document, escape};

pub(super) fn page(
    study: &Study,
    functions: &[Function<'_>],
    claims: &[Claim],
    tables: &Tables,
    missing: &[String],
    command: &str,
) -> Result<String, PlotError> {
    let plan = &study.plan;
    let overview = figures::of_all(functions, tables)?;
    let of_each = functions
        .iter()
        .map(|function| figures::of_one(function, tables))
        .collect::<Result<Vec<_>, _>>()?;
    let mut body = String::new();
    if !missing.is_empty() {
        add_warning(
            &mut body,
            &format!(
                "This study is not whole: it was interrupted, or failed. What follows is about {} of \
                 {} functions. Missing: {}.",
                functions.len(),
                plan.functions.len(),
                missing.join("; ")
            ),
        );
    }
    let dropped: Vec<String> = functions
        .iter()
        .filter_map(|function| {
            let dropped: u64 = function.invocations.iter().map(|i| i.dropped).sum();
            (dropped > 0).then(|| format!("{} of {}", grouped(dropped), function.name()))
        })
        .collect();
    if !dropped.is_empty() {
        add_warning(
            &mut body,
            &format!(
                "Touches that found the buffer full and are missing in the traces: {}.",
                dropped.join(", ")
            ),
        );
    }
    add_facts(&mut body, &facts(study, functions));
    contents(&mut body, functions, &overview);
    claims_table(&mut body, claims, tables, command);
    for figure in &overview {
        add_figure(&mut body, figure, command);
    }
    for (function, figures) in functions.iter().zip(&of_each) {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(
            body,
            "<h2 class=\"part\" id=\"{0}\">{0}</h2>",
            escape(function.name())
        );
        for figure in figures {
            add_figure(&mut body, figure, command);
        }
    }
    let title = format!(
        "How functions use memory: {} of the {} guest",
        match functions {
            [one] => one.name().to_owned(),
            functions => format!("{} functions", functions.len()),
        },
        image_name(plan)
    );
    Ok(document(&title, &body))
}

/// The image, as people call it.
pub(super) fn image_name(plan: &StudyPlan) -> &str {
    match plan.image.as_str() {
        "builtin" => "built-in",
        other => other,
    }
}

fn facts(study: &Study, functions: &[Function<'_>]) -> Vec<(&'static str, String)> {
    let (plan, host) = (&study.plan, &study.host);
    let names: Vec<&str> = functions.iter().map(Function::name).collect();
    let starts: usize = functions.iter().map(|f| f.measured.starts.len()).sum();
    let inputs: Vec<String> = plan.inputs.iter().map(ToString::to_string).collect();
    vec![
        ("Functions", names.join(", ")),
        ("Inputs", inputs.join(" ")),
        (
            "Measured",
            format!(
                "{} cold starts, each in a process of its own with the snapshot out of the page \
                 cache; {} of each kind with each input; every response was that of a machine that \
                 was never interrupted",
                grouped(starts as u64),
                plan.repetitions
            ),
        ),
        (
            "Compared",
            "starts with another input than the one whose working set is prefetched".to_owned(),
        ),
        (
            "Measured by",
            format!("reapvm {}", crate::command::quoted(&plan.command)),
        ),
        (
            "Machine",
            format!(
                "{}, {} processors, {} MiB, Linux {}, KVM with {}",
                host.cpu_model,
                host.cpus,
                grouped(host.memory_mib),
                host.kernel,
                match host.has_nested_paging {
                    true => "nested paging",
                    false => "shadow paging",
                }
            ),
        ),
        (
            "Disk",
            format!(
                "{:.0} MiB/s in sequence, {:.0} µs for 4 KiB at random, past the page cache",
                host.disk_seq_read_mib_s, host.disk_rand_read_4k_us
            ),
        ),
        ("reapvm", host.reapvm.clone()),
    ]
}

/// Where what is.
fn contents(page: &mut String, functions: &[Function<'_>], overview: &[Figure]) {
    page.push_str(
        "<nav aria-label=\"Contents\"><ul><li><a href=\"#claims\">The paper's claims</a></li>",
    );
    let mut link = |anchor: &str, text: &str| {
        let (anchor, text) = (escape(anchor), escape(text));
        let _ = write!(page, "<li><a href=\"#{anchor}\">{text}</a></li>");
    };
    for figure in overview {
        link(&figure.anchor, &figure.title);
    }
    for function in functions {
        link(function.name(), function.name());
    }
    page.push_str("</ul></nav>\n");
}

/// `text` for HTML, in which no line ends between a number and its unit.
fn unbroken(text: &str) -> String {
    let mut text = escape(text);
    for unit in ["%", "MiB", "MB", "KiB", "ms", "µs", "pages", "times"] {
        for digit in '0'..='9' {
            text = text.replace(&format!("{digit} {unit}"), &format!("{digit}\u{a0}{unit}"));
        }
    }
    text
}

fn claims_table(page: &mut String, claims: &[Claim], tables: &Tables, command: &str) {
    page.push_str(
        "<section id=\"claims\"><h2>The paper's claims, tested here</h2>\n<div class=\"wide\" \
         tabindex=\"0\"><table class=\"claims\"><thead><tr><th scope=\"col\">Claim</th><th \
         scope=\"col\">Paper</th><th scope=\"col\">Here</th><th scope=\"col\">Linux guests</th><th \
         scope=\"col\">Verdict</th></tr></thead>",
    );
    for claim in claims {
        let _ = write!(
            page,
            "<tbody><tr><th scope=\"row\">{}</th><td data-of=\"Paper\">{}</td><td \
             data-of=\"Here\">{}</td><td data-of=\"Linux guests\">{}</td><td \
             data-of=\"Verdict\"><b>{}</b></td></tr><tr><td colspan=\"5\">{} The same if: {}.</td></tr></tbody>",
            escape(claim.claim),
            unbroken(claim.paper),
            unbroken(&claim.ours),
            unbroken(&claim.linux),
            claim.verdict.as_str(),
            unbroken(&claim.why),
            unbroken(claim.rule)
        );
    }
    let files = tables.claims.files().join("</code>, <code>");
    let _ = writeln!(
        page,
        "</table></div>\n<p class=\"soft\">The verdict is on what was measured here. The paper's figures are those of REAP (ASPLOS'21). Linux \
         guests: Python functions on Debian's kernel in an emulated host, which counts faults but \
         tells no times. Made by <code>{}</code>; all rows: <code>{files}</code></p></section>",
        escape(command)
    );
}
