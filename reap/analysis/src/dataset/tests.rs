use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;

use super::*;

const COLUMNS: &[Column] = &[
    text("function", "Function"),
    count("pages", "Pages"),
    number("time_ms", "Time (ms)", 1),
];

fn dataset() -> Dataset {
    let mut dataset = Dataset::new("example", COLUMNS);
    dataset.row(["a, \"b\"".into(), 12_345_u64.into(), 0.25.into()]);
    dataset.row(["<c>".into(), Cell::None, Cell::None]);
    dataset
}

#[test]
fn people_and_both_formats_have_the_same_cells() {
    let folder = tempfile::tempdir().unwrap();
    dataset().write(folder.path()).unwrap();
    let csv = std::fs::read_to_string(folder.path().join("example.csv")).unwrap();
    assert_eq!(
        csv,
        "function,pages,time_ms\n\"a, \"\"b\"\"\",12345,0.25\n<c>,,\n"
    );

    let file = std::fs::File::open(folder.path().join("example.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let rows: Vec<Vec<Field>> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| {
            row.unwrap()
                .get_column_iter()
                .map(|(_, field)| field.clone())
                .collect()
        })
        .collect();
    let text = |text: &str| Field::Str(text.to_owned());
    assert_eq!(
        rows[0],
        [text("a, \"b\""), Field::ULong(12_345), Field::Double(0.25)]
    );
    assert_eq!(rows[1], [text("<c>"), Field::Null, Field::Null]);

    let html = dataset().table(0, |_| true).to_html();
    for part in [
        "12\u{202f}345",
        "<td>0.2</td>",
        "&lt;c&gt;",
        "<td>–</td>",
        "Time (ms)",
    ] {
        assert!(html.contains(part), "{part} in {html}");
    }
    let one = dataset().table(1, |row| row[1] != Cell::None).to_html();
    assert!(
        !one.contains("Function") && !one.contains("&lt;c&gt;"),
        "{one}"
    );
}

#[test]
fn a_table_of_nothing_has_its_columns() {
    let folder = tempfile::tempdir().unwrap();
    Dataset::new("nothing", COLUMNS)
        .write(folder.path())
        .unwrap();
    let file = std::fs::File::open(folder.path().join("nothing.parquet")).unwrap();
    let metadata = SerializedFileReader::new(file).unwrap();
    assert_eq!(metadata.metadata().file_metadata().num_rows(), 0);
    assert_eq!(
        metadata
            .metadata()
            .file_metadata()
            .schema_descr()
            .num_columns(),
        3
    );
    let missing = dataset().write(&folder.path().join("no/such"));
    assert!(missing.is_err());
}
