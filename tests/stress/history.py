"""Record what concurrent transactions were told, and check that one order of them explains it all.

A *history* is a list of `Txn`: when each was called and returned, what it read, what it wrote. Every value is written
at most once to its key, so a value that was read names its writer. The order of the writes to a key is known too: a
*register* carries a version number that each write counts up, and a *list*, read as a whole, is its own history.

From these follow the edges of a graph, each of which says "before" in every order that explains the history:

- ``ww``: A wrote the version that B overwrote;        - ``wr``: B read what A had written;
- ``rw``: A read the version that B overwrote;         - ``order``: A had returned when B was called.

The history is serialisable if the graph without the last has no cycle, and strictly serialisable if that with it has
none (Adya, "Weak Consistency", 1999; Kingsbury and Alvaro, "Elle", 2020). A cycle is told in words.

A transaction that failed must have left no trace. One whose outcome nobody knows may have happened, at any time since
its call, or not; if a trace of it was seen it happened, and then whole. A version that nobody saw is a trace too: it is
that of such a one, or else a write was applied twice, or one that failed was kept.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

# -- what is recorded -------------------------------------------------------------------------------------------------


class Write(NamedTuple):
    """Be a value that was written to a register, as this version of it, or appended to a list (no version).

    Of a register's write that failed, or whose outcome is unknown, no version is known either.
    """

    key: str
    value: str
    version: int | None = None


class Read(NamedTuple):
    """Be what was read of a register; version 0, an empty value, is what it was before anybody wrote."""

    key: str
    version: int
    value: str


class Listing(NamedTuple):
    """Be what was read of a list, from its beginning."""

    key: str
    values: tuple[str, ...]


Op = Write | Read | Listing
Outcome = Literal["ok", "failed", "unknown"]


@dataclass(slots=True)
class Txn:
    """Be a transaction; of one that failed, or whose outcome is unknown, ``ops`` is what it was to write, in order."""

    session: str
    begin: int
    end: int
    ops: Sequence[Op]
    outcome: Outcome = "ok"
    weak: bool = False
    """Whether it only read, and was promised one committed state, the latest, but no place in a serial order."""

    def __str__(self) -> str:
        ops = " ".join(map(_words, self.ops))
        ops = ops if len(ops) < 600 else f"{ops[:300]} ... {ops[-300:]}"
        return f"{self.session} at {self.begin} to {self.end if self.outcome == 'ok' else self.outcome}: {ops}"


def _words(op: Op) -> str:
    match op:
        case Write(key, value, version):
            return f"{key}:={value}" if version is None else f"{key}:={value}(v{version})"
        case Read(key, version, value):
            return f"{key}={value or '-'}(v{version})"
        case Listing(key, values):
            return f"{key}=[{' '.join(values)}]"


class Recorder:
    """Write one session's history into a file, each line at once: what a killed process wrote stays.

    The clock is CLOCK_MONOTONIC, which all processes of a machine share. It is read before the call, and after it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def begin(self, writes: Sequence[Write] = ()) -> None:
        """Note that a transaction is about to be called, and all that it may write."""
        self._line([time.monotonic_ns(), _pack(writes)])

    def end(
        self,
        outcome: Outcome,
        ops: Sequence[Op] = (),
        *,
        undone: Sequence[Write] = (),
        weak: bool = False,
        fixed: int | None = None,
    ) -> None:
        """Note what it was told.

        ``undone`` is what it took back itself before it committed. ``fixed`` is when a snapshot's block was entered:
        what was called after that it must not show, as if it had returned then.
        """
        self._line([fixed or time.monotonic_ns(), outcome, _pack(ops), _pack(undone), weak])

    def _line(self, parts: list[object]) -> None:
        os.write(self._file, json.dumps(parts).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def _pack(ops: Iterable[Op]) -> list[list[object]]:
    return [[type(op).__name__[0], *op] for op in ops]


def _unpack(packed: list[list[Any]]) -> list[Op]:
    kinds: dict[str, Callable[..., Op]] = {"W": Write, "R": Read, "L": lambda key, values: Listing(key, tuple(values))}
    return [kinds[kind](*parts) for kind, *parts in packed]


def load(path: Path) -> Iterator[Txn]:
    """Read back one session; its last transaction may lack its end, and the last line its own."""
    writes: list[Op] | None = None
    begin = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        parts = json.loads(line)
        if writes is None:
            begin, writes = parts[0], _unpack(parts[1])
            continue
        end, outcome, ops, undone, weak = parts
        yield Txn(path.stem, begin, end, _unpack(ops) if outcome == "ok" else writes, outcome, weak)
        if undone:
            yield Txn(path.stem, begin, end, _unpack(undone), "failed")
        writes = None
    if writes:
        yield Txn(path.stem, begin, begin, writes, "unknown")


# -- the check --------------------------------------------------------------------------------------------------------


class Anomaly(NamedTuple):
    """Be one thing that no order of the transactions explains: its name, and what was seen."""

    name: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


def check(history: Sequence[Txn], *, final: Txn | None = None, strict: bool = True) -> list[Anomaly]:
    """Return what is wrong with a history; nothing is, if the list is empty.

    ``strict`` asks that the order agrees with real time, else only with that of each session. ``final`` read every key
    that was written, after all others had ended. `Txn.weak` ones have a check of their own, that they saw one state,
    the latest, among writes in the order of their commits.
    """
    return _Check([*history, final] if final else list(history), final, strict).run()


@dataclass(slots=True)
class _Key:
    """Be what is known of one key: its values by version (None: nobody saw it), and who read which version."""

    values: list[str | None] = field(default_factory=list)
    told: list[tuple[int, Txn]] = field(default_factory=list)  # of a register: who read or wrote which version
    readers: list[tuple[int, int]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)  # who appended what no listing shows


class _Check:
    def __init__(self, txns: list[Txn], final: Txn | None, strict: bool) -> None:
        self.txns = txns
        self.final = final
        self.strict = strict
        self.found: list[Anomaly] = []
        self.keys: defaultdict[str, _Key] = defaultdict(_Key)
        self.writer: dict[tuple[str, str], int] = {}
        for number, txn in enumerate(txns):
            for op in txn.ops:
                if isinstance(op, Write):
                    assert (op.key, op.value) not in self.writer, f"not unique, so nothing can be said: {op}"
                    self.writer[op.key, op.value] = number

    def run(self) -> list[Anomaly]:
        self._order_the_versions()
        for number, txn in enumerate(self.txns):
            if txn.outcome == "ok":
                self._read_within(number, txn)
        self._look_for_what_is_missing()
        if not self.found:  # a single value that is wrong makes cycles of its own, which say less
            self._search(weak=False)
            if any(txn.weak for txn in self.txns):
                self._search(weak=True)
        return self.found

    def _report(self, name: str, words: str) -> None:
        self.found.append(Anomaly(name, words))

    def _told(self, number: int | None) -> str:
        return "nobody" if number is None else f"<{self.txns[number]}>"

    # -- the order of versions --

    def _order_the_versions(self) -> None:
        evidence: defaultdict[str, dict[int, str]] = defaultdict(dict)
        listings: list[tuple[Txn, Listing]] = []
        for txn in self.txns:
            for op in txn.ops if txn.outcome == "ok" else ():
                match op:
                    case Listing(key, values):
                        listings.append((txn, op))
                        if len(values) > len(self.keys[key].values):
                            self.keys[key].values = list(values)
                    case Write(key, value, int(version)) | Read(key, version, value):
                        self.keys[key].told.append((version, txn))
                        if not version and value:
                            self._report("invented value", f"<{txn}> saw {key} as if nobody had written to it")
                        elif version and evidence[key].setdefault(version, value) != value:
                            self._clash(key, version, evidence[key][version], value)
        for key, known in evidence.items():
            self.keys[key].values = [known.get(version) for version in range(1, max(known) + 1)]
        for txn, (key, values) in listings:
            if tuple(self.keys[key].values[: len(values)]) != values:
                self._fork(txn, key, values)
        for key, state in self.keys.items():
            self._inspect(key, state)

    def _clash(self, key: str, version: int, one: str, other: str) -> None:
        writers = [self.writer.get((key, value)) for value in (one, other)]
        for writer in writers:
            if writer is not None and self.txns[writer].outcome == "failed":
                self._report("aborted read", f"{key} was seen as {self._told(writer)} left it, which failed")
                return
        told = " and ".join(map(self._told, writers))
        self._report("lost update", f"version {version} of {key} was written twice, by {told}")

    def _fork(self, txn: Txn, key: str, values: tuple[str, ...]) -> None:
        longest = self.keys[key].values
        for value in set(values) - set(longest):
            writer = self.writer.get((key, value))
            if writer is None or self.txns[writer].outcome == "failed":
                self._dirty(key, value, writer)
                return
        self._report("incompatible orders", f"<{txn}> saw {key} otherwise than [{' '.join(map(str, longest))}]")

    def _dirty(self, key: str, value: str, writer: int | None) -> None:
        if writer is None:
            self._report("invented value", f"nobody wrote {value} to {key}")
        else:
            self._report("aborted read", f"{value} was seen in {key}, of {self._told(writer)}, which failed")

    def _inspect(self, key: str, state: _Key) -> None:
        for value, times in Counter(state.values).items():
            if value is None:
                continue
            writer = self.writer.get((key, value))
            if writer is None or self.txns[writer].outcome == "failed":
                self._dirty(key, value, writer)
            if times > 1:
                self._report("doubled append", f"{value} is {times} times in {key}, by {self._told(writer)}")

    # -- one transaction --

    def _read_within(self, number: int, txn: Txn) -> None:
        """Check that a transaction sees what it did itself; note what it saw of others."""
        own: defaultdict[str, list[str]] = defaultdict(list)  # what it wrote to a key since it read it first
        base: dict[str, tuple[str, ...]] = {}  # a list, as it found it
        current: dict[str, str] = {}  # a register, as it knows it
        for op in txn.ops:
            match op:
                case Write(key, value, _):
                    own[key].append(value)
                    current[key] = value
                case Listing(key, values):
                    mine = tuple(own[key])
                    found = base.setdefault(key, values[: max(len(values) - len(mine), 0)])
                    if found + mine != values:
                        self._report("own writes not seen", f"<{txn}> reads {_words(op)}")
                    self._see(number, txn, key, len(found))
                case Read(key, version, value):
                    if current.setdefault(key, value) != value:
                        self._report("own writes not seen", f"<{txn}> reads {_words(op)}")
                    if not own[key]:
                        self._see(number, txn, key, version)

    def _see(self, number: int, txn: Txn, key: str, version: int) -> None:
        state = self.keys[key]
        state.readers.append((number, version))
        writer = self._writer_of(key, version)
        if writer is None or writer == number:
            return
        if self.txns[writer].begin > txn.end:
            self._report("future read", f"<{txn}> saw in {key} what {self._told(writer)} was yet to write")
        if self._writer_of(key, version + 1) == writer:
            self._report("intermediate read", f"<{txn}> saw {key} in the midst of {self._told(writer)}")

    def _writer_of(self, key: str, version: int) -> int | None:
        values = self.keys[key].values
        value = values[version - 1] if 0 < version <= len(values) else None
        return None if value is None else self.writer.get((key, value))

    # -- what is missing --

    def _look_for_what_is_missing(self) -> None:
        shown = {
            (key, value): v for key, state in self.keys.items() for v, value in enumerate(state.values, 1) if value
        }
        happened = {self.writer[seen] for seen in shown if seen in self.writer}
        last: dict[str, int] = {}
        for op in self.final.ops if self.final else ():
            last[op.key] = len(op.values) if isinstance(op, Listing) else op.version or 0
        before: dict[tuple[str, int], int] = {}  # by key and transaction: the version of its write before
        missing: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)  # by key: what must be there
        possible: defaultdict[str, list[int]] = defaultdict(list)  # by key: who may have written to it
        for (key, value), number in self.writer.items():
            txn = self.txns[number]
            if version := shown.get((key, value)):
                if self.final and version > last.get(key, 0):
                    self._report("lost write", f"{value} was seen in {key}, and is gone: <{txn}>")
                if version < before.get((key, number), 0):
                    self._report("disordered writes", f"{value} comes too early in {key}: <{txn}>")
                before[key, number] = version
            elif txn.outcome == "ok" or (txn.outcome == "unknown" and number in happened):
                missing[key].append((value, number))
            elif txn.outcome == "unknown" and self._may_have_happened(txn, shown):
                possible[key].append(number)
        for key in sorted(self.keys.keys() | missing.keys()):
            gaps = [version for version, value in enumerate(self.keys[key].values, 1) if value is None]
            self._miss(key, missing[key], len(gaps))
            self._fill(key, gaps, [*possible[key], *(number for _, number in missing[key])])

    def _may_have_happened(self, txn: Txn, shown: Container[tuple[str, str]]) -> bool:
        """Say whether all that it was to write may be there: what the final read does not show is one of the gaps."""
        writes = (op for op in txn.ops if isinstance(op, Write))
        there = (None in self.keys[op.key].values or (op.key, op.value) in shown for op in writes)
        return self.final is None or all(there)

    def _miss(self, key: str, missing: list[tuple[str, int]], gaps: int) -> None:
        """Say what is lost: as many as there are gaps may have been overwritten before anybody saw them."""
        if self.final is None:
            self.keys[key].late = [] if gaps else [number for _, number in missing]
            return
        for value, number in missing[gaps:]:
            txn = self.txns[number]
            if txn.outcome == "ok":
                self._report("lost write", f"{value} is not in {key}, yet it was acknowledged: <{txn}>")
            else:
                self._report("half there", f"{value} is not in {key}, but another trace is there of <{txn}>")

    def _fill(self, key: str, gaps: list[int], writers: list[int]) -> None:
        """Put somebody at each version that nobody saw: each is one of these writers', or else a phantom.

        Whoever it was had been called before the first return of one who knew of that version, or of a later one.
        """
        state, begins = self.keys[key], sorted(self.txns[number].begin for number in writers)
        for version, begin in zip_longest(gaps, begins[: len(gaps)]):
            witness = min((txn for known, txn in state.told if known > version), key=lambda txn: txn.end)
            if begin is None or begin > witness.end:
                told = (
                    f"nobody can have made version {version} of {key}, which was there before the return of <{witness}>"
                )
                self._report("phantom write", told)
                return
            state.values[version - 1] = value = f"?{version}"
            self.writer[key, value] = len(self.txns)
            self.txns.append(Txn("somebody", begins[0], begins[0], [Write(key, value, version)], "unknown"))

    # -- the graph --

    def _search(self, *, weak: bool) -> None:
        """Look for a cycle: among all but the weak, or among the weak and the writes in the order of their commits.

        The second graph knows no ``rw`` but of the weak: the others' reads and commits are two moments, not one.
        """
        graph = _Graph()
        for key, state in self.keys.items():
            self._edges_of(graph, key, state, weak)
        numbers = [n for n, txn in enumerate(self.txns) if txn.outcome != "failed" and (weak or not txn.weak)]
        if weak or self.strict:
            self._real_time(graph, numbers)
        else:
            self._sessions(graph, numbers)
        cycle = graph.simplest_cycle()
        if cycle:
            edges = list(_without_chain(cycle, len(self.txns)))
            told = [f"{self._told(edge.a)} {_SAYS[edge.kind].format(edge.key)}" for edge in edges]
            self._report(self._name(edges), "\n  " + "\n  ".join(told) + f" {self._told(edges[0].a)}")

    def _edges_of(self, graph: _Graph, key: str, state: _Key, weak: bool) -> None:
        writers = [self.writer[key, value] for value in state.values if value is not None]
        for one, other in pairwise(writers):
            graph.add(one, other, "ww", key)
        for writer in state.late if writers else ():
            graph.add(writers[-1], writer, "ww", key)
        for reader, version in state.readers:
            if self.txns[reader].weak and not weak:
                continue
            source = self._writer_of(key, version)
            if source is not None:
                graph.add(source, reader, "wr", key)
            if not weak or self.txns[reader].weak:
                for writer in writers[version : version + 1] or state.late:
                    graph.add(reader, writer, "rw", key)

    def _real_time(self, graph: _Graph, numbers: list[int]) -> None:
        """Say who had returned before whom was called, through a chain of all returns: so it is not quadratic."""
        returns = sorted((self.txns[n].end, n) for n in numbers if self.txns[n].outcome == "ok")
        ends = [end for end, _ in returns]
        chain = len(self.txns)
        for link, (_, number) in enumerate(returns, chain):
            graph.add(number, link, "order")
            graph.add(link, link + 1, "order")
        for number in numbers:
            earlier = bisect_left(ends, self.txns[number].begin)
            if earlier:
                graph.add(chain + earlier - 1, number, "order")

    def _sessions(self, graph: _Graph, numbers: list[int]) -> None:
        last: dict[str, int] = {}
        for number in sorted(numbers, key=lambda n: self.txns[n].begin):
            txn = self.txns[number]
            if txn.session in last:
                graph.add(last[txn.session], number, "order")
            if txn.outcome == "ok":
                last[txn.session] = number

    def _name(self, cycle: list[_Edge]) -> str:
        kinds = [edge.kind for edge in cycle]
        against_time = "order" in kinds
        if "rw" not in kinds:
            plain = "circular information flow" if "wr" in kinds else "write cycle"
            timed = "future read" if "wr" in kinds else "writes against real time"
            return timed if against_time else plain
        if kinds.count("rw") == 1:
            if against_time:
                return "stale read"
            if "ww" in kinds and len({edge.key for edge in cycle}) == 1:
                return "lost update"
            return "read skew" if self._wrote(cycle[kinds.index("rw")].a) else "mixed snapshot"
        adjacent = [one for one, other in pairwise([*cycle, cycle[0]]) if one.kind == other.kind == "rw"]
        if not adjacent:
            name = "long fork"
        else:
            name = "write skew" if all(self._wrote(edge.a) for edge in adjacent) else "read-only anomaly"
        return f"{name} against real time" if against_time else name

    def _wrote(self, number: int) -> bool:
        return any(isinstance(op, Write) for op in self.txns[number].ops)


