"""What stands between a real client and a real server, to break the line at a known point.

`Proxy` forwards bytes, and knows just enough of the protocol to see which statement the client is about to run: it can
cut the line before that, or after it, lose or hold back the answer, or stop forwarding altogether, as a network does.
`Pooler` lends a few sessions to many clients, another one for each transaction, as PgBouncer does in its transaction
mode, and like that it tells process numbers of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Self

from pgserver import make_url
from psycopg.conninfo import conninfo_to_dict

CANCEL, SSL, GSS = 80877102, 80877103, 80877104
"""What a client may send in place of a startup message; the last two ask for encryption."""

CUT_BEFORE = "cut before"  # the statement never arrives; both ends see the line break
CUT_AFTER = "cut after"  # it arrives, and the client's end breaks at once; the server's end stays until it is released
LOSE_ANSWER = "lose the answer"  # it is run to its end, and the line breaks in place of the answer
FREEZE = "freeze"  # it never arrives, and nobody sees anything break
HOLD = "hold"  # its answer comes when it is released

PATIENCE = 30.0


class Rule:
    """Say what is to happen, once, to the next statement that begins with ``text``."""

    def __init__(self, text: str, action: str) -> None:
        self.text = text
        self.action = action
        self.taken = False
        self.reached = threading.Event()
        self.released = threading.Event()

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE), f"nobody sent {self.text!r}"


class _Listener:
    """Accept clients on 127.0.0.1, each served in a thread; everything is closed and joined in the end."""

    def __init__(self, url: str) -> None:
        self._parts = {key: str(value) for key, value in conninfo_to_dict(url).items()}
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._start(self._accept)

    @property
    def url(self) -> str:
        """Give the URL of the same database by way of this."""
        way = {"host": "127.0.0.1", "port": str(self.port), "sslmode": "disable", "gssencmode": "disable"}
        return make_url(**{**self._parts, **way})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            sockets = tuple(self._sockets)
        for one in sockets:
            hang_up(one)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for one in sockets:
            one.close()

    def serve(self, client: socket.socket) -> None:
        raise NotImplementedError

    def _start(self, call: Callable[[], None]) -> None:
        thread = threading.Thread(target=call, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._own(client)
            self._start(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        # What breaks here breaks the line, which is what is being tested.
        with contextlib.suppress(OSError, EOFError):
            self.serve(client)
        hang_up(client)

    def _own(self, one: socket.socket) -> socket.socket:
        with self._lock:
            self._sockets.add(one)
        if self._closed:
            hang_up(one)
        return one

    def _upstream(self) -> socket.socket:
        host, port = self._parts["host"], self._parts["port"]
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return self._own(server)


class Line:
    """Be one client's line through a `Proxy`."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.statements: dict[bytes, str] = {}
        self.rule: Rule | None = None
        self.frozen = False


class Proxy(_Listener):
    """Forward between clients and one server, and break lines where a test wants it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.seen: list[str] = []  # every statement that a client sent
        self._rules: list[Rule] = []
        self._thawed = threading.Event()
        self._thawed.set()

    def when(self, text: str, action: str) -> Rule:
        """Do something to the next statement that begins with ``text``."""
        rule = Rule(text, action)
        self._rules.append(rule)
        return rule

    def count(self, text: str) -> int:
        """Count the statements sent so far in which ``text`` stands."""
        return sum(text in sql for sql in tuple(self.seen))

    def freeze(self) -> None:
        """Forward nothing more on any line, those to come included; they stay open."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def close(self) -> None:
        for rule in self._rules:
            rule.released.set()
        self._closed = True
        self._thawed.set()
        super().close()

    def serve(self, client: socket.socket) -> None:
        first = startup_of(client)
        if first is None:
            return
        self._thawed.wait()
        line = Line(client, self._upstream())
        line.server.sendall(first)
        self._start(lambda: self._answers(line))
        while True:
            kind, message = message_of(client)
            self._thawed.wait()
            sql = statement_of(line, kind, message[5:])
            if sql is not None:
                self.seen.append(sql)
                rule = self._applying(sql)
                if rule is not None:
                    if self._apply(rule, line, message):
                        continue
                    return
            if not line.frozen:
                line.server.sendall(message)

    def _applying(self, sql: str) -> Rule | None:
        with self._lock:
            for rule in self._rules:
                if not rule.taken and sql.startswith(rule.text):
                    rule.taken = True
                    return rule
        return None

    def _apply(self, rule: Rule, line: Line, message: bytes) -> bool:
        """Do what a rule says; tell whether the line goes on."""
        line.rule = rule
        if rule.action == CUT_BEFORE:
            hang_up(line.server)
            hang_up(line.client)
            rule.reached.set()
            return False
        if rule.action == FREEZE:
            line.frozen = True
            rule.reached.set()
            return True
        line.server.sendall(message)
        if rule.action == CUT_AFTER:
            hang_up(line.client)
            rule.reached.set()
            rule.released.wait()
            return False
        if rule.action == HOLD:
            rule.reached.set()
        return True

    def _answers(self, line: Line) -> None:
        """Forward what the server says."""
        with contextlib.suppress(OSError):
            while data := line.server.recv(65536):
                self._thawed.wait()
                rule = line.rule
                if rule is not None and rule.action == HOLD:
                    rule.released.wait()
                elif rule is not None and rule.action == LOSE_ANSWER:
                    hang_up(line.client)
                    hang_up(line.server)
                    rule.reached.set()
                    return
                if not line.frozen and (rule is None or rule.action != CUT_AFTER):
                    line.client.sendall(data)
        self._thawed.wait()
        if not line.frozen:
            hang_up(line.client)


