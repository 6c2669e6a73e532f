//! Which functions of the guest touched memory: the instructions of a trace by the symbols of a
//! kernel or an image.

use std::collections::HashMap;
use std::io::{Read, Seek};

use object::{Object, ObjectSymbol, SymbolKind};
use reapvm_reap::trace::{TraceError, TraceReader};
use serde::Serialize;

use crate::PAGE_BYTES;
use crate::page_set::PageSet;

/// What follows the last symbol of a `System.map` is taken for it no further than this, in bytes.
const MAX_LAST_SYMBOL_BYTES: u64 = 64 << 10;

/// Symbols cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    /// It is no ELF file, or a damaged one.
    #[error("it is no ELF file that can be read")]
    Elf(#[source] object::Error),
    /// It was stripped.
    #[error(
        "it has no symbols of functions: was it stripped? A kernel's vmlinux before stripping has \
         them, or its System.map"
    )]
    NoSymbols,
    /// A line of a `System.map` is none.
    #[error("line {line} is not \"ADDRESS TYPE NAME\", as in a System.map")]
    MapLine {
        /// Number of the line, from 1.
        line: usize,
    },
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Symbol {
    start: u64,
    /// The first address that is not its own.
    end: u64,
    name: String,
}

/// Functions and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolTable(Vec<Symbol>);

impl SymbolTable {
    /// The functions of an ELF file, by their own addresses and sizes.
    ///
    /// # Errors
    /// It is no ELF file, or has no symbols of functions.
    pub fn from_elf(bytes: &[u8]) -> Result<Self, SymbolsError> {
        let file = object::File::parse(bytes).map_err(SymbolsError::Elf)?;
        let functions = file
            .symbols()
            .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
            .filter_map(|symbol| {
                let name = symbol.name().ok().filter(|name| !name.is_empty())?;
                Some((symbol.address(), symbol.size(), name.to_owned()))
            })
            .collect();
        Self::new(functions)
    }

    /// The functions of a kernel's `System.map`: each goes up to the next.
    ///
    /// # Errors
    /// A line is no symbol, or there is none of a function.
    pub fn from_system_map(text: &str) -> Result<Self, SymbolsError> {
        let mut functions = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let malformed = || SymbolsError::MapLine { line: index + 1 };
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                return Err(malformed());
            };
            let address = u64::from_str_radix(address, 16).map_err(|_| malformed())?;
            if matches!(kind, "t" | "T" | "w" | "W") {
                functions.push((address, 0, name.to_owned()));
            }
        }
        Self::new(functions)
    }

    fn new(mut functions: Vec<(u64, u64, String)>) -> Result<Self, SymbolsError> {
        // Of several names for one place, the one with a size, and then the first, is kept.
        functions.sort_by(|a, b| (a.0, b.1, &a.2).cmp(&(b.0, a.1, &b.2)));
        functions.dedup_by_key(|function| function.0);
        if functions.is_empty() {
            return Err(SymbolsError::NoSymbols);
        }
        let starts: Vec<u64> = functions.iter().map(|function| function.0).collect();
        let symbols = functions
            .into_iter()
            .enumerate()
            .map(|(index, (start, size, name))| {
                let next = starts.get(index + 1).copied();
                let end = match (size, next) {
                    (0, Some(next)) => next,
                    (0, None) => start.saturating_add(MAX_LAST_SYMBOL_BYTES),
                    (size, _) => start.saturating_add(size),
                };
                Symbol { start, end, name }
            })
            .collect();
        Ok(Self(symbols))
    }

    /// The function that `address` is in.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&str> {
        let after = self.0.partition_point(|symbol| symbol.start <= address);
        let symbol = self.0.get(after.checked_sub(1)?)?;
        (address < symbol.end).then_some(symbol.name.as_str())
    }
}

/// Touches by one function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SymbolTouches {
    /// Its name.
    pub symbol: String,
    /// Touches that the trace has of it.
    pub touches: u64,
    /// Distinct pages among them.
    pub pages: u64,
    /// Sum of the times to serve them, in ns.
    pub service_ns: u64,
}

/// The touches of a trace by function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TouchesBySymbol {
    /// By number of touches, most first.
    pub symbols: Vec<SymbolTouches>,
    /// Touches by instructions that are in no function of the table.
    pub unknown: u64,
    /// Touches of which the trace does not know the instruction: its source cannot see it, or
    /// they are none of a vCPU's.
    pub without_instruction: u64,
}

