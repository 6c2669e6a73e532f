//! Reports as a browser shows them: checked in Chromium, and left as pictures under the target folder.
//!
//! `make report-screenshots` has it picture the reports of a real trace and a real study, too, which
//! REAPVM_REPORTS names.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod chromium;
mod picture;
#[path = "../../src/test_studies.rs"]
mod test_studies;
#[allow(dead_code, reason = "the unit tests use all of it")]
#[path = "../../src/test_traces.rs"]
mod test_traces;

use std::fmt::Arguments;
use std::io::Write;
use std::path::{Path, PathBuf};

use chromium::{Chromium, PAPER_WIDTH, Rect, Window};
use picture::{Colour, Picture, lightness};
use reapvm_analysis::report::report;
use reapvm_analysis::study::{StudyOptions, write_report};
use reapvm_reap::Phase;
use serde::Deserialize;
use test_traces::{Trace, record};

/// Reports beside the test's own, separated by colons.
const MORE_REPORTS: &str = "REAPVM_REPORTS";
/// If it is set, the test fails where there is no Chromium.
const REQUIRED: &str = "REAPVM_REQUIRE_CHROMIUM";
/// Chromium's longest picture, with a reserve: a longer page becomes several.
const MAX_PICTURE: usize = 8000;
/// The share of a figure's picture that has to be something else than paper.
const LEAST_INK: f64 = 0.005;
/// Lower letters than these, in CSS pixels, nobody reads on a screen.
const LEAST_LETTERS: f64 = 8.0;

const FUNCTIONS: [&str; 10] = [
    "helloworld",
    "chameleon",
    "pyaes",
    "image_rotate",
    "json_serdes",
    "lr_serving",
    "cnn_serving",
    "rnn_serving",
    "lr_training",
    "video_processing",
];

const fn window(width: u32, height: u32, is_dark: bool) -> Window {
    Window {
        width,
        height,
        is_dark,
        is_paper: false,
    }
}

/// What reports are looked at in.
const WINDOWS: [(&str, Window); 5] = [
    ("desktop-light", window(1280, 900, false)),
    ("desktop-dark", window(1280, 900, true)),
    ("phone-light", window(360, 800, false)),
    ("phone-dark", window(360, 800, true)),
    (
        "paper",
        Window {
            is_paper: true,
            ..window(PAPER_WIDTH, 1000, false)
        },
    ),
];

/// What the page says of itself. Lengths are in CSS pixels.
#[derive(Deserialize)]
struct Page {
    width: f64,
    scroll_width: f64,
    height: f64,
    /// What lies beyond the right edge of the page, or of its section, and cannot be scrolled to.
    overflowing: Vec<String>,
    /// Texts of figures that are cut off.
    cut: Vec<String>,
    /// Texts of figures and how high they are, where that is too little.
    small: Vec<String>,
    figures: Vec<Figure>,
}

#[derive(Deserialize)]
struct Figure {
    id: String,
    caption: String,
    /// Where it is, unless there is nothing to draw.
    svg: Option<Rect>,
    rows: usize,
    /// Columns of the table's head, and of its rows.
    columns: Vec<usize>,
    command: String,
}

const INSPECT: &str = r#"(leastLetters => {
  const rect = e => { const r = e.getBoundingClientRect();
    return { x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height }; };
  const name = e => e.tagName + ' ' + (e.id || e.className || '') + ': ' + e.textContent.slice(0, 40);
  const width = document.documentElement.clientWidth;
  const scrolls = e => { const w = e.closest('.wide');
    return w !== null && w !== e && getComputedStyle(w).overflowX === 'auto'; };
  const all = [...document.body.querySelectorAll('*')];
  const texts = [...document.querySelectorAll('svg text')].map(e => {
    const b = e.getBoundingClientRect(), s = e.ownerSVGElement.getBoundingClientRect();
    return { e, b, s }; });
  return {
    width, scroll_width: document.documentElement.scrollWidth,
    height: document.documentElement.scrollHeight,
    overflowing: all.filter(e => !scrolls(e)).filter(e => {
      const part = e.closest('section');
      const right = Math.min(width, part ? part.getBoundingClientRect().right : width);
      return e.getBoundingClientRect().right > right + 0.5; }).map(name),
    cut: texts.filter(t => t.b.left < t.s.left - 1 || t.b.right > t.s.right + 1 ||
      t.b.top < t.s.top - 1 || t.b.bottom > t.s.bottom + 1).map(t => name(t.e)),
    small: texts.filter(t => Math.min(t.b.height, t.b.width * 9) < leastLetters)
      .map(t => name(t.e) + ' ' + t.b.height),
    figures: [...document.querySelectorAll('section:has(figure)')].map(s => {
      const svg = s.querySelector('svg'), code = s.querySelector('p.soft code');
      const cells = [...s.querySelectorAll('details table tr')].map(r => r.cells.length);
      return { id: s.id, caption: s.querySelector('figcaption').textContent,
        svg: svg && rect(svg), rows: s.querySelectorAll('details table tbody tr').length,
        columns: [...new Set(cells)], command: code ? code.textContent : '' }; }),
  };
})"#;

