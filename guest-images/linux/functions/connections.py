"""Connections of the function server: requests in, replies out, each bounded.

One thread: requests are served one after the other, as the guest has one function, and connections
take turns. Peers are not trusted: a connection holds two of the longest request lines and one reply
at most, and the number of connections is bounded too.
"""

import selectors
import socket

from protocol import MAX_REQUEST_BYTES, TOO_LONG, Function

# One more takes the place of the one silent for longest: its peer may have gone without a word, as
# peers do when the machine was restored from a snapshot.
MAX_CONNECTIONS = 16
_READ_BYTES = 64 * 1024


class _Connection:
    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.input = bytearray()
        self.output = memoryview(b"")
        # Nothing more is read: the peer sends no more, or was refused.
        self.finishing = False
        self.watched = 0

    def has_request(self) -> bool:
        """There is a whole line, or too long a part of one."""
        return len(self.input) > MAX_REQUEST_BYTES or b"\n" in self.input

    def wanted(self) -> int:
        """What has to be waited for before it can go on."""
        if self.output:
            return selectors.EVENT_WRITE
        # A peer that sends faster than it is served has to wait.
        return 0 if self.finishing or self.has_request() else selectors.EVENT_READ


class Connections:
    """Serves `function` to whoever connects to `listener`."""

    def __init__(self, listener: socket.socket, function: Function) -> None:
        listener.setblocking(False)
        self._function = function
        self._listener = listener
        # By last activity, the most recent last.
        self._open: list[_Connection] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def serve_forever(self) -> None:
        """Never returns."""
        while True:
            self.serve_once()

    def serve_once(self, timeout_s: float | None = None) -> None:
        """Waits for something to do, and does one step of it for each connection."""
        waiting = any(not one.output and one.has_request() for one in self._open)
        for key, _ in self._selector.select(0 if waiting else timeout_s):
            if key.data is None:
                self._accept()
            # An earlier event of this round may have closed it.
            elif key.data in self._open:
                self._transfer(key.data)
        for connection in list(self._open):
            if not connection.output and connection.has_request():
                self._serve_request(connection)
                self._transfer(connection)
            if connection in self._open:
                self._settle(connection)

    def close(self) -> None:
        """Closes every connection and the listener."""
        for connection in list(self._open):
            self._close(connection)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            stream, _ = self._listener.accept()
        except OSError:
            # It hung up before it was taken.
            return
        if len(self._open) >= MAX_CONNECTIONS:
            self._close(self._open[0])
        stream.setblocking(False)
        self._open.append(_Connection(stream))

    def _transfer(self, connection: _Connection) -> None:
        """Sends what is to be sent, else receives."""
        self._open.remove(connection)
        self._open.append(connection)
        try:
            if connection.output:
                sent = connection.stream.send(connection.output)
                connection.output = connection.output[sent:]
            elif connection.wanted() == selectors.EVENT_READ:
                received = connection.stream.recv(_READ_BYTES)
                connection.input += received
                # What was sent before the end is still answered.
                connection.finishing = not received
        except BlockingIOError:
            return
        except OSError:
            # The peer is gone, which is no one's error.
            self._close(connection)

    def _serve_request(self, connection: _Connection) -> None:
        end = connection.input.find(b"\n", 0, MAX_REQUEST_BYTES + 1)
        if end < 0:
            # Where the next line begins will not be known before all of this one was read.
            connection.input.clear()
            connection.finishing = True
            reply = self._function.refuse(TOO_LONG)
        else:
            line = bytes(connection.input[:end])
            del connection.input[: end + 1]
            reply = self._function.answer(line)
        connection.output = memoryview(reply)

    def _settle(self, connection: _Connection) -> None:
        """Waits for the right thing, or closes a connection that waits for nothing more."""
        wanted = connection.wanted()
        if not wanted and not connection.has_request():
            self._close(connection)
            return
        if wanted == connection.watched:
            return
        if connection.watched:
            self._selector.unregister(connection.stream)
        if wanted:
            self._selector.register(connection.stream, wanted, connection)
        connection.watched = wanted

    def _close(self, connection: _Connection) -> None:
        self._open.remove(connection)
        if connection.watched:
            self._selector.unregister(connection.stream)
        if connection.finishing:
            _drain(connection.stream)
        connection.stream.close()


def _drain(stream: socket.socket) -> None:
    """Reads what is there: a close with unread bytes resets, and the reply would be lost."""
    try:
        stream.shutdown(socket.SHUT_WR)
        for _ in range(16):
            if not stream.recv(_READ_BYTES):
                return
    except OSError:
        return