impl TouchesBySymbol {
    /// Those of the trace `reader`. `moved_by` is subtracted from each instruction's address, modulo
    /// 2^64: how far the kernel was moved from where it was linked (KASLR).
    ///
    /// # Errors
    /// The trace cannot be read to its end.
    pub fn of<R: Read + Seek>(
        reader: &mut TraceReader<R>,
        table: &SymbolTable,
        moved_by: u64,
    ) -> Result<Self, SymbolsError> {
        let mut by_symbol: HashMap<&str, (u64, PageSet, u64)> = HashMap::new();
        let mut found = Self::default();
        while let Some(record) = reader.next_record()? {
            let Some(rip) = record.rip else {
                found.without_instruction += 1;
                continue;
            };
            let Some(name) = table.find(rip.wrapping_sub(moved_by)) else {
                found.unknown += 1;
                continue;
            };
            let (touches, pages, service_ns) = by_symbol.entry(name).or_default();
            *touches += 1;
            pages.insert(record.gpa / PAGE_BYTES);
            *service_ns = service_ns.saturating_add(record.service_ns);
        }
        found.symbols = by_symbol
            .into_iter()
            .map(|(name, (touches, pages, service_ns))| SymbolTouches {
                symbol: name.to_owned(),
                touches,
                pages: pages.len(),
                service_ns,
            })
            .collect();
        found
            .symbols
            .sort_by(|a, b| b.touches.cmp(&a.touches).then(a.symbol.cmp(&b.symbol)));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reapvm_reap::Phase;
    use reapvm_reap::trace::TraceRecord;

    use super::*;
    use crate::test_traces::{Trace, record};

    const MAP: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t copy_page
ffffffff81000100 T copy_page_alias
ffffffff81000200 D some_data
ffffffff81000300 W clear_page
";

    #[test]
    fn addresses_are_in_the_function_before_them() {
        let table = SymbolTable::from_system_map(MAP).unwrap();
        let at = |offset: u64| table.find(0xffff_ffff_8100_0000 + offset);
        assert_eq!(at(0), Some("_text"));
        assert_eq!(at(0xff), Some("_text"));
        assert_eq!(at(0x2ff), Some("copy_page"));
        assert_eq!(at(0x300), Some("clear_page"));
        assert_eq!(at(0x300 + MAX_LAST_SYMBOL_BYTES), None);
        assert_eq!(table.find(0xffff_ffff_80ff_ffff), None);
        assert_eq!(table.find(0), None);
    }

    #[test]
    fn what_is_no_table_of_symbols_says_why() {
        let map = |text| SymbolTable::from_system_map(text).unwrap_err().to_string();
        assert!(map("ffffffff81000000 T a\nnonsense\n").contains("line 2"));
        assert!(map("zz T a").contains("line 1"));
        assert!(map("ffffffff81000000 D data\n").contains("no symbols"));
        assert!(map("").contains("no symbols"));
        let elf = |bytes| SymbolTable::from_elf(bytes).unwrap_err();
        assert!(matches!(elf(b"\x7fELF and no more"), SymbolsError::Elf(_)));
        assert!(matches!(elf(b""), SymbolsError::Elf(_)));
    }

    #[test]
    fn a_stripped_elf_file_says_that_it_is_stripped() {
        // A header and nothing behind it: no sections, and so no symbols.
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        elf.resize(52, 0);
        elf.extend([64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
        let error = SymbolTable::from_elf(&elf).unwrap_err();
        assert!(matches!(error, SymbolsError::NoSymbols), "{error}");
        assert!(error.to_string().contains("stripped") && error.to_string().contains("vmlinux"));
    }

    #[test]
    fn this_program_is_an_elf_file_with_symbols() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let table = SymbolTable::from_elf(&bytes).unwrap();
        assert!(
            table
                .0
                .iter()
                .any(|symbol| symbol.name.contains("this_program_is_an_elf_file"))
        );
    }

    #[test]
    fn touches_are_counted_by_function() {
        let table = SymbolTable::from_system_map(MAP).unwrap();
        let moved_by = 0x1200_0000;
        let record = |sequence, rip: Option<u64>, page| TraceRecord {
            rip: rip.map(|rip| rip.wrapping_add(moved_by)),
            service_ns: 10,
            ..record(sequence, page, Phase::Request)
        };
        let trace = Trace::new(vec![
            record(0, Some(0xffff_ffff_8100_0110), 1),
            record(1, Some(0xffff_ffff_8100_0120), 1),
            record(2, Some(0xffff_ffff_8100_0310), 2),
            record(3, Some(0x1000), 3),
            record(4, None, 4),
        ]);
        let found = TouchesBySymbol::of(&mut trace.reader(), &table, moved_by).unwrap();
        let touches = |symbol: &str, touches, pages| SymbolTouches {
            symbol: symbol.to_owned(),
            touches,
            pages,
            service_ns: touches * 10,
        };
        assert_eq!(
            found.symbols,
            [touches("copy_page", 2, 1), touches("clear_page", 1, 1)]
        );
        assert_eq!((found.unknown, found.without_instruction), (1, 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = SymbolTable::from_elf(&bytes);
            let _ = SymbolTable::from_system_map(&String::from_utf8_lossy(&bytes));
            let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
            elf.extend(&bytes);
            let _ = SymbolTable::from_elf(&elf);
        }
    }
}
