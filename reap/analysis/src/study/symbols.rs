//! Touches by the guest's functions, where the kernel's tracepoint has seen its instructions.

use std::path::Path;

use reapvm_reap::study::{IMAGE_FILE, Start, TRACES_FOLDER};
use reapvm_reap::trace::{Limit, TraceReader};
use reapvm_snapshot::SnapshotId;

use super::StudyError;
use crate::symbols::{SymbolTable, TouchesBySymbol};

/// The symbols of the guest.
#[derive(Debug)]
pub(super) enum GuestSymbols {
    /// They are there; instructions are moved back by so much.
    Known(SymbolTable, u64),
    /// Why they are not.
    None(String),
}

/// What is known of the touches of one function.
#[derive(Debug)]
pub(super) struct SymbolFindings {
    /// Counts, where the trace has instructions and there are symbols.
    pub(super) touches: Option<TouchesBySymbol>,
    /// Why there are none; or what they cannot tell.
    pub(super) reason: String,
}

impl GuestSymbols {
    /// Those of the file that was named, or of the image that the study has kept in `dir`.
    pub(super) fn find(
        dir: &Path,
        named: Option<&Path>,
        moved_by: u64,
    ) -> Result<Self, StudyError> {
        let kept = dir.join(IMAGE_FILE);
        let path = match named {
            Some(path) => path,
            None if kept.exists() => &kept,
            None => {
                let reason = "the guest's symbols were not given (--symbols FILE)".to_owned();
                return Ok(Self::None(reason));
            }
        };
        let failed = |reason: String| StudyError::Symbols {
            path: path.to_owned(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let table = match bytes.starts_with(b"\x7fELF") {
            true => SymbolTable::from_elf(&bytes),
            false => SymbolTable::from_system_map(&String::from_utf8_lossy(&bytes)),
        };
        match table {
            Ok(table) => Ok(Self::Known(table, moved_by)),
            // What was asked for has to be right; without it there is a report, too.
            Err(error) if named.is_some() => Err(failed(error.to_string())),
            Err(error) => Ok(Self::None(format!("the guest's image: {error}"))),
        }
    }
}

impl SymbolFindings {
    /// What the trace of `start`, of the snapshot `id`, tells.
    pub(super) fn of(
        dir: &Path,
        start: Option<&Start>,
        id: &SnapshotId,
        symbols: &GuestSymbols,
    ) -> Result<Self, StudyError> {
        let none = |reason: String| Self {
            touches: None,
            reason,
        };
        let Some(name) = start.and_then(|start| start.trace.as_ref()) else {
            return Ok(none("no start was traced for it".to_owned()));
        };
        let mut reader = TraceReader::open(&dir.join(TRACES_FOLDER).join(name), Some(id))?;
        let source = reader.header().source.as_str();
        if reader.header().limits.contains(&Limit::NoRip) {
            let notes = reader.summary().notes.join("; ");
            return Ok(none(format!(
                "the source {source} does not know the guest's instructions ({notes})"
            )));
        }
        let (table, moved_by) = match symbols {
            GuestSymbols::Known(table, moved_by) => (table, *moved_by),
            GuestSymbols::None(reason) => return Ok(none(reason.clone())),
        };
        let touches = TouchesBySymbol::of(&mut reader, table, moved_by).map_err(|error| {
            StudyError::Symbols {
                path: dir.join(TRACES_FOLDER).join(name),
                reason: error.to_string(),
            }
        })?;
        Ok(Self {
            reason: format!(
                "source {source}: {} touches by instructions in no function of the symbols, {} \
                 without an instruction",
                touches.unknown, touches.without_instruction
            ),
            touches: Some(touches),
        })
    }
}
