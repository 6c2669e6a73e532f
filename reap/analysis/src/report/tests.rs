use reapvm_reap::Phase;

use super::*;
use crate::test_traces::{Trace, record};

fn page(trace: &Trace) -> String {
    report(&mut trace.reader(), "reapvm trace report 'a<b'").unwrap()
}

fn small() -> Trace {
    let phases = [
        Phase::Restore,
        Phase::Connection,
        Phase::Request,
        Phase::Idle,
    ];
    let records = (0..500).map(|n| record(n, n * n % 7919, phases[n as usize / 125]));
    Trace::new(records.collect())
}

#[test]
fn the_page_is_whole_and_asks_for_nothing() {
    let page = page(&small());
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for forbidden in ["<script", "http://", "https://", "@import", "url(", "src="] {
        let found = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!found.contains(forbidden), "{forbidden}");
    }
    assert_eq!(page.matches("<svg ").count(), 5);
    assert_eq!(page.matches("</svg>").count(), 5);
    assert_eq!(page.matches("viewBox=").count(), 5);
    assert_eq!(page.matches("<summary>Numbers</summary>").count(), 5);
    assert_eq!(page.matches("Made by <code>").count(), 5);
    assert!(page.contains("prefers-color-scheme:dark") && page.contains("@media print"));
}

#[test]
fn figures_take_their_colours_from_the_page() {
    let page = page(&small());
    let svg = &page[page.find("<svg ").unwrap()..];
    for part in svg.split("=\"#").skip(1) {
        let color = &part[..6];
        assert!(
            [
                "010101", "020202", "030303", "040404", "050505", "060606", "070707", "080808"
            ]
            .contains(&color),
            "#{color} stays the same in a dark page"
        );
    }
}

#[test]
fn what_a_trace_says_cannot_become_markup() {
    let page = page(&small());
    assert!(page.contains("&lt;hello&gt; &amp; &quot;world&quot;"));
    assert!(!page.contains("<hello>") && !page.contains("<note>"));
    assert!(page.contains("a &lt;note&gt;") && page.contains("&#39;a&lt;b&#39;"));
    assert_eq!(escape("a\u{1b}[1m\nb"), "a\u{fffd}[1m\nb");
}

#[test]
fn axes_have_units_and_the_numbers_are_those_of_the_trace() {
    let page = page(&small());
    for label in [
        "time since the guest resumed (ms)",
        "distinct pages touched",
        "place in guest memory (MiB, holes left out)",
        "pages touched (%)",
        "pages in a run",
        "service time (µs, logarithmic)",
        "faults",
    ] {
        assert!(page.contains(label), "{label}");
    }
    let pages: std::collections::BTreeSet<u64> = (0..500_u64).map(|n| n * n % 7919).collect();
    assert!(page.contains(&format!("{} pages, ", pages.len())));
    assert!(page.contains("2 faults found the buffer full"));
}

#[test]
fn traces_of_nothing_and_of_one_touch_have_a_report() {
    let empty = page(&Trace::new(vec![]));
    assert!(empty.contains("The trace has no records."));
    let one = page(&Trace::new(vec![record(0, 1 << 50, Phase::Idle)]));
    assert!(one.contains("1 pages lie outside of guest memory."));
}
