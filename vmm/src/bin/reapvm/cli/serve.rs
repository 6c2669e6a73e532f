//! The arguments of `reapvm serve` and of its client.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use reapvm_reap::{InstallMethod, MemoryRestoreMode};

use super::install::install_method;
use super::working_set::WorkingSetPolicyOptions;
use super::{json, mode, seconds};

/// Machines whose memory is read at once, unless another number is given.
pub(super) const DEFAULT_MAX_READING: u32 = 2;

/// A snapshot that is served, and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateArgument {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

impl TryFrom<OsString> for TemplateArgument {
    type Error = String;

    /// `NAME=DIR`, or `DIR`, whose last part is then the name.
    fn try_from(text: OsString) -> Result<Self, String> {
        if let Some((name, dir)) = text.to_str().and_then(|text| text.split_once('='))
            && !name.contains('/')
        {
            if name.is_empty() || dir.is_empty() {
                return Err("a name and a directory are needed: NAME=DIR".to_owned());
            }
            return Ok(Self {
                name: name.to_owned(),
                dir: dir.into(),
            });
        }
        let dir = PathBuf::from(text);
        let name = Path::file_name(&dir)
            .and_then(|name| name.to_str())
            .ok_or_else(|| {
                format!(
                    "'{}' has no last part to name it by: give NAME=DIR",
                    dir.display()
                )
            })?
            .to_owned();
        Ok(Self { name, dir })
    }
}

fn template(text: &str) -> Result<TemplateArgument, String> {
    OsString::from(text).try_into()
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The snapshots to start machines from, each with the name that requests call it by
    /// [default name: the last part of DIR]
    #[arg(value_name = "[NAME=]DIR", required = true, value_parser = template)]
    pub(crate) snapshots: Vec<TemplateArgument>,
    /// The Unix socket to listen on; one that a killed server has left is taken over
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// How guest memory comes back if a request does not say: see `reapvm invoke --help`
    #[arg(long, value_name = "MODE", default_value = "prefetch", value_parser = mode)]
    pub(crate) memory: MemoryRestoreMode,
    /// How prefetch installs the working set if a request does not say
    #[arg(long, value_name = "METHOD", default_value = "auto", value_parser = install_method)]
    pub(crate) install: InstallMethod,
    /// Have KVM enter the pages that prefetch installs in the guest's page tables before its first
    /// instruction (KVM_PRE_FAULT_MEMORY: Linux 6.11 and two-dimensional paging)
    #[arg(long)]
    pub(crate) pre_fault: bool,
    #[command(flatten)]
    pub(crate) working_set: WorkingSetPolicyOptions,
    /// Machines that are kept prepared for each snapshot
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=1024))]
    pub(crate) ready: u32,
    /// Give up a snapshot's prepared machines when none was asked for this long
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) idle: Duration,
    /// Machines that run at once; further requests wait
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_running: u32,
    /// Requests that wait; further ones are refused as `busy`
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_queued: u32,
    /// Machines whose memory is being read at once, by prefetch or copy; others wait for their turn
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_READING, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_reading: u32,
    /// How long machines may still run when the server is to end
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) grace: Duration,
}

/// A process that `reapvm serve` starts, for one machine.
#[derive(Args)]
pub(crate) struct ServeWorker {
    /// The snapshot directory
    pub(crate) dir: PathBuf,
    /// How memory is to come back
    #[arg(long, value_parser = mode)]
    pub(crate) memory: MemoryRestoreMode,
}

#[derive(Args)]
pub(crate) struct Request {
    /// The server's socket
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    #[command(subcommand)]
    pub(crate) command: RequestCommand,
}

#[derive(Subcommand)]
pub(crate) enum RequestCommand {
    /// Start a machine, call its function, print the response
    Invoke(RequestInvoke),
    /// Say which snapshots are served
    List,
    /// Say what the server is doing
    Status,
    /// Give up prepared machines until they are asked for again
    Trim {
        /// Only those of this snapshot
        template: Option<String>,
    },
    /// End the server as SIGTERM does
    Shutdown,
}

#[derive(Args)]
pub(crate) struct RequestInvoke {
    /// The name of the snapshot
    pub(crate) template: String,
    /// The function's input
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json)]
    pub(crate) input: serde_json::Value,
    /// How guest memory comes back [default: as the server was told]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub(crate) memory: Option<MemoryRestoreMode>,
    /// How prefetch installs the working set [default: as the server was told]
    #[arg(long, value_name = "METHOD", value_parser = install_method)]
    pub(crate) install: Option<InstallMethod>,
    /// Refuse if the server has another snapshot under this name by now
    #[arg(long, value_name = "ID")]
    pub(crate) snapshot_id: Option<String>,
    /// How long the response may take
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Print the server's whole answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_by_its_directory_unless_another_name_is_given() {
        let parse = |text: &str| template(text).map(|t| (t.name, t.dir));
        assert_eq!(parse("a/b.snap"), Ok(("b.snap".into(), "a/b.snap".into())));
        assert_eq!(parse("f=a/b=c"), Ok(("f".into(), "a/b=c".into())));
        assert_eq!(parse("a/b=c"), Ok(("b=c".into(), "a/b=c".into())));
        for bad in ["=a", "f=", "/", ".."] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
