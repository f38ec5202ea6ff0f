"""The checker of histories, on histories known to be bad and to be good: each fault is found, and has its name.

A history is written as one line for each transaction: session, call and return, and what it did. ``x[a b]`` read the
list x, ``x+a`` appended to it; ``r=a@1`` read version 1 of the register r, ``r:=b@2`` wrote the next. A return of ``!``
is a failure, of ``?`` an unknown outcome; ``~`` before a session makes a weak read of it; ``final`` read all at last.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from history import Listing, Op, Outcome, Read, Recorder, Txn, Write, check, load
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability import form

LATE = 10_000


def op(text: str) -> Op:
    if found := re.fullmatch(r"(\w+)\[(.*)\]", text):
        return Listing(found[1], tuple(found[2].split(",")) if found[2] else ())
    if found := re.fullmatch(r"(\w+)\+(\w+)", text):
        return Write(found[1], found[2])
    found = re.fullmatch(r"(\w+)(:?=)(\w*)(?:@(\d+))?", text)
    assert found, text
    version = int(found[4]) if found[4] else None
    return Write(found[1], found[3], version) if found[2] == ":=" else Read(found[1], version or 0, found[3])


def parse(text: str) -> tuple[list[Txn], Txn | None]:
    txns: list[Txn] = []
    final = None
    for line in text.strip().splitlines():
        session, *rest = line.split()
        if session == "final":
            final = Txn("final", LATE, LATE + 1, [op(word) for word in rest])
            continue
        begin, end, *ops = rest
        outcome: dict[str, Outcome] = {"!": "failed", "?": "unknown"}
        returned = LATE if end in outcome else int(end)
        known = outcome.get(end, "ok")
        txns.append(Txn(session.strip("~"), int(begin), returned, list(map(op, ops)), known, session[0] == "~"))
    return txns, final


def names(text: str, **how: bool) -> set[str]:
    txns, final = parse(text)
    return {anomaly.name for anomaly in check(txns, final=final, **how)}


@dataclass
class Case:
    """Be a bad history, and what makes a good one of it: one text in the place of another."""

    name: str
    bad: str
    replaced: str
    by: str
    how: dict[str, bool] = field(default_factory=dict)

    @property
    def good(self) -> str:
        assert self.bad.count(self.replaced) == 1
        return self.bad.replace(self.replaced, self.by)


ANYHOW = {"strict": False}

CASES = {
    "lost update of a register": Case(
        "lost update", "A 0 10 r=@0 r:=a@1 \n B 1 11 r=@0 r:=b@1", "r=@0 r:=b@1", "r=a@1 r:=b@2", ANYHOW
    ),
    "lost update of a list": Case(
        "lost update", "A 0 10 x[] x+a \n B 1 11 x[] x+b \n final x[a,b]", "B 1 11 x[]", "B 1 11 x[a]", ANYHOW
    ),
    "write skew": Case(
        "write skew", "A 0 10 x[] y[] x+a \n B 1 11 x[] y[] y+b \n final x[a] y[b]", "B 1 11 x[]", "B 1 11 x[a]", ANYHOW
    ),
    "read skew": Case(
        "read skew", "A 0 10 x+a y+a \n B 1 11 x[a] y[] z+b \n final x[a] y[a] z[b]", "y[] z", "y[a] z", ANYHOW
    ),
    "a snapshot that mixes two states": Case(
        "mixed snapshot", "A 0 10 x+a y+a \n B 1 11 x[a] y[] \n final x[a] y[a]", "B 1 11 x[a]", "B 1 11 x[]", ANYHOW
    ),
    "a snapshot that mixes two versions": Case(
        "mixed snapshot", "A 0 10 r:=a@1 s:=b@1 \n B 1 11 r=a@1 s=@0 \n final r=a@1 s=b@1", "s=@0", "s=b@1", ANYHOW
    ),
    "aborted read of a list (G1a)": Case("aborted read", "A 0 ! x+a \n B 1 11 x[a]", "x[a]", "x[]", ANYHOW),
    "aborted read that is gone later": Case(
        "aborted read", "A 0 ! x+a \n B 1 11 x[a] \n C 2 12 x+b \n D 3 13 x+c \n final x[b,c]", "x[a]", "x[b]"
    ),
    "aborted read of a register (G1a)": Case(
        "aborted read", "A 0 ! r:=a \n B 1 11 r=a@1 \n C 2 12 r=@0 r:=b@1", "r=a@1", "r=b@1", ANYHOW
    ),
    "intermediate read of a list (G1b)": Case(
        "intermediate read", "A 0 10 x+a x+b \n B 1 11 x[a] \n final x[a,b]", "x[a]", "x[a,b]", ANYHOW
    ),
    "intermediate read of a register (G1b)": Case(
        "intermediate read", "A 0 10 r:=a@1 r:=b@2 \n B 1 11 r=a@1", "r=a@1", "r=@0", ANYHOW
    ),
    "circular information flow (G1c)": Case(
        "circular information flow", "A 0 10 x+a y[b] \n B 1 11 y+b x[a] \n final x[a] y[b]",
        "x+a y[b]", "x+a y[]", ANYHOW,
    ),
    "write cycle (G0)": Case(
        "write cycle", "A 0 10 x+a y+a \n B 1 11 x+b y+b \n final x[a,b] y[b,a]", "y[b,a]", "y[a,b]", ANYHOW
    ),
    "long fork": Case(
        "long fork", "A 0 10 x+a \n B 1 11 y+b \n C 2 12 x[a] y[] \n D 3 13 x[] y[b] \n final x[a] y[b]",
        "x[] y[b]", "x[a] y[b]", ANYHOW,
    ),
    "read-only anomaly": Case(
        "read-only anomaly", "A 0 5 y[] y+d \n B 1 9 x[] y[] x+w \n C 6 8 x[] y[d] \n final x[w] y[d]",
        "C 6 8 x[]", "C 6 8 x[w]", ANYHOW,
    ),
    "stale read": Case("stale read", "A 0 10 x+a \n B 20 30 x[] \n final x[a]", "B 20", "B 5"),
    "stale read of a register": Case("stale read", "A 0 10 r:=a@1 \n B 20 30 r=@0", "r=@0", "r=a@1"),
    "stale read at two removes": Case(
        "stale read", "A 0 10 x+a \n B 5 15 x[a] y+b \n C 20 30 x[a] y[] \n final x[a] y[b]", "y[] \n", "y[b] \n"
    ),
    "stale read in one session": Case("stale read", "A 0 10 x+a \n A 20 30 x[] \n final x[a]", "A 20", "B 20", ANYHOW),
    "write before its predecessor's time": Case(
        "writes against real time", "A 0 10 x+a \n B 20 30 x+b \n final x[b,a]", "B 20", "B 5"
    ),
    "write skew against real time": Case(
        "write skew against real time",
        "A 0 10 y+a \n B 2 40 y[] z+b \n C 20 30 z[] x+c \n final x[c] y[a] z[b]", "z[] x+c", "z[b] x+c",
    ),
    "future read": Case("future read", "A 0 10 x[a] \n B 20 30 x+a", "B 20", "B 9", ANYHOW),
    "future read at one remove": Case(
        "future read", "A 0 10 x[] y+a \n B 20 30 z+b \n C 5 40 z[b] x+c \n D 6 9 x[c] \n final x[c] y[a] z[b]",
        "D 6 9", "D 6 29",
    ),
    "doubled append": Case("doubled append", "A 0 10 x+a \n final x[a,a]", "x[a,a]", "x[a]", ANYHOW),
    "doubled append that is not the last": Case(
        "doubled append", "A 0 10 x+a \n B 5 15 x+b \n final x[a,b,a]", "x[a,b,a]", "x[a,b]", ANYHOW
    ),
    "lost append": Case("lost write", "A 0 10 x+a \n final x[]", "A 0 10", "A 0 ?", ANYHOW),
    "lost append to a list that others still append to": Case(
        "lost write", "A 0 10 x+a \n B 20 30 x+b \n final x[b]", "x[b]", "x[a,b]", ANYHOW
    ),
    "lost append that was seen": Case(
        "lost write", "A 0 ? x+a \n B 5 15 x[a] \n final x[]", "final x[]", "final x[a]", ANYHOW
    ),
    "lost write to a register": Case(
        "lost write", "A 0 10 r:=a@1 \n B 20 30 r:=b@2 \n final r=a@1", "r=a@1", "r=b@2", ANYHOW
    ),
    "half of an unknown one is there": Case(
        "half there", "A 0 ? x+a y+a \n final x[a] y[]", "x[a] y[]", "x[] y[]", ANYHOW
    ),
    "half of an unknown one is there, in registers": Case(
        "half there", "A 0 ? r:=a s:=b \n final r=a@1 s=@0", "s=@0", "s=b@1", ANYHOW
    ),
    "half of an unknown one was seen, and never the other": Case(
        "mixed snapshot", "A 0 ? x+a y+a \n B 5 15 x[a] y[]", "x[a] y[]", "x[] y[]", ANYHOW
    ),
    "incompatible orders": Case(
        "incompatible orders", "A 0 10 x+a \n B 0 10 x+b \n C 0 10 x[b] \n final x[a,b]", "x[b]", "x[a]", ANYHOW
    ),
    "an own append that is not seen": Case("own writes not seen", "A 0 10 x+a x[] \n final x[a]", "x[] \n", "x[a] \n"),
    "an own append that is not seen, though the list was read": Case(
        "own writes not seen", "A 0 10 x[] x+a x[] \n final x[a]", "a x[]", "a x[a]"
    ),
    "a read that does not repeat": Case(
        "own writes not seen", "A 0 10 x[] x[a] \n B 0 10 x+a", "x[] x[a]", "x[a] x[a]", ANYHOW
    ),
    "an own version that is not seen": Case("own writes not seen", "A 0 10 r:=a@1 r=@0", "r=@0", "r=a@1", ANYHOW),
    "invented value": Case("invented value", "A 0 10 x+a \n final x[a,b]", "x[a,b]", "x[a]", ANYHOW),
    "invented value that is gone later": Case(
        "invented value", "A 0 10 x+a \n B 0 10 x+b \n C 0 9 x[c] \n final x[a,b]", "x[c]", "x[a]", ANYHOW
    ),
    "a value before the first": Case("invented value", "A 0 10 r=z@0 \n final r=@0", "r=z@0", "r=@0", ANYHOW),
    "appends of one the other way round": Case(
        "disordered writes", "A 0 10 x+a x+b \n final x[b,a]", "x[b,a]", "x[a,b]", ANYHOW
    ),
    "versions of one the other way round": Case(
        "disordered writes", "A 0 10 r:=a@2 r:=b@1", "r:=a@2 r:=b@1", "r:=a@1 r:=b@2", ANYHOW
    ),
    "a version that nobody wrote": Case(
        "phantom write", "A 0 10 r:=a@1 \n C 20 30 r:=c@3 \n final r=c@3", "c@3 \n final r=c@3", "c@2 \n final r=c@2",
        ANYHOW,
    ),
    "a failed write that stayed until it was overwritten": Case(
        "phantom write", "A 0 10 r:=a@1 \n B 12 ! r:=b \n C 20 30 r:=c@3 \n final r=c@3", "B 12 !", "B 12 ?", ANYHOW
    ),
    "a write applied twice": Case(
        "phantom write", "A 0 10 r=@0 r:=a@2 \n final r=a@2", "a@2 \n final r=a@2", "a@1 \n final r=a@1", ANYHOW
    ),
    "an unknown write applied twice": Case("phantom write", "A 0 ? r:=a \n final r=a@2", "a@2", "a@1", ANYHOW),
    "an unknown write is no two": Case(
        "phantom write", "A 0 ? r:=a \n B 20 30 r:=b@3 \n final r=b@3", "A 0 ? r:=a", "A 0 ? r:=a \n C 0 ? r:=c", ANYHOW
    ),
    "a version from before the call of the only one that is unknown": Case(
        "phantom write", "A 25 ? r:=a \n B 0 10 r:=b@2 \n C 20 30 r:=c@3 \n final r=c@3", "A 25", "A 5", ANYHOW
    ),
    "two versions, and one from before the call of the second that is unknown": Case(
        "phantom write", "A 0 ? r:=a \n B 25 ? r:=b \n C 10 20 r:=c@3 \n final r=c@3", "B 25", "B 15", ANYHOW
    ),
    "no version of an unknown one of which another half is not there": Case(
        "phantom write", "A 0 ? r:=a x+a \n B 10 20 r:=b@2 \n final r=b@2 x[]", "x[]", "x[a]", ANYHOW
    ),
    "one gap for two acknowledged writes": Case(
        "lost write", "A 0 10 r:=a \n B 0 10 r:=b \n C 20 30 r:=c@2 \n final r=c@2", "B 0 10", "B 0 ?", ANYHOW
    ),
    "lost update of what nobody saw": Case(
        "lost update", "A 0 10 r=@0 r:=a@2 \n B 0 ? r:=b \n final r=a@2", "r=@0", "r=b@1", ANYHOW
    ),
    "stale read behind what nobody saw": Case(
        "stale read", "A 0 10 x+a \n B 20 ? r:=b \n C 5 40 x[] r:=c@2 \n final x[a] r=c@2", "B 20", "B 8"
    ),
    "stale weak read": Case("stale read", "A 0 10 x+a \n ~B 20 30 x[] \n final x[a]", "~B 20", "~B 5", ANYHOW),
    "weak reads that disagree": Case(
        "long fork", "A 0 10 x+a \n B 1 11 y+b \n ~C 2 12 x[a] y[] \n ~D 3 13 x[] y[b] \n final x[a] y[b]",
        "x[] y[b]", "x[a] y[b]", ANYHOW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_bad_history_is_told_by_its_name_and_its_good_twin_passes(case: Case) -> None:
    assert names(case.bad, **case.how) == {case.name}
    assert names(case.good, **case.how) == set()
    assert case.name in names(case.bad)  # what is asked for in vain without real time is so with it


@pytest.mark.parametrize(
    "name",
    ["stale read", "stale read of a register", "stale read at two removes", "write before its predecessor's time",
     "write skew against real time", "future read at one remove"],
)  # fmt: skip
def test_what_only_real_time_forbids_is_serialisable(name: str) -> None:
    assert names(CASES[name].bad, strict=True)
    assert not names(CASES[name].bad, strict=False)


def test_a_weak_read_may_show_the_read_only_anomaly() -> None:
    """PostgreSQL's ordinary snapshots do: that is documented, and not what is looked for."""
    strong = CASES["read-only anomaly"].bad
    assert names(strong.replace("C 6", "~C 6"), strict=False) == set()


