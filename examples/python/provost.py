"""A client of Provost's daemon. Python 3.8 or newer, nothing but the standard library; docs/protocol.md is its reference.

    from provost import Provost
    with Provost.connect("/run/user/1000/provost/provost.sock") as provost:
        process = provost.start(["make", "test"], cwd="/home/me/project")
        for event in process.events():
            ...
        print(process.wait()["outcome"])

A connection that is lost is made again, and followers go on behind the last event that they have seen. Starts and writes
carry what makes it harmless to say them twice.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import socket
import subprocess
import threading
import time
import uuid
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

PROTOCOL = 1
WINDOW = 256

Json = Dict[str, Any]
Event = Dict[str, Any]
Record = Dict[str, Any]
Streams = Tuple[BinaryIO, BinaryIO, Callable[[], None]]


class ProvostError(Exception):
    """The daemon says no."""

    def __init__(self, error: Json) -> None:
        data = error.get("data") or {}
        super().__init__(error.get("message", "the daemon refuses"))
        self.kind: str = data.get("kind", "internal")
        self.hint: str = data.get("hint", "")


class ConnectionLost(Exception):
    """The connection ended. What was asked for may have been done."""


class _Connection:
    """One connection: requests out, answers and events in, by a thread that only reads."""

    def __init__(self, streams: Streams) -> None:
        self._reader, self._writer, self._close = streams
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._next = 0
        self._answers: Dict[int, "queue.SimpleQueue[Optional[Json]]"] = {}
        self._followers: Dict[int, "queue.SimpleQueue[Optional[Event]]"] = {}
        # Requests whose answer names a follower: it is known before its first event is read.
        self._following: Dict[int, "queue.SimpleQueue[Optional[Event]]"] = {}
        self.ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def call(self, method: str, params: Json, events: Optional["queue.SimpleQueue[Optional[Event]]"] = None) -> Any:
        answer: "queue.SimpleQueue[Optional[Json]]" = queue.SimpleQueue()
        with self._lock:
            if self.ended:
                raise ConnectionLost("the connection to the daemon is lost")
            self._next += 1
            number = self._next
            self._answers[number] = answer
            if events is not None:
                self._following[number] = events
        self.tell(method, params, number)
        reply = answer.get()
        if reply is None:
            raise ConnectionLost("the connection to the daemon is lost")
        if "error" in reply:
            raise ProvostError(reply["error"])
        return reply["result"]

    def tell(self, method: str, params: Json, number: Optional[int] = None) -> None:
        request: Json = {"jsonrpc": "2.0", "method": method, "params": params}
        if number is not None:
            request["id"] = number
        line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
        try:
            with self._writing:
                self._writer.write(line)
                self._writer.flush()
        except (OSError, ValueError) as error:
            # What the daemon said last is still read: why it ended the connection, for example.
            if number is None:
                raise ConnectionLost(str(error)) from error

    def forget(self, subscription: int) -> None:
        with self._lock:
            self._followers.pop(subscription, None)

    def close(self) -> None:
        self._close()

    def _read(self) -> None:
        try:
            for line in self._reader:
                self._take(json.loads(line))
        except (OSError, ValueError):
            pass
        with self._lock:
            self.ended = True
            waiting = list(self._answers.values()) + list(self._followers.values())
            self._answers.clear()
            self._followers.clear()
        for one in waiting:
            one.put(None)

    def _take(self, message: Json) -> None:
        params = message.get("params") or {}
        method = message.get("method")
        with self._lock:
            if method == "process/event":
                follower = self._followers.get(params["subscription"])
                if follower is not None:
                    follower.put(params["event"])
            elif method == "follow/ended":
                follower = self._followers.pop(params["subscription"], None)
                if follower is not None:
                    follower.put(None)
            elif method is None:
                number = message.get("id")
                if number is None:
                    # Refused before it could say anything.
                    for answer in self._answers.values():
                        answer.put(message)
                    self._answers.clear()
                    return
                events = self._following.pop(number, None)
                if events is not None and "result" in message:
                    self._followers[message["result"]["subscription"]] = events
                answer = self._answers.pop(number, None)
                if answer is not None:
                    answer.put(message)


class Provost:
    """A daemon. Methods may be called from several threads."""

    def __init__(self, open_streams: Callable[[], Streams], reconnect: float) -> None:
        self._open = open_streams
        self._reconnects = reconnect > 0
        self._patience = reconnect
        self._held: List[str] = []
        self._lock = threading.Lock()
        self._connection: Optional[_Connection] = None
        self.server: Json = {}
        self._connected()

    @classmethod
    def connect(cls, path: str, reconnect: float = 30) -> "Provost":
        """Connects to the socket of a daemon, which may take so many seconds to come back when it was replaced or died."""

        def streams() -> Streams:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(path)

            def close() -> None:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                connection.close()

            return connection.makefile("rb"), connection.makefile("wb"), close

        return cls(streams, reconnect)

    @classmethod
    def spawn(cls, provost: str = "provost") -> "Provost":
        """Runs a daemon of its own, which ends with this object, and with it everything that it runs."""

        def streams() -> Streams:
            child = subprocess.Popen([provost, "serve", "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert child.stdin is not None and child.stdout is not None

            def close() -> None:
                assert child.stdin is not None
                child.stdin.close()
                child.wait()

            return child.stdout, child.stdin, close

        return cls(streams, reconnect=0)

    def __enter__(self) -> "Provost":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. Processes without a session, and sessions that detach, go on."""
        with self._lock:
            self._reconnects = False
            connection = self._connection
        if connection is not None:
            connection.close()

    def _connected(self) -> _Connection:
        with self._lock:
            if self._connection is not None and not self._connection.ended:
                return self._connection
            if self._connection is not None and not self._reconnects:
                raise ConnectionLost("the connection to the daemon is lost")
            connection = _Connection(self._open())
            hello = {"protocol": PROTOCOL, "client": "provost.py"}
            self.server = connection.call("initialize", hello)
            if self._held:
                connection.call("session/attach", {"sessions": self._held})
            self._connection = connection
            return connection

    def _retrying(self, do: Callable[[_Connection], Any]) -> Any:
        """Does what may be done twice, over new connections where the old one is lost."""
        deadline, pause = time.monotonic() + self._patience, 0.01
        while True:
            connection = None
            try:
                connection = self._connected()
                return do(connection)
            except (ConnectionLost, OSError):
                if not self._reconnects or time.monotonic() + pause > deadline:
                    raise
                if connection is not None:
                    # It was there: the time begins anew.
                    deadline, pause = time.monotonic() + self._patience, 0.01
                time.sleep(pause)
                pause = min(2 * pause, 0.5)

    def call(self, method: str, **params: Any) -> Any:
        """Asks once. After `ConnectionLost` it may or may not have been done."""
        return self._connected().call(method, params)

    def ask(self, method: str, **params: Any) -> Any:
        """Asks for what may be done twice, again after a connection was lost."""
        return self._retrying(lambda connection: connection.call(method, params))

    def start(
        self,
        argv: Sequence[str],
        cwd: Optional[str] = None,
        *,
        policy: str = "workspace-write",
        env: Optional[Mapping[str, str]] = None,
        stdin: bool = False,
        session: Optional[str] = None,
        name: Optional[str] = None,
        labels: Optional[Mapping[str, str]] = None,
        **more: Any,
    ) -> "Process":
        """Starts a command; `more` are the other parameters of `process/start`. Never starts it twice."""
        params: Json = {"argv": list(argv), "cwd": os.path.abspath(cwd or os.getcwd()), "policy": policy, "stdin": stdin}
        optional = {"env": env and dict(env), "session": session, "name": name, "labels": labels and dict(labels)}
        params.update({key: value for key, value in {**optional, **more}.items() if value is not None})
        params["request_id"] = str(uuid.uuid4())
        return Process(self, self.ask("process/start", **params)["process"], written=0)

    def process(self, process: str) -> "Process":
        """A process by id, an unambiguous part of one, or name."""
        return Process(self, self.ask("process/inspect", process=process)["process"])

    def processes(self, **which: Any) -> List[Json]:
        """Processes, as `process/list` gives them."""
        listed: List[Json] = self.ask("process/list", **which)
        return listed

    def approvals(self, **which: Any) -> List[Json]:
        """What waits for an answer, of one `process`, of a `session` and its parts, or all of it; the oldest first."""
        waiting: List[Json] = self.ask("approval/list", **which)["approvals"]
        return waiting

    def open_session(self, **params: Any) -> str:
        """Opens a session, held by this connection and those after it; its id."""
        session: str = self.call("session/open", **params)["session"]
        self._held.append(session)
        return session


