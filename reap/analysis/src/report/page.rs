//! The page around the figures.

use std::fmt::Write;

use reapvm_reap::trace::{TraceHeader, TraceSummary};

use super::escape;
use super::figure::Figure;
use super::figures::mib;
use crate::plot::{self, grouped};
use crate::statistics::Statistics;

const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#5a6069;--grid:#d9dce1;--box:#f4f5f7;
--warn:#fff3d6;--s0:#1f6fb2;--s1:#d9782d;--s2:#3a9a68;--s3:#8c62b5;--s4:#a98a12;--s5:#c2487e}
@media (prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e8eaed;--soft:#a5acb5;--grid:#3a3f46;
--box:#1f2226;--warn:#463a18;--s0:#6cb2ee;--s1:#f0a262;--s2:#6fcf9d;--s3:#c19fe6;--s4:#e3c552;--s5:#f08ab8}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:62rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .4rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.warn{background:var(--warn);padding:.6rem .8rem;border-radius:.4rem}
figure{margin:0}figcaption{color:var(--soft)}
.wide{overflow-x:auto}svg{display:block;width:100%;min-width:34rem;max-width:54rem;height:auto}
code{font:.85em ui-monospace,monospace;background:var(--box);padding:.1rem .3rem;border-radius:.25rem;
overflow-wrap:anywhere}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem .2rem 0;text-align:right;border-bottom:1px solid var(--grid);
vertical-align:top}
th:first-child{text-align:left;font-weight:400}thead th{font-weight:600}thead th:first-child{font-weight:600}
table.facts td{text-align:left;overflow-wrap:anywhere}table.facts th{white-space:nowrap;color:var(--soft)}
h2.part{font-size:1.4rem;margin-top:3rem;padding-top:.6rem;border-top:2px solid var(--grid);overflow-wrap:anywhere}
nav ul{columns:18rem;padding-left:1.2rem;margin:1rem 0}a{color:var(--s0)}
table.claims{min-width:44rem}table.claims td,table.claims th{text-align:left;padding-right:1.2rem}
table.claims tbody tr:first-child>*{border-bottom:0;padding-top:.6rem}
table.claims tbody th{width:22%;font-weight:600}table.claims td[colspan]{color:var(--soft);padding-bottom:.6rem}
details{margin:.4rem 0}summary{cursor:pointer}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.3rem 0}
.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem;border-radius:.15rem}
@media (max-width:36rem){svg{min-width:0}svg text{font-size:20px}}
@media screen and (max-width:48rem){table.claims{min-width:0}table.claims thead{display:none}
table.claims :is(tbody,tr,th,td){display:block;width:auto!important;padding:.1rem 0}
table.claims tbody{border-bottom:1px solid var(--grid);padding:.6rem 0}table.claims :is(th,td){border:0!important}
table.claims td[data-of]::before{content:attr(data-of) ': ';color:var(--soft)}}
@media print{body{max-width:none;padding:0;font-size:9pt;line-height:1.35}main{orphans:1;widows:1}figure,tr{break-inside:avoid}
h1{font-size:15pt}h2{font-size:9.5pt;margin:.3rem 0 .2rem;break-after:avoid}h2.part{font-size:12pt;margin-top:.6rem;padding-top:.3rem}
section{display:inline-block;width:49%;margin-right:.5%;vertical-align:top;break-inside:avoid}
#claims,section:has(details[open]){display:block;width:auto;break-inside:auto}
svg{min-width:0}svg text{font-size:20px}.wide{overflow:visible}nav,summary{display:none}
figcaption,section>p.soft,.legend{font-size:7pt}.legend i{print-color-adjust:exact}
th,td{padding:.1rem .5rem .1rem 0}details table{font-size:6.5pt;line-height:1.25}
details th,details td{padding:.05rem .3rem .05rem 0}details tbody th{overflow-wrap:anywhere}
table.claims{min-width:0;font-size:8.5pt}table.claims tbody{break-inside:avoid}
details:not([open],.short),h2.part~section details:not([open]){display:none}details::details-content{content-visibility:visible;block-size:auto}
:root{--paper:#fff;--ink:#000;--soft:#333;--grid:#ccc;--box:#fff;--warn:#fff;--s0:#1f6fb2;--s1:#d9782d;
--s2:#3a9a68;--s3:#8c62b5;--s4:#a98a12;--s5:#c2487e}}
";

/// A whole page with this title and body.
pub(crate) fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>{STYLE}{}</style></head>\n<body><header><h1>{title}</h1></header><main>\n{body}\
         </main></body></html>\n",
        plot::STYLE
    )
}