/// Says something that is shown of a test that passes, too.
fn say(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn reports_can_be_read_on_a_desktop_on_a_phone_and_on_paper() {
    let Some(program) = chromium::installed() else {
        assert!(
            std::env::var_os(REQUIRED).is_none(),
            "there is no Chromium, and {REQUIRED} is set"
        );
        say(format_args!(
            "skipped: no Chromium to show reports (./.ci/setup browser installs it)"
        ));
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    // Those of an older run must not be taken for this one's.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let mut reports = vec![
        Report::of_trace(&folder),
        Report::of_study(&folder, "study", &FUNCTIONS[..2], &WINDOWS),
        // Paper is what a long one is too long for.
        Report::of_study(&folder, "study-of-ten", &FUNCTIONS, &WINDOWS[4..]),
    ];
    if let Some(paths) = std::env::var_os(MORE_REPORTS) {
        let files = std::env::split_paths(&paths);
        reports.extend(
            files
                .enumerate()
                .map(|(at, file)| Report::given(at + 1, &file)),
        );
    }
    let mut chromium = Chromium::start(&program);
    for report in &reports {
        for (name, window) in report.windows {
            chromium.open(&report.file, window);
            let prefix = folder.join(format!("{}-{name}", report.name));
            check(&mut chromium, report, &prefix, window);
        }
        let pdf = chromium.print();
        let path = folder.join(format!("{}-paper.pdf", report.name));
        std::fs::write(&path, &pdf).unwrap();
        let pages = pages_of(&pdf);
        say(format_args!("{}: {pages} pages", path.display()));
        if let Some(most) = report.most_pages {
            assert!(pages <= most, "{}: {pages} pages on paper", report.name);
        }
    }
}

/// A report to be looked at.
struct Report {
    name: String,
    file: PathBuf,
    /// Figures, if it is known how many it has.
    figures: Option<usize>,
    windows: &'static [(&'static str, Window)],
    /// Pages that it may have on paper.
    most_pages: Option<usize>,
}

impl Report {
    fn of_trace(folder: &Path) -> Self {
        let phases = [Phase::Restore, Phase::Connection, Phase::Request];
        let records = (0..600).map(|n| record(n, n * n % 7919, phases[n as usize / 200]));
        let trace = Trace::new(records.collect());
        let page = report(&mut trace.reader(), "reapvm trace report hello.trace").unwrap();
        let file = folder.join("trace.html");
        std::fs::write(&file, page).unwrap();
        Self {
            name: "trace".to_owned(),
            file,
            figures: Some(5),
            windows: &WINDOWS,
            most_pages: Some(3),
        }
    }

    fn of_study(
        folder: &Path,
        name: &str,
        functions: &[&str],
        windows: &'static [(&'static str, Window)],
    ) -> Self {
        let dir = folder.join(name);
        test_studies::make(&dir, functions);
        let command = "reapvm study --report-only --output a-study";
        let outcome = write_report(&dir, &StudyOptions::default(), command).unwrap();
        Self {
            name: name.to_owned(),
            file: outcome.report,
            figures: Some(8 + 4 * functions.len()),
            windows,
            most_pages: Some(5 + functions.len().div_ceil(2)),
        }
    }

    /// One that somebody has made.
    fn given(number: usize, file: &Path) -> Self {
        let canonical = file.canonicalize();
        let file = canonical.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let stem = file.file_stem().unwrap().to_string_lossy();
        Self {
            name: format!("given-{number}-{stem}"),
            file,
            figures: None,
            windows: &WINDOWS,
            most_pages: None,
        }
    }
}

