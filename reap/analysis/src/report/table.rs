//! Tables of a report.

use std::fmt::Write;

use super::escape;

/// Rows and columns of a table that is printed even if it is not open: it has room beside another
/// figure.
const SHORT: (usize, usize) = (12, 7);

/// The numbers behind a figure.
pub(crate) struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<S: AsRef<str>>(columns: &[S]) -> Self {
        Self {
            columns: columns
                .iter()
                .map(|name| name.as_ref().to_owned())
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: its name and its numbers.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether it has room on paper in any case.
    pub(crate) fn is_short(&self) -> bool {
        self.rows.len() <= SHORT.0 && self.columns.len() <= SHORT.1
    }

    pub(crate) fn to_html(&self) -> String {
        let mut html = String::from("<table><thead><tr>");
        for column in &self.columns {
            // Writing to a string does not fail.
            let _ = write!(html, "<th scope=\"col\">{}</th>", escape(column));
        }
        html.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            html.push_str("<tr>");
            for (at, cell) in row.iter().enumerate() {
                let cell = escape(cell);
                let _ = match at {
                    0 => write!(html, "<th scope=\"row\">{cell}</th>"),
                    _ => write!(html, "<td>{cell}</td>"),
                };
            }
            html.push_str("</tr>");
        }
        html.push_str("</tbody></table>\n");
        html
    }
}