def test_a_cycle_is_told_in_words() -> None:
    """The report names the transactions, the edges, and the keys."""
    txns, final = parse(CASES["stale read at two removes"].bad)
    [anomaly] = check(txns, final=final)
    assert str(anomaly) == (
        "stale read: \n"
        "  <C at 20 to 30: x=[a] y=[]> read the y that was overwritten by\n"
        "  <B at 5 to 15: x=[a] y:=b> had returned before the call of <C at 20 to 30: x=[a] y=[]>"
    )


def test_a_version_that_nobody_saw_may_be_that_of_an_unknown_write() -> None:
    """A killed process cannot say which version it wrote: a hole in the versions is no half of anything."""
    assert names("A 0 ? r:=a s:=b \n B 10 20 r:=c@2 \n final r=c@2 s=b@1") == set()
    assert names("A 0 ? r:=a s:=b \n B 10 20 r:=c@1 \n final r=c@1 s=b@1") == {"half there"}


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    """A torn last line, and a call without a return, are what a kill leaves."""
    path = tmp_path / "7"
    recorder = Recorder(path)
    recorder.begin([Write("x", "a")])
    recorder.end("ok", [Listing("x", ("b",)), Read("r", 0, ""), Write("x", "a")], undone=[Write("x", "u")])
    recorder.begin()
    recorder.end("ok", [Read("r", 1, "c")], weak=True)
    recorder.begin([Write("x", "d")])
    recorder.end("failed", fixed=123)
    recorder.begin([Write("x", "e")])
    recorder.close()
    with path.open("ab") as file:
        file.write(b'[123, "ok", [["W"')
    first, undone, weak, failed, unknown = load(path)
    assert first.ops == [Listing("x", ("b",)), Read("r", 0, ""), Write("x", "a")]
    assert (undone.ops, undone.outcome) == ([Write("x", "u")], "failed")
    assert (weak.ops, weak.outcome, weak.weak) == ([Read("r", 1, "c")], "ok", True)
    assert (failed.ops, failed.outcome, failed.end) == ([Write("x", "d")], "failed", 123)
    assert (unknown.ops, unknown.outcome, unknown.session) == ([Write("x", "e")], "unknown", "7")
    assert first.begin <= first.end <= weak.begin <= weak.end <= failed.begin


