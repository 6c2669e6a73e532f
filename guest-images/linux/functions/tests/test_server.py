"""The function server over a Unix socket: good lines, hostile lines, hostile peers."""

import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

import server
from connections import MAX_CONNECTIONS, Connections
from protocol import MAX_REQUEST_BYTES, Function
from workloads.parameters import InputError

SERVER = Path(server.__file__)
TIMEOUT_S = 20


class Client:
    """A connection that sends bytes and reads reply lines."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(path)
        self.replies = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> dict:
        line = self.replies.readline()
        assert line.endswith(b"\n"), f"no whole reply: {line!r}"
        return json.loads(line)

    def ask(self, line: bytes) -> dict:
        self.send(line + b"\n")
        return self.reply()

    def close(self) -> None:
        self.replies.close()
        self.socket.close()


class Serving(unittest.TestCase):
    """A server with a function that echoes, fails or gives a long result, in a thread."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/socket"
        self.connections = Connections(server.listen(self.path), Function("echo", self.handle))
        self.stopped = threading.Event()
        thread = threading.Thread(target=self.run_server)
        thread.start()
        self.addCleanup(self.connections.close)
        self.addCleanup(thread.join)
        self.addCleanup(self.stopped.set)

    def run_server(self):
        # Functions that fail leave a traceback on the console.
        with contextlib.redirect_stderr(io.StringIO()):
            while not self.stopped.is_set():
                self.connections.serve_once(0.02)

    @staticmethod
    def handle(fields):
        if not isinstance(fields, dict):
            raise InputError("no object")
        if "fail" in fields:
            raise KeyError(fields["fail"])
        if "nan" in fields:
            return {"value": float("nan")}
        if "long" in fields:
            return {"text": "x" * fields["long"]}
        return fields

    def client(self) -> Client:
        client = Client(self.path)
        self.addCleanup(client.close)
        return client

    def assert_serves(self, client):
        expected = {"ok": True, "function": "echo", "result": {"seed": 3}}
        self.assertEqual(client.ask(b'{"seed":3}'), expected)

    def test_requests_follow_each_other(self):
        client = self.client()
        for _ in range(3):
            self.assert_serves(client)
        self.assertEqual(client.ask(b' {"seed": 9} \r')["result"], {"seed": 9})

    def test_requests_that_arrive_together_are_answered_in_order(self):
        client = self.client()
        client.send(b"".join(b'{"seed":%d}\n' % seed for seed in range(100)))
        self.assertEqual([client.reply()["result"]["seed"] for _ in range(100)], list(range(100)))

    def test_a_request_may_arrive_in_pieces(self):
        client = self.client()
        for byte in b'{"seed":5}\n':
            client.send(bytes([byte]))
        self.assertEqual(client.reply()["result"], {"seed": 5})

    def test_hostile_lines_are_answered_with_an_error(self):
        client = self.client()
        lines = [b"", b" ", b"{", b"}", b"{}{}", b"nonsense", b"\xff\xfe\x00", b"\x00" * 100]
        lines += [b"NaN", b'{"a":Infinity}', b"'x'", b"[" * MAX_REQUEST_BYTES, b"9" * 60_000]
        lines += [b'{"a":' * 13_000, b"1", b"null", b"[1]", b'"text"', b'{"fail":"\\ud800"}']
        for line in lines:
            reply = client.ask(line)
            self.assertIs(reply["ok"], False, line[:40])
            self.assertEqual(reply["function"], "echo")
            self.assertTrue(reply["error"])
            self.assertLess(len(reply["error"]), 1000)
            self.assert_serves(client)

    def test_garbage_never_ends_the_server(self):
        generator = random.Random(1)
        alphabet = b'{}[]":,0123456789seed\\u -e.\xc3\xff\x00'
        client = self.client()
        for _ in range(2000):
            line = bytes(generator.choices(alphabet, k=generator.randrange(40)))
            self.assertIn("ok", client.ask(line), line)

    def test_a_function_that_fails_is_an_error_and_is_served_again(self):
        client = self.client()
        reply = client.ask(b'{"fail":"key"}')
        self.assertEqual(reply["error"], "the function failed: KeyError: 'key'")
        # A number that JSON does not have must not be sent.
        self.assertIs(client.ask(b'{"nan":1}')["ok"], False)
        self.assert_serves(client)

    def test_the_longest_line_is_served_and_a_longer_one_ends_the_connection(self):
        longest = b"{}".ljust(MAX_REQUEST_BYTES)
        client = self.client()
        self.assertIs(client.ask(longest)["ok"], True)
        reply = client.ask(longest + b" ")
        self.assertIn("longer than 65536 bytes", reply["error"])
        self.assertEqual(client.replies.readline(), b"")
        self.assert_serves(self.client())

    def test_a_line_without_end_is_refused_before_it_ends(self):
        client = self.client()
        client.send(b"x" * (MAX_REQUEST_BYTES + 1))
        self.assertIn("longer than 65536 bytes", client.reply()["error"])
        self.assertEqual(client.replies.readline(), b"")

    def test_a_half_close_still_gets_its_replies(self):
        client = self.client()
        client.send(b'{"seed":1}\n{"seed":2}\n{"seed"')
        client.socket.shutdown(socket.SHUT_WR)
        self.assertEqual([client.reply()["result"]["seed"] for _ in range(2)], [1, 2])
        self.assertEqual(client.replies.readline(), b"")

    def test_a_peer_that_reads_nothing_holds_up_no_one(self):
        silent = self.client()
        silent.send(b'{"long":3000000}\n' * 50)
        self.assert_serves(self.client())
        for _ in range(50):
            self.assertEqual(len(silent.reply()["result"]["text"]), 3_000_000)

    def test_a_peer_that_sends_ahead_takes_turns_with_the_others(self):
        ahead = self.client()
        # As much as the socket takes, on a thread, since the server reads no more than it serves.
        count = 50_000
        sender = threading.Thread(target=ahead.send, args=(b"{}\n" * count,))
        sender.start()
        self.assert_serves(self.client())
        self.assertTrue(all(ahead.reply()["ok"] for _ in range(count)))
        sender.join()

    def test_peers_that_vanish_are_forgotten(self):
        for data in (b"", b"{", b'{"long":3000000}\n'):
            client = Client(self.path)
            client.send(data)
            client.close()
        self.assert_serves(self.client())

    def test_the_connection_silent_for_longest_gives_way(self):
        clients = [self.client() for _ in range(MAX_CONNECTIONS)]
        for client in clients:
            self.assert_serves(client)
        self.assert_serves(clients[0])
        self.assert_serves(self.client())
        self.assertEqual(clients[1].replies.readline(), b"")
        self.assert_serves(clients[0])
        self.assert_serves(clients[2])