class Process:
    """One process. Nothing happens to it when this object goes away."""

    def __init__(self, provost: Provost, process: str, written: Optional[int] = None) -> None:
        self._provost = provost
        self.id = process
        # What was written in all; to be asked for where others may have written.
        self._written = written
        self._writing = threading.Lock()

    def __repr__(self) -> str:
        return f"Process({self.id!r})"

    def events(self, after_seq: int = 0, paced: bool = False) -> Iterator[Event]:
        """Events behind `after_seq`, each once, up to the terminal one. Goes on over new connections."""
        seen = after_seq
        while True:
            events: "queue.SimpleQueue[Optional[Event]]" = queue.SimpleQueue()
            params = {"process": self.id, "after_seq": seen, "paced": paced, "window": WINDOW}

            def follow(connection: _Connection) -> Tuple[_Connection, int]:
                following = connection.call("process/follow", params, events)
                return connection, following["subscription"]

            connection, subscription = self._provost._retrying(follow)
            taken = 0
            try:
                while True:
                    event = events.get()
                    if event is None:
                        break
                    seen = event["seq"]
                    yield event
                    if event["type"] == "terminal":
                        return
                    taken += 1
                    if taken % (WINDOW // 2) == 0:
                        try:
                            connection.tell("ack", {"subscription": subscription, "events": taken})
                        except ConnectionLost:
                            break
            finally:
                connection.forget(subscription)
                if not connection.ended:
                    try:
                        connection.tell("unfollow", {"subscription": subscription})
                    except ConnectionLost:
                        pass

    def read(self, after_seq: int = 0, wait: float = 0, max_bytes: Optional[int] = None) -> Tuple[List[Event], int, bool]:
        """Events that are there, where to go on, and whether the terminal one was among them."""
        params: Json = {"process": self.id, "after_seq": after_seq, "wait_ms": int(wait * 1000)}
        if max_bytes is not None:
            params["max_bytes"] = max_bytes
        answer = self._provost.ask("process/read", **params)
        return answer["events"], answer["next_seq"], answer["ended"]

    def output(self, stream: str = "stdout") -> bytes:
        """What it has written to a stream, as far as it is kept; waits until it has ended."""
        events = self.events()
        wanted = (event for event in events if event["type"] == "output" and event["stream"] == stream)
        return b"".join(base64.b64decode(event["data"]) for event in wanted)

    def write(self, data: bytes, close: bool = False) -> None:
        """Writes to its standard input, each byte once. For one writer at a time per process."""
        with self._writing:
            if self._written is None:
                self._written = self._provost.ask("process/write", process=self.id, data="")["offset"]
            params = {"data": base64.b64encode(data).decode(), "offset": self._written, "close": close}
            answer = self._provost.ask("process/write", process=self.id, **params)
            self._written = answer["offset"]

    def signal(self, signal: str, scope: str = "leader") -> bool:
        """Sends a signal; False if it had ended."""
        told: bool = self._provost.call("process/signal", process=self.id, signal=signal, scope=scope)["told"]
        return told

    def stop(self, reason: Optional[str] = None) -> bool:
        """Ends it by its stop rule; False if it had ended."""
        return self._end("process/stop", reason)

    def kill(self, reason: Optional[str] = None) -> bool:
        """Ends it at once; False if it had ended."""
        return self._end("process/kill", reason)

    def _end(self, method: str, reason: Optional[str]) -> bool:
        params = {} if reason is None else {"reason": reason}
        told: bool = self._provost.ask(method, process=self.id, **params)["told"]
        return told

    def wait(self, timeout: Optional[float] = None) -> Optional[Record]:
        """The record, when it has ended; None if the time (in seconds) ran out first."""
        params = {} if timeout is None else {"timeout_ms": int(timeout * 1000)}
        record: Optional[Record] = self._provost.ask("process/wait", process=self.id, **params)["record"]
        return record

    def decide(self, approval: int, allow: bool, scope: str = "once", by: str = "provost.py") -> bool:
        """Answers an `approval_requested` event. False if that was decided already: by somebody else, by its deadline, or by
        this very answer, where the connection was lost behind it; the `approval_decided` event says by whom."""
        params: Json = {"approval": approval, "allow": allow, "by": by}
        if allow:
            params["scope"] = scope
        try:
            self._provost.ask("approval/decide", process=self.id, **params)
        except ProvostError as error:
            if error.kind == "conflict":
                return False
            raise
        return True
