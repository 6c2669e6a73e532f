//! A snapshot that is served.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reapvm::config::VmConfig;
use reapvm::machine::config_of;
use reapvm_snapshot::{MANIFEST_FILE, Snapshot};

use crate::cli::TemplateArgument;
use crate::output;

/// The pause after the first failure to prepare a machine; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What changes when another snapshot takes a place: device, inode, change time of the manifest.
type Stamp = (u64, u64, i64, i64);

/// A snapshot with its parsed manifest.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    stamp: Option<Stamp>,
    /// What is on disk; none if it cannot be used.
    loaded: Option<Loaded>,
    /// How often another snapshot was found in its place.
    pub(super) reloads: u64,
    /// When it was last asked for.
    pub(super) last_used: Instant,
    /// No machines are prepared until it is asked for.
    pub(super) is_dormant: bool,
    failures: u32,
    prepare_after: Option<Instant>,
    /// Why the last machine could not be prepared.
    pub(super) last_error: Option<String>,
}

#[derive(Debug)]
struct Loaded {
    id: String,
    config: VmConfig,
}

fn stamp(dir: &Path) -> Option<Stamp> {
    let metadata = std::fs::symlink_metadata(dir.join(MANIFEST_FILE)).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}

impl Template {
    /// Opens the snapshot.
    pub(super) fn open(argument: &TemplateArgument) -> Result<Self, String> {
        let dir = std::path::absolute(&argument.dir)
            .map_err(|error| format!("'{}': {error}", argument.dir.display()))?;
        let mut template = Self {
            name: argument.name.clone(),
            dir,
            stamp: None,
            loaded: None,
            reloads: 0,
            last_used: Instant::now(),
            is_dormant: false,
            failures: 0,
            prepare_after: None,
            last_error: None,
        };
        template.refresh()?;
        Ok(template)
    }

    /// Looks whether another snapshot has taken the place, and loads it then. Returns whether
    /// machines that were prepared before are of no use any more.
    pub(super) fn refresh(&mut self) -> Result<bool, String> {
        let stamp = stamp(&self.dir);
        if stamp.is_some() && stamp == self.stamp && self.loaded.is_some() {
            return Ok(false);
        }
        let before = self.loaded.take().map(|loaded| loaded.id);
        self.stamp = stamp;
        let snapshot = Snapshot::open(&self.dir).map_err(|error| output::chain(&error))?;
        let config = config_of(&snapshot).map_err(|error| output::chain(&error))?;
        let id = snapshot.id().to_string();
        let is_other = before.as_ref().is_some_and(|before| *before != id);
        if is_other {
            self.reloads += 1;
            self.prepared();
            tracing::info!(
                template = self.name,
                id,
                "another snapshot has taken its place"
            );
        }
        self.loaded = Some(Loaded { id, config });
        Ok(is_other)
    }

    /// The id of the snapshot; none if what is on disk cannot be used.
    pub(super) fn id(&self) -> Option<&str> {
        self.loaded.as_ref().map(|loaded| loaded.id.as_str())
    }

    /// Its machine; none if what is on disk cannot be used.
    pub(super) fn config(&self) -> Option<&VmConfig> {
        self.loaded.as_ref().map(|loaded| &loaded.config)
    }

    /// It is asked for.
    pub(super) fn touch(&mut self) {
        self.last_used = Instant::now();
        self.is_dormant = false;
    }

    /// Whether machines may be prepared at `now`; otherwise from when on, if from any time.
    pub(super) fn may_prepare(&self, now: Instant) -> Result<(), Option<Instant>> {
        if self.is_dormant || self.loaded.is_none() {
            return Err(None);
        }
        match self.prepare_after {
            Some(after) if after > now => Err(Some(after)),
            _ => Ok(()),
        }
    }

    /// A machine could be prepared.
    pub(super) fn prepared(&mut self) {
        self.failures = 0;
        self.prepare_after = None;
        self.last_error = None;
    }

    /// A machine could not be prepared; others are not tried at once.
    pub(super) fn not_prepared(&mut self, why: String) {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_PAUSE);
        self.failures += 1;
        self.prepare_after = Some(Instant::now() + pause);
        tracing::warn!(
            template = self.name,
            error = why,
            "cannot prepare a machine"
        );
        self.last_error = Some(why);
    }
}
