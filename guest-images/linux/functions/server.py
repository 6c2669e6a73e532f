#!/usr/bin/python3
"""Initialises one function and serves it: in a guest over vsock, elsewhere over a Unix socket.

    server.py [--function NAME] [--unix PATH]

Without --function the name is taken from `function=NAME` on the kernel command line.
"""

import argparse
import socket
import sys
from pathlib import Path

import workloads
from connections import MAX_CONNECTIONS, Connections
from protocol import PORT, Function


class StartError(Exception):
    """The server cannot start; the message says why."""


def function_of_cmdline(cmdline: str) -> str:
    """The name in `function=NAME`; the last one counts, as for the kernel's own parameters."""
    names = [
        word.removeprefix("function=") for word in cmdline.split() if word.startswith("function=")
    ]
    if not names:
        raise StartError(
            "the kernel command line names no function: "
            f"add function=NAME, one of {', '.join(workloads.NAMES)}"
        )
    return names[-1]


def listen(unix_path: str | None) -> socket.socket:
    """The listening socket."""
    try:
        if unix_path:
            Path(unix_path).unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(unix_path)
        else:
            listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            listener.bind((socket.VMADDR_CID_ANY, PORT))
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        where = unix_path or f"vsock port {PORT}"
        raise StartError(
            f"cannot listen on {where}: {error.strerror or error}; "
            "a guest needs a virtio socket device and its driver"
        ) from error
    return listener


def main() -> int:
    """Serves until it is ended."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--function", choices=workloads.NAMES, metavar="NAME")
    arguments.add_argument("--unix", metavar="PATH")
    options = arguments.parse_args()
    try:
        name = options.function or function_of_cmdline(Path("/proc/cmdline").read_text())
        function = Function(name, workloads.load(name).handle)
        connections = Connections(listen(options.unix), function)
    except (StartError, workloads.UnknownFunction) as error:
        print(f"function server: {error}", file=sys.stderr)
        return 1
    # The line that the host waits for.
    print("ready", flush=True)
    connections.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