/// Adds `figure` with its words and numbers, made by `command`.
pub(crate) fn add_figure(page: &mut String, figure: &Figure, command: &str) {
    // Writing to a string does not fail, here and below.
    let _ = writeln!(
        page,
        "<section id=\"{}\"><h2>{}</h2><figure>",
        escape(&figure.anchor),
        escape(&figure.title)
    );
    legend(page, &figure.series);
    let _ = write!(
        page,
        "{}<figcaption>{}</figcaption></figure>\n\
         <details{}><summary>Numbers</summary><div class=\"wide\" tabindex=\"0\">{}</div></details>\n\
         <p class=\"soft\">Made by <code>{}</code>",
        match figure.svg.as_str() {
            "" => String::new(),
            svg => format!("<div class=\"wide\" tabindex=\"0\">{svg}</div>"),
        },
        escape(&figure.caption),
        if figure.table.is_short() {
            " class=\"short\""
        } else {
            ""
        },
        figure.table.to_html(),
        escape(command)
    );
    for (at, file) in figure.files.iter().enumerate() {
        let before = if at == 0 { "; all rows: " } else { ", " };
        let _ = write!(page, "{before}<code>{}</code>", escape(file));
    }
    page.push_str("</p></section>\n");
}

/// Adds what a reader must not overlook.
pub(crate) fn add_warning(page: &mut String, text: &str) {
    let _ = writeln!(page, "<p class=\"warn\">{}</p>", escape(text));
}

/// Adds names and what they stand for.
pub(crate) fn add_facts(page: &mut String, facts: &[(&str, String)]) {
    page.push_str("<table class=\"facts\"><tbody>\n");
    for (name, value) in facts {
        let value = escape(value);
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>"
        );
    }
    page.push_str("</tbody></table>\n");
}

pub(super) fn page(
    header: &TraceHeader,
    summary: &TraceSummary,
    statistics: &Statistics,
    figures: &[Figure],
    command: &str,
) -> String {
    let name = header.function.as_deref().unwrap_or("a guest");
    let title = format!("Page faults of {name}, memory mode {}", header.mode);
    let mut body = String::new();
    warnings(&mut body, summary);
    add_facts(&mut body, &facts(header, summary, statistics));
    for figure in figures {
        add_figure(&mut body, figure, command);
    }
    document(&title, &body)
}

/// What a reader must not overlook.
fn warnings(page: &mut String, summary: &TraceSummary) {
    let mut warn = |text: &str| add_warning(page, text);
    if summary.dropped > 0 {
        warn(&format!(
            "{} faults found the buffer full and are missing: this is the beginning of the \
             invocation only.",
            grouped(summary.dropped)
        ));
    }
    if summary.records == 0 {
        warn("The trace has no records.");
    }
    for note in &summary.notes {
        warn(note);
    }
}

fn facts(
    header: &TraceHeader,
    summary: &TraceSummary,
    statistics: &Statistics,
) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut fact = |name: &'static str, value: &str| facts.push((name, value.to_owned()));
    let pages = statistics.pages.len();
    fact(
        "Touched",
        &format!("{} pages, {} MiB", grouped(pages), mib(pages)),
    );
    fact("Records", &grouped(summary.records));
    let [miss, zero, hit, unknown] = statistics.by_outcome().map(grouped);
    fact(
        "Outcomes",
        &format!(
            "{miss} read from the snapshot, {zero} zero, {hit} already there, {unknown} not known"
        ),
    );
    let [reads, writes, protected, unknown] = statistics.by_access().map(grouped);
    fact(
        "Accesses",
        &format!("{reads} reads, {writes} writes, {protected} write-protect, {unknown} not known"),
    );
    if let Some((first, last)) = statistics.span_ns {
        let ms = |ns: i64| ns as f64 / 1e6;
        fact(
            "Time",
            &format!("{:.3} ms to {:.3} ms after resume", ms(first), ms(last)),
        );
    }
    if let Some(input) = &header.input {
        fact("Input", input);
    }
    fact("Memory mode", header.mode.as_str());
    fact("Source", header.source.as_str());
    for limit in &header.limits {
        fact("Cannot see", limit.describe());
    }
    fact("Snapshot", &header.snapshot.to_string());
    fact("Made by", &header.creator);
    facts
}

fn legend(page: &mut String, series: &[String]) {
    if series.is_empty() {
        return;
    }
    page.push_str("<div class=\"legend\">");
    for (at, name) in series.iter().enumerate() {
        let name = escape(name);
        let _ = write!(
            page,
            "<span><i style=\"background:var(--s{at})\"></i>{name}</span>"
        );
    }
    page.push_str("</div>\n");
}
