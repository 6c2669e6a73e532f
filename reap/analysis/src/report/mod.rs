//! A report: one HTML file that needs no network, no script and no other file.

mod figure;
mod figures;
mod page;
mod table;

use std::io::{Read, Seek};

use reapvm_reap::trace::{TraceError, TraceReader};

use crate::plot::PlotError;
use crate::statistics::Statistics;
pub(crate) use figure::Figure;
use figures::figures;
pub(crate) use figures::{octaves, thinned_to};
pub(crate) use page::{add_facts, add_figure, add_warning, document};
pub(crate) use table::Table;

/// A report was not made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The trace cannot be read to its end.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A figure cannot be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
}

/// The report on the trace of `reader`, as a page. `command` is shown as what made it.
///
/// # Errors
/// When the trace cannot be read to its end or a figure cannot be drawn.
pub fn report<R: Read + Seek>(
    reader: &mut TraceReader<R>,
    command: &str,
) -> Result<String, ReportError> {
    let statistics = Statistics::of(reader)?;
    let figures = figures(&statistics)?;
    Ok(page::page(
        reader.header(),
        reader.summary(),
        &statistics,
        &figures,
        command,
    ))
}

/// `text` for HTML and SVG, in text and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters are no text of a page.
            c if c.is_control() && c != '\n' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
