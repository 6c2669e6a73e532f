//! The socket that the server listens on.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A listening socket, non-blocking, whose file goes when it is dropped.
#[derive(Debug)]
pub(super) struct ServerSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: what somebody else put in its place is not removed.
    file: (u64, u64),
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl ServerSocket {
    /// Listens on `path`. A socket there that nobody listens on is taken over; one that somebody
    /// listens on, or another file, is left alone and refused.
    pub(super) fn bind(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot listen on '{}': {error}", path.display());
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Of two servers that find the socket of a killed one, the second must find the first
        // one's. The lock goes with its file, which is closed when this returns.
        let directory = File::open(parent).map_err(failed)?;
        flock(&directory, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        }
        .map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: identity(path).map_err(failed)?,
        })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), String> {
    let name = path.display();
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Err(format!(
            "'{name}' is taken by a file that is no socket: choose another path"
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .map_err(|error| format!("cannot remove the stale socket '{name}': {error}"))
        }
        Ok(_) => Err(format!(
            "another server listens on '{name}': end it first, or choose another path"
        )),
        Err(error) => Err(format!(
            "'{name}' is taken, and it cannot be seen whether a server listens on it: {error}"
        )),
    }
}

impl Drop for ServerSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the socket file is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = ServerSocket::bind(&path).unwrap();
        let error = ServerSocket::bind(&path).unwrap_err();
        assert!(error.contains("another server"), "{error}");
        drop(first);
        assert!(!path.exists());
        // What a killed server leaves: the file without the listener.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = ServerSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        // A file that took its place is not removed.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(second);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let error = ServerSocket::bind(&path).unwrap_err();
        assert!(error.contains("no socket"), "{error}");
    }
}
