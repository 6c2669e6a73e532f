//! Tables with typed columns: what is behind the figures of a study, for people and for programs.

mod parquet;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::Path;

use reapvm_snapshot::files::{ReplaceFileError, replace_file};

use crate::plot::grouped;
use crate::report::Table;

/// Rows that a table for people has where there are many: half a printed page.
const MAX_ROWS: usize = 24;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Words.
    Text,
    /// A count.
    Count,
    /// A number, which people see with so many digits behind the point.
    Number(usize),
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    /// Its name for programs, with its unit.
    pub(crate) name: &'static str,
    /// Its name for people, with its unit.
    pub(crate) title: &'static str,
    /// What it holds.
    pub(crate) kind: Kind,
}

/// A column of words.
pub(crate) const fn text(name: &'static str, title: &'static str) -> Column {
    let kind = Kind::Text;
    Column { name, title, kind }
}

/// A column of counts.
pub(crate) const fn count(name: &'static str, title: &'static str) -> Column {
    let kind = Kind::Count;
    Column { name, title, kind }
}

/// A column of numbers.
pub(crate) const fn number(name: &'static str, title: &'static str, digits: usize) -> Column {
    let kind = Kind::Number(digits);
    Column { name, title, kind }
}

/// What is in a row and a column. Each column has its own kind, or nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Text(String),
    Count(u64),
    Number(f64),
    /// It was not measured.
    None,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dataset {
    /// The name of its files.
    pub(crate) name: &'static str,
    columns: &'static [Column],
    rows: Vec<Vec<Cell>>,
}

impl Dataset {
    pub(crate) fn new(name: &'static str, columns: &'static [Column]) -> Self {
        Self {
            name,
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row: a cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len(), "{}", self.name);
        self.rows.push(cells.into());
    }

    /// The rows that `is_shown`, for people, without the first `skipped` columns.
    pub(crate) fn table(&self, skipped: usize, is_shown: impl Fn(&[Cell]) -> bool) -> Table {
        self.table_of(skipped, &self.shown(is_shown))
    }

    /// As [`table`](Self::table), but of many rows only some, the first and the last among them; and
    /// how many of how many.
    pub(crate) fn thinned_table(
        &self,
        skipped: usize,
        is_shown: impl Fn(&[Cell]) -> bool,
    ) -> (Table, usize, usize) {
        let shown = self.shown(is_shown);
        let some: Vec<&Vec<Cell>> = crate::report::thinned_to(&shown, MAX_ROWS)
            .into_iter()
            .copied()
            .collect();
        (self.table_of(skipped, &some), some.len(), shown.len())
    }

    fn shown(&self, is_shown: impl Fn(&[Cell]) -> bool) -> Vec<&Vec<Cell>> {
        self.rows.iter().filter(|row| is_shown(row)).collect()
    }

    fn table_of(&self, skipped: usize, rows: &[&Vec<Cell>]) -> Table {
        let columns = &self.columns[skipped..];
        let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
        let mut table = Table::new(&titles);
        for row in rows {
            let cells = row[skipped..].iter().zip(columns);
            table.row(cells.map(|(cell, column)| shown_as(cell, column)).collect());
        }
        table
    }

    /// Names of its files, in the folder with the report.
    pub(crate) fn files(&self) -> Vec<String> {
        ["csv", "parquet"]
            .map(|format| format!("data/{}.{format}", self.name))
            .into()
    }

    /// Writes it into `folder` in each format.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), ReplaceFileError> {
        let path = |format: &str| folder.join(format!("{}.{format}", self.name));
        replace_file(&path("csv"), |file| self.write_csv(file))?;
        replace_file(&path("parquet"), |file| {
            parquet::write(self, file).map_err(io::Error::other)
        })
    }

    fn write_csv(&self, output: impl Write) -> io::Result<()> {
        let mut writer = csv::Writer::from_writer(output);
        writer.write_record(self.columns.iter().map(|column| column.name))?;
        for row in &self.rows {
            writer.write_record(row.iter().map(plain))?;
        }
        writer.flush()
    }
}

/// A cell as a file has it.
fn plain(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        Cell::Count(count) => count.to_string(),
        Cell::Number(number) => number.to_string(),
        Cell::None => String::new(),
    }
}

/// A cell as people see it.
fn shown_as(cell: &Cell, column: &Column) -> String {
    match (cell, column.kind) {
        (Cell::Text(text), _) => text.clone(),
        (Cell::Count(count), _) => grouped(*count),
        (Cell::Number(number), Kind::Number(digits)) => format!("{number:.digits$}"),
        (Cell::Number(number), _) => number.to_string(),
        (Cell::None, _) => "–".to_owned(),
    }
}