# -- made by chance ----------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Run transactions one after the other, and make a concurrent history of it that this order explains."""

    chance: random.Random
    lists: dict[str, list[str]] = field(default_factory=lambda: {key: [] for key in "xyz"})
    registers: dict[str, tuple[int, str]] = field(default_factory=lambda: dict.fromkeys("rs", (0, "")))
    history: list[Txn] = field(default_factory=list)
    final: Txn = field(default_factory=lambda: Txn("final", 0, 0, []))

    def run(self, count: int) -> None:
        free = dict.fromkeys("ABCDEF", 0)  # until when each session is busy
        for number in range(count):
            moment = number * 10  # when it happens, all at once; it was called before, and returns after
            session = self.chance.choice([name for name, busy in free.items() if busy < moment] or ["G"])
            begin = self.chance.randint(max(free.setdefault(session, 0) + 1, moment - 60), moment) if number else 0
            end = moment + self.chance.randint(0, 60)
            txn = self._one(number, f"{session}{number}" if session == "G" else session, begin, end)
            if session != "G":
                free[session] = end if txn.outcome != "unknown" else LATE * 10
            self.history.append(txn)
        ops: list[Op] = [Listing(key, tuple(values)) for key, values in self.lists.items()]
        ops += [Read(key, *state) for key, state in self.registers.items()]
        self.final = Txn("final", count * 10 + 100, count * 10 + 101, ops)
        self.chance.shuffle(self.history)

    def _one(self, number: int, session: str, begin: int, end: int) -> Txn:
        outcome = self.chance.choice(["ok"] * 8 + ["failed", "unknown"])
        happens = outcome == "ok" or (outcome == "unknown" and self.chance.random() < 0.5)
        before = {key: list(values) for key, values in self.lists.items()}, dict(self.registers)
        ops = [self._step(f"{number}_{step}") for step in range(self.chance.randint(1, 4))]
        if not happens:
            self.lists, self.registers = before
        if outcome != "ok":
            ops = [op._replace(version=None) if op.key in self.registers else op for op in ops if isinstance(op, Write)]
        return Txn(session, begin, end, ops, outcome)  # type: ignore[arg-type]

    def _step(self, value: str) -> Op:
        what = self.chance.randrange(4)
        if what == 0:
            key = self.chance.choice("xyz")
            self.lists[key].append(value)
            return Write(key, value)
        if what == 1:
            key = self.chance.choice("xyz")
            return Listing(key, tuple(self.lists[key]))
        key = self.chance.choice("rs")
        if what == 2:
            self.registers[key] = (self.registers[key][0] + 1, value)
            return Write(key, value, self.registers[key][0])
        return Read(key, *self.registers[key])


