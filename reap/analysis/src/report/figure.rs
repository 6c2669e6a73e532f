//! A figure of a report.

use super::table::Table;

/// A figure, its words and its numbers.
pub(crate) struct Figure {
    /// Names it in the page's address.
    pub(crate) anchor: String,
    pub(crate) title: String,
    /// What to see in it.
    pub(crate) caption: String,
    pub(crate) svg: String,
    /// Names of the series, where there are several.
    pub(crate) series: Vec<String>,
    pub(crate) table: Table,
    /// Files that have these numbers, and all others of their kind.
    pub(crate) files: Vec<String>,
}