_SAYS = {
    "ww": "wrote the {} that was overwritten by",
    "wr": "wrote the {} that was read by",
    "rw": "read the {} that was overwritten by",
    "order": "had returned before the call of",
}


class _Edge(NamedTuple):
    a: int
    b: int
    kind: str
    key: str


def _without_chain(cycle: list[_Edge], txns: int) -> Iterator[_Edge]:
    """Make one edge of each way through the chain of returns."""
    while cycle[0].a >= txns:
        cycle = [*cycle[1:], cycle[0]]
    begun = cycle[0].a
    for edge in cycle:
        if edge.b < txns:
            yield _Edge(begun, edge.b, edge.kind, edge.key)
            begun = edge.b


class _Graph:
    """Be a graph in which no way may lead back to its beginning."""

    def __init__(self) -> None:
        self._out: defaultdict[int, list[_Edge]] = defaultdict(list)

    def add(self, a: int, b: int, kind: str, key: str = "") -> None:
        if a != b:
            self._out[a].append(_Edge(a, b, kind, key))

    def simplest_cycle(self) -> list[_Edge] | None:
        """Return a cycle: of the kind that breaks most, and of those a short one."""
        if not self._knots({"ww", "wr", "rw", "order"}):
            return None
        kinds = [("ww", {"ww"}), ("wr", {"ww", "wr"}), ("rw", {"ww", "wr"}), ("rw", {"ww", "wr", "rw"})]
        for time_too in (set[str](), {"order"}):
            for first, others in kinds:
                if cycle := self._short_cycle(first, others | time_too):
                    return cycle
        raise AssertionError("a cycle has an edge that is not of time alone")

    def _short_cycle(self, first: str, others: set[str]) -> list[_Edge] | None:
        """Return a cycle of an edge of this kind and a way back; the shortest of some, in the smallest knot."""
        for knot in self._knots(others | {first}):
            tried = [edge for a in knot for edge in self._out[a] if edge.kind == first and edge.b in knot]
            ways = ((edge, self._way(edge.b, edge.a, others, knot)) for edge in tried[:50])
            cycles = [[edge, *way] for edge, way in ways if way is not None]
            if cycles:
                return min(cycles, key=lambda cycle: sum(edge.kind != "order" for edge in cycle))
        return None

    def _way(self, start: int, goal: int, kinds: set[str], knot: set[int]) -> list[_Edge] | None:
        """Find the shortest way; steps along the chain of returns cost nothing, however many there are."""
        came: dict[int, _Edge | None] = {}
        ahead: deque[tuple[int, _Edge | None]] = deque([(start, None)])
        while ahead and goal not in came:
            node, by = ahead.popleft()
            if node in came:
                continue
            came[node] = by
            for edge in self._out[node]:
                if edge.kind in kinds and edge.b in knot and edge.b not in came:
                    (ahead.appendleft if edge.kind == "order" else ahead.append)((edge.b, edge))
        if goal not in came:
            return None
        way = []
        while (step := came[goal]) is not None:
            way.append(step)
            goal = step.a
        return way[::-1]

    def _knots(self, kinds: set[str]) -> list[set[int]]:
        """Return the sets of nodes that all lead to each other, the smallest first (Tarjan, 1972, not recursive)."""
        least: dict[int, int] = {}  # by node, in the order of discovery: the first that it leads back to
        stack: dict[int, None] = {}  # what is in no set yet
        knots = []
        for root in list(self._out):
            path = [] if root in least else [self._enter(root, least, stack)]
            while path:
                node, number, edges = path[-1]
                for edge in edges:
                    if edge.kind not in kinds:
                        continue
                    if edge.b not in least:
                        path.append(self._enter(edge.b, least, stack))
                        break
                    if edge.b in stack:
                        least[node] = min(least[node], least[edge.b])
                else:
                    path.pop()
                    if path:
                        least[path[-1][0]] = min(least[path[-1][0]], least[node])
                    if least[node] == number:
                        knot = set()
                        while node in stack:
                            knot.add(stack.popitem()[0])
                        if len(knot) > 1:
                            knots.append(knot)
        return sorted(knots, key=len)

    def _enter(self, node: int, least: dict[int, int], stack: dict[int, None]) -> tuple[int, int, Iterator[_Edge]]:
        number = least[node] = len(least)
        stack[node] = None
        return node, number, iter(self._out.get(node, ()))