/// Checks the page that is shown, and leaves pictures of it whose names begin with `prefix`.
fn check(chromium: &mut Chromium, report: &Report, prefix: &Path, window: &Window) {
    let at = prefix.file_name().unwrap().to_string_lossy();
    let inspect = format!("{INSPECT}({LEAST_LETTERS})");
    let page: Page = serde_json::from_value(chromium.evaluate(&inspect)).unwrap();
    let is_whole = |page: &Page, of: &str| {
        assert!(page.scroll_width <= page.width, "{at}{of}: it is wider");
        assert_eq!(page.overflowing, [""; 0], "{at}{of}");
    };
    is_whole(&page, "");
    assert_eq!(page.width, f64::from(window.width), "{at}");
    assert_eq!(page.cut, [""; 0], "{at}: texts are cut off");
    assert_eq!(page.small, [""; 0], "{at}: texts are too small");
    if let Some(figures) = report.figures {
        assert_eq!(page.figures.len(), figures, "{at}");
    }
    assert!(!page.figures.is_empty(), "{at}");

    let shown = Shown::of(chromium, &page, prefix);
    let light = lightness(shown.paper);
    assert!(
        if window.is_dark {
            light < 64
        } else {
            light > 224
        },
        "{at}: the page is as light as {light}"
    );
    for figure in &page.figures {
        let id = &figure.id;
        assert!(figure.command.starts_with("reapvm "), "{at} {id}");
        assert_eq!(figure.columns.len(), 1, "{at} {id}: a table with gaps");
        let Some(place) = figure.svg else {
            assert!(figure.caption.contains("Not known here"), "{at} {id}");
            continue;
        };
        assert!(figure.rows > 0, "{at} {id}: no numbers");
        assert!(
            place.width > 200.0 && place.height > 40.0,
            "{at} {id}: {place:?}"
        );
        assert!(shown.inked(place) > LEAST_INK, "{at} {id}: it is blank");
    }
    chromium.evaluate("for (const d of document.querySelectorAll('details')) d.open = true");
    let opened = serde_json::from_value(chromium.evaluate(&inspect)).unwrap();
    is_whole(&opened, ", tables open");
    chromium.evaluate("for (const d of document.querySelectorAll('details')) d.open = false");
    assert_eq!(chromium.complaints(), [""; 0], "{at}");
}

/// What is to be seen of a page: one picture above the other, and where each begins.
struct Shown {
    pictures: Vec<(u32, Picture)>,
    paper: Colour,
}

impl Shown {
    /// Takes pictures, decodes them and leaves them as files.
    fn of(chromium: &mut Chromium, page: &Page, prefix: &Path) -> Self {
        let mut pictures: Vec<(u32, Picture)> = Vec::new();
        let (width, whole) = (page.width as u32, page.height as u32);
        for top in (0..whole).step_by(MAX_PICTURE) {
            let height = (whole - top).min(MAX_PICTURE as u32);
            let png = chromium.picture(Rect {
                x: 0.0,
                y: top.into(),
                width: width.into(),
                height: height.into(),
            });
            let mut path = prefix.as_os_str().to_owned();
            path.push(match pictures.len() {
                0 => ".png".to_owned(),
                before => format!("-{}.png", before + 1),
            });
            std::fs::write(&path, &png).unwrap();
            say(format_args!("{}", Path::new(&path).display()));
            let picture = Picture::decode(&png);
            assert_eq!((picture.width, picture.height), (width, height), "{path:?}");
            pictures.push((top, picture));
        }
        let paper = pictures.first().expect("a page has a height").1.paper();
        Self { pictures, paper }
    }

    /// The share of the pixels there that are something else than paper.
    fn inked(&self, place: Rect) -> f64 {
        let (left, right) = (place.x as u32, (place.x + place.width) as u32);
        let rows = place.y as u32..(place.y + place.height) as u32;
        let pixels = rows.len() * (right - left) as usize;
        let of_row = |row| {
            let (top, picture) = self.pictures.iter().rfind(|(top, _)| *top <= row)?;
            let row = row - top;
            (row < picture.height).then(|| picture.inked(row, left, right, self.paper))
        };
        rows.filter_map(of_row).sum::<usize>() as f64 / pixels as f64
    }
}

/// The pages of a PDF as Chromium writes it.
fn pages_of(pdf: &[u8]) -> usize {
    assert!(pdf.starts_with(b"%PDF-"));
    let text = String::from_utf8_lossy(pdf);
    let pages = text.matches("/Type /Page\n").count();
    assert!(pages > 0, "a PDF without pages");
    pages
}