worlds = st.builds(World, st.randoms(use_true_random=False))
EXAMPLES = settings(deadline=None, max_examples=form(20, 1000))


@EXAMPLES
@given(worlds, st.integers(1, 60))
def test_what_happened_one_after_the_other_passes(world: World, count: int) -> None:
    world.run(count)
    assert check(world.history, final=world.final, strict=True) == []
    assert check(world.history, final=world.final, strict=False) == []
    assert check(world.history, strict=True) == []


def ok_with(world: World, kind: type[Any], least: int) -> list[tuple[Txn, int, Any]]:
    """Find what can be spoilt: acknowledged operations of a kind; of listings, those of at least so many values."""
    return [
        (txn, place, op)
        for txn in world.history
        for place, op in enumerate(txn.ops)
        if txn.outcome == "ok" and isinstance(op, kind) and (kind is not Listing or len(op.values) >= least)
    ]


def spoil(txn: Txn, place: int, op: Op) -> None:
    txn.ops = [*txn.ops[:place], op, *txn.ops[place + 1 :]]


def forget_an_append(world: World) -> bool:
    """Take an acknowledged append out of the final state."""
    acknowledged = {op.value for _, _, op in ok_with(world, Write, 0)}
    for place, op in enumerate(world.final.ops):
        if isinstance(op, Listing) and (there := acknowledged.intersection(op.values)):
            spoil(world.final, place, Listing(op.key, tuple(v for v in op.values if v != min(there))))
            return True
    return False