class Starting(unittest.TestCase):
    """The program."""

    def run_server(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, SERVER, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S
        )

    def test_the_function_is_taken_from_the_command_line_of_the_kernel(self):
        found = server.function_of_cmdline("quiet function=pyaes root=/dev/vda\n")
        self.assertEqual(found, "pyaes")
        self.assertEqual(server.function_of_cmdline("function=a function=b"), "b")
        with self.assertRaisesRegex(server.StartError, "add function=NAME, one of helloworld"):
            server.function_of_cmdline("quiet myfunction=x")

    def test_what_cannot_be_served_is_said(self):
        self.assertEqual(self.run_server("--function", "nothing").returncode, 2)
        with tempfile.TemporaryDirectory() as folder:
            ended = self.run_server("--function", "helloworld", "--unix", f"{folder}/no/socket")
        self.assertEqual(ended.returncode, 1)
        self.assertIn("cannot listen on", ended.stderr)

    def test_it_says_ready_and_serves_a_function(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "socket")
            program = subprocess.Popen(
                [sys.executable, SERVER, "--function", "json_serdes", "--unix", path],
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                self.assertEqual(program.stdout.readline(), "ready\n")
                client = Client(path)
                first, again = client.ask(b'{"seed":1}'), client.ask(b'{"seed":1}')
                self.assertEqual(first, again)
                self.assertEqual((first["ok"], first["function"]), (True, "json_serdes"))
                self.assertNotEqual(client.ask(b'{"seed":2}')["result"], first["result"])
                refused = client.ask(b'{"seed":1,"orders":5001}')
                self.assertIn("must be from 1 to 5000", refused["error"])
                client.close()
            finally:
                program.terminate()
                program.wait(TIMEOUT_S)
                program.stdout.close()


if __name__ == "__main__":
    unittest.main()
