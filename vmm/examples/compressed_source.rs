//! Starts a machine whose memory is a file of compressed pages.
//!
//! `cargo run -p reapvm --example compressed_source`; needs `/dev/kvm` and `/dev/userfaultfd`.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lz4_flex::block;
use reapvm::config::VmConfig;
use reapvm::function_vm::{ReadyWhen, create_snapshot};
use reapvm::invocation::Connection;
use reapvm::machine::{Machine, RestoreOptions};
use reapvm::memory::MemoryHooks;
use reapvm_reap::{MemoryRestoreMode, Page, PageSource, PageSourceError, SnapshotPageSource};
use reapvm_snapshot::{MEMORY_FILE, PAGE_SIZE, Snapshot};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Pages of guest memory, each compressed by itself, one after the other in a file.
struct CompressedPages {
    file: File,
    /// Where the page of a guest address is: offset and length in bytes.
    places: HashMap<u64, (u64, usize)>,
    compressed: Vec<u8>,
    page: Vec<u8>,
}

impl CompressedPages {
    /// Compresses the memory of `snapshot` into the file `path`, without its zero pages.
    fn write(snapshot: &Arc<Snapshot>, path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut source = SnapshotPageSource::new(Arc::clone(snapshot))?;
        let mut writer = BufWriter::new(File::create_new(path)?);
        let (mut places, mut offset) = (HashMap::new(), 0);
        for region in &snapshot.manifest().memory.regions {
            for gpa in (region.gpa..region.gpa + region.size_bytes).step_by(PAGE_SIZE) {
                if let Page::Data(page) = source.read_page(gpa)? {
                    let compressed = block::compress(page);
                    writer.write_all(&compressed)?;
                    places.insert(gpa, (offset, compressed.len()));
                    offset += compressed.len() as u64;
                }
            }
        }
        writer.flush()?;
        Ok(Self {
            file: File::open(path)?,
            places,
            compressed: vec![0; block::get_maximum_output_size(PAGE_SIZE)],
            page: vec![0; PAGE_SIZE],
        })
    }

    fn decompress(
        &mut self,
        offset: u64,
        length: usize,
    ) -> Result<usize, Box<dyn Error + Send + Sync>> {
        let compressed = &mut self.compressed[..length];
        self.file.read_exact_at(compressed, offset)?;
        Ok(block::decompress_into(compressed, &mut self.page)?)
    }
}

impl PageSource for CompressedPages {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        let Some(&(offset, length)) = self.places.get(&gpa) else {
            return Err(PageSourceError::OutOfRange { gpa });
        };
        match self.decompress(offset, length) {
            // Refuses what is not a whole page.
            Ok(length) => Page::from_bytes(gpa, &self.page[..length]),
            Err(source) => Err(PageSourceError::Other { gpa, source }),
        }
    }
}

/// Two answers of the same function to the same input: with the snapshot's own memory file, and
/// with the compressed one in its place.
fn run() -> Result<[Value; 2], Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("json.snap");
    let config = VmConfig::for_function("json_serdes")?;
    create_snapshot(config, &ReadyWhen::default(), None, &dir, TIMEOUT)?;
    let snapshot = Arc::new(Snapshot::open(&dir)?);
    let expected = answer(&snapshot, MemoryHooks::new())?;

    let path = scratch.path().join("memory.lz4");
    let source = CompressedPages::write(&snapshot, &path)?;
    println!("{} bytes compressed", std::fs::metadata(&path)?.len());
    // Nobody reads the memory file any more: all its bytes may go, only its length stays.
    let memory = File::create(dir.join(MEMORY_FILE))?;
    memory.set_len(snapshot.manifest().files.memory.len_bytes)?;
    let answered = answer(&snapshot, MemoryHooks::new().page_source(source))?;
    Ok([expected, answered])
}

fn answer(snapshot: &Arc<Snapshot>, hooks: MemoryHooks) -> Result<Value, Box<dyn Error>> {
    let options = RestoreOptions::new(MemoryRestoreMode::OnDemand).hooks(hooks);
    let mut machine = Machine::restore(snapshot, options)?;
    machine.resume()?;
    let mut connection = Connection::open(&machine)?;
    Ok(connection
        .call(&machine, &json!({ "seed": 1 }), TIMEOUT)?
        .value)
}

fn main() -> Result<(), Box<dyn Error>> {
    let [expected, answered] = run()?;
    println!(
        "{answered}\nthe same as uncompressed: {}",
        answered == expected
    );
    Ok(())
}

#[cfg(test)]
#[test]
fn the_answer_is_the_same() {
    let [expected, answered] = run().expect("it runs");
    assert_eq!(answered["ok"], true);
    assert_eq!(answered, expected);
}