def swap_two_values(world: World) -> bool:
    """Let one read see two values the other way round."""
    for txn, place, (key, values) in ok_with(world, Listing, 2):
        spoil(txn, place, Listing(key, (*values[:-2], values[-1], values[-2])))
        return True
    return False


def double_a_value(world: World) -> bool:
    """Let one read see a value twice."""
    for txn, place, (key, values) in ok_with(world, Listing, 1):
        spoil(txn, place, Listing(key, (*values, values[-1])))
        return True
    return False


def show_a_failure(world: World) -> bool:
    """Let one read see what a failed transaction appended."""
    failed = [(op.key, op.value) for txn in world.history if txn.outcome == "failed" for op in txn.ops]  # type: ignore[union-attr]
    for key, value in failed:
        for txn, place, op in ok_with(world, Listing, 0):
            if op.key == key:
                spoil(txn, place, Listing(key, (*op.values, value)))
                return True
    return False


def read_late(world: World) -> bool:
    """Let one read miss an append that was acknowledged before its call."""
    ended = {
        op.value: txn.end for txn in world.history if txn.outcome == "ok" for op in txn.ops if isinstance(op, Write)
    }
    for txn, place, (key, values) in ok_with(world, Listing, 1):
        if ended.get(values[-1], txn.begin) < txn.begin:
            spoil(txn, place, Listing(key, values[:-1]))
            return True
    return False


