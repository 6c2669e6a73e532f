//! The Unix socket of the host's clients, and the ones of its servers.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::VsockError;

/// A listening socket whose file goes when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: what somebody else put in its place is not removed.
    file: Option<(u64, u64)>,
    /// Given up for the client that comes when no other descriptor is left: a client that stays in
    /// the backlog would wake the event loop for ever.
    spare: Option<UnixListener>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Listener {
    pub(super) fn bind(path: &Path) -> Result<Self, VsockError> {
        let socket = UnixListener::bind(path).map_err(|source| {
            if source.kind() == io::ErrorKind::AddrInUse {
                VsockError::PathExists { path: path.into() }
            } else {
                VsockError::Listen {
                    path: path.into(),
                    source,
                }
            }
        })?;
        let mut listener = Self {
            socket,
            path: path.into(),
            file: identity(path),
            spare: None,
        };
        let ready = listener.socket.set_nonblocking(true);
        match ready.and_then(|()| listener.socket.try_clone()) {
            Ok(spare) => {
                listener.spare = Some(spare);
                Ok(listener)
            }
            Err(source) => Err(VsockError::Listen {
                path: path.into(),
                source,
            }),
        }
    }

    pub(super) fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// The next client, non-blocking. When this process or the host has no descriptor for it, the
    /// client is sent away, and that is the error.
    pub(super) fn accept(&mut self) -> io::Result<UnixStream> {
        let stream = match self.socket.accept() {
            Ok((stream, _)) => stream,
            Err(err) => {
                if matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                    self.spare = None;
                    drop(self.socket.accept());
                    self.spare = self.socket.try_clone().ok();
                }
                return Err(err);
            }
        };
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to the server for `port` of the host: the socket `<path>_<port>`.
    pub(super) fn connect_to_host_port(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(Path::new(&path))?;
        // Non-blocking from the start: a server with a full backlog would stop the event loop.
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some()
            && identity(&self.path) == self.file
            && let Err(err) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%err, path = %self.path.display(), "vsock: the socket file is left");
        }
    }
}
