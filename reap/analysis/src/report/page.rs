//! The page around the figures.

use std::fmt::Write;

use reapvm_reap::trace::{TraceHeader, TraceSummary};

use super::escape;
use super::figures::{Figure, mib};
use crate::plot::{self, grouped};
use crate::statistics::Statistics;

const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#5a6069;--grid:#d9dce1;--box:#f4f5f7;
--warn:#fff3d6;--s0:#1f6fb2;--s1:#d9782d;--s2:#3a9a68;--s3:#8c62b5}
@media (prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e8eaed;--soft:#a5acb5;--grid:#3a3f46;
--box:#1f2226;--warn:#463a18;--s0:#6cb2ee;--s1:#f0a262;--s2:#6fcf9d;--s3:#c19fe6}}
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
details{margin:.4rem 0}summary{cursor:pointer}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.3rem 0}
.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem;border-radius:.15rem}
@media (max-width:36rem){svg{min-width:0}svg text{font-size:20px}}
@media print{body{max-width:none;padding:0;font-size:11pt}figure,tr{break-inside:avoid}h2{break-after:avoid}
svg{min-width:0}.wide{overflow:visible}summary{display:none}
details::details-content{content-visibility:visible;block-size:auto}
:root{--paper:#fff;--ink:#000;--soft:#333;--grid:#ccc;--box:#fff;--warn:#fff;--s0:#1f6fb2;--s1:#d9782d;
--s2:#3a9a68;--s3:#8c62b5}}
";

pub(super) fn page(
    header: &TraceHeader,
    summary: &TraceSummary,
    statistics: &Statistics,
    figures: &[Figure],
    command: &str,
) -> String {
    let name = header.function.as_deref().unwrap_or("a guest");
    let title = escape(&format!(
        "Page faults of {name}, memory mode {}",
        header.mode
    ));
    let command = escape(command);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>{STYLE}{}</style></head>\n<body><header><h1>{title}</h1></header><main>\n",
        plot::STYLE
    );
    warnings(&mut page, summary);
    facts(&mut page, header, summary, statistics);
    for figure in figures {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(
            page,
            "<section id=\"{}\"><h2>{}</h2><figure>",
            figure.anchor,
            escape(figure.title)
        );
        legend(&mut page, &figure.series);
        let _ = write!(
            page,
            "<div class=\"wide\" tabindex=\"0\">{}</div><figcaption>{}</figcaption></figure>\n\
             <details><summary>Numbers</summary><div class=\"wide\" tabindex=\"0\">{}</div></details>\n\
             <p class=\"soft\">Made by <code>{command}</code></p></section>\n",
            figure.svg,
            escape(&figure.caption),
            figure.table.to_html()
        );
    }
    page.push_str("</main></body></html>\n");
    page
}

/// What a reader must not overlook.
fn warnings(page: &mut String, summary: &TraceSummary) {
    let mut warn = |text: &str| {
        let _ = writeln!(page, "<p class=\"warn\">{}</p>", escape(text));
    };
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

fn facts(page: &mut String, header: &TraceHeader, summary: &TraceSummary, statistics: &Statistics) {
    page.push_str("<table class=\"facts\"><tbody>\n");
    let mut fact = |name: &str, value: &str| {
        let value = escape(value);
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>"
        );
    };
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
    page.push_str("</tbody></table>\n");
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