def read_early(world: World) -> bool:
    """Let one read end before the call that appended what it saw."""
    begun = {op.value: txn.begin for txn in world.history for op in txn.ops if isinstance(op, Write)}
    for txn, _, (_, values) in ok_with(world, Listing, 1):
        if begun[values[-1]] > 0 and not any(op.value == values[-1] for op in txn.ops if isinstance(op, Write)):
            world.history[world.history.index(txn)] = replace(txn, begin=-2, end=-1)
            return True
    return False


def write_a_version_twice(world: World) -> bool:
    """Let two acknowledged writes have made the same version."""
    for txn, _, op in ok_with(world, Write, 0):
        for other, there, same in ok_with(world, Write, 0):
            if op.version is not None and op.key == same.key and op.version < same.version and txn is not other:
                spoil(other, there, same._replace(version=op.version))
                return True
    return False


def forget_a_version(world: World) -> bool:
    """Take the last acknowledged version of a register out of the final state."""
    acknowledged = {op.key for _, _, op in ok_with(world, Write, 0)}
    for place, op in enumerate(world.final.ops):
        if isinstance(op, Read) and op.key in acknowledged:
            spoil(world.final, place, Read(op.key, 0, ""))
            return True
    return False


def skip_versions(world: World) -> bool:
    """Let there be one version more than there are writes whose outcome is unknown."""
    for _, _, (key, _, first) in ok_with(world, Write, 0):
        if first is None:
            continue
        unknown = [op for txn in world.history if txn.outcome == "unknown" for op in txn.ops if op.key == key]
        for txn in [*world.history, world.final]:
            for place, op in enumerate(txn.ops):
                if not isinstance(op, Listing) and op.key == key and op.version is not None and op.version >= first:
                    spoil(txn, place, op._replace(version=op.version + len(unknown) + 1))
        return True
    return False


MUTATIONS = [
    forget_an_append, swap_two_values, double_a_value, show_a_failure, read_late, read_early, write_a_version_twice,
    forget_a_version, skip_versions,
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_what_cannot_have_happened_is_caught(mutation: Any) -> None:
    """Each mutation is certain to be bad; that it found something to spoil often enough is checked too."""
    done = []

    @EXAMPLES
    @given(worlds, st.integers(20, 60))
    def mutate(world: World, count: int) -> None:
        world.run(count)
        if mutation(world):
            done.append(count)
            assert check(world.history, final=world.final, strict=True), mutation.__doc__

    mutate()
    assert len(done) >= 5


def test_a_fault_in_a_long_history_is_found_and_told_shortly() -> None:
    """The check of many transactions is near linear in time, the search for what to say of a fault is bounded."""
    world = World(random.Random(1))
    world.run(3_000)
    assert check(world.history, final=world.final) == []
    assert read_late(world)
    told = check(world.history, final=world.final)
    assert [anomaly.name for anomaly in told] == ["stale read"]
    assert len(told[0].words) < 5_000