class Pooler(_Listener):
    """Lend sessions to clients, for one transaction each and in turn."""

    SESSIONS = 3  # at least, so that nobody gets the same one twice in a row

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._numbers = itertools.count(1_000_000)
        self._idle: deque[socket.socket] = deque()
        self._changed = threading.Condition()

    def serve(self, client: socket.socket) -> None:
        first = startup_of(client)
        if first is None:
            return
        for _ in range(self.SESSIONS if not self._idle else 1):
            welcome = self._add(first)
        client.sendall(welcome)
        while True:
            kind, message = message_of(client)
            if kind == b"X":
                return
            server = self._take()
            try:
                self._transaction(client, server, kind, message)
            except BaseException:
                hang_up(server)
                raise
            with self._changed:
                self._idle.append(server)
                self._changed.notify()

    def _add(self, first: bytes) -> bytes:
        """Open one more session; give what it said at its start, with a process number that is not its own."""
        server = self._upstream()
        server.sendall(first)
        said = []
        while True:
            kind, message = message_of(server)
            if kind == b"K":
                message = message[:5] + struct.pack("!i", next(self._numbers)) + message[9:]
            said.append(message)
            if kind == b"Z":
                with self._changed:
                    self._idle.append(server)
                    self._changed.notify()
                return b"".join(said)

    def _take(self) -> socket.socket:
        with self._changed:
            assert self._changed.wait_for(lambda: self._idle or self._closed, PATIENCE)
            return self._idle.popleft()

    @staticmethod
    def _transaction(client: socket.socket, server: socket.socket, kind: bytes, message: bytes) -> None:
        """Forward both ways until the server says that no transaction is open and nothing more is to come."""
        server.sendall(message)
        pending = int(kind in (b"Q", b"S"))
        while True:
            ready, _, _ = select.select([client, server], [], [])
            if client in ready:
                kind, message = message_of(client)
                server.sendall(message)
                pending += kind in (b"Q", b"S")
            if server in ready:
                kind, message = message_of(server)
                client.sendall(message)
                if kind == b"Z":
                    pending -= 1
                    if not pending and message[5:] == b"I":
                        return


def hang_up(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def exactly(one: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = one.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def startup_of(client: socket.socket) -> bytes | None:
    """Read a client's first message; None for one that only asks for a cancellation, which is lost."""
    while True:
        head = exactly(client, 8)
        size, code = struct.unpack("!ii", head)
        message = head + exactly(client, size - 8)
        if code in (SSL, GSS):
            client.sendall(b"N")
        elif code == CANCEL:
            return None
        else:
            return message


def message_of(one: socket.socket) -> tuple[bytes, bytes]:
    """Read one message; give its kind, and the whole of it."""
    head = exactly(one, 5)
    return head[:1], head + exactly(one, struct.unpack("!i", head[1:])[0] - 4)


def statement_of(line: Line, kind: bytes, body: bytes) -> str | None:
    """Give the text of the statement that a message runs, None where it runs none."""
    if kind == b"Q":
        return body[:-1].decode()
    if kind == b"P":
        name, sql = body.split(b"\0")[:2]
        line.statements[name] = sql.decode()
    elif kind == b"B":
        return line.statements.get(body.split(b"\0")[1])
    return None
