"""`safedb stress` on a real server: the same job, nothing left behind, nothing else touched, no password shown."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import psycopg_pool
import pytest
from pgserver import Server, shared
from support import Crew, Worker, process_group, unmeasured, wait_until

import safedb
from safedb.cli import main
from safedb.cli.stress import lock_holder, machine, server, target
from safedb.cli.stress.by_hand_postgres import ByHand
from safedb.cli.stress.lock_holder import Held, Task
from safedb.cli.stress.phase import Phase, PhaseResult
from safedb.cli.stress.server import GivenServer
from safedb.cli.stress.source import Row, checksum, seal
from safedb.cli.stress.tally import WriterTally
from safedb.cli.stress.target import BY_HAND, SAFEDB, TargetError, choose
from safedb.cli.stress.verify import Findings, verify
from safedb.cli.stress.with_safedb import WithSafedb
from safedb.cli.stress.workload import (
    ACCOUNTS,
    JOURNAL,
    OPENING_BALANCE,
    PREFIX,
    ROWS,
    TOTAL,
    Outcome,
    Place,
    Side,
    Transfer,
)

SHORT = ("--seconds", "0.5", "--threads", "4")
SECRET = "open-sesame!"
ROW = Row("a.py", 7, "text\n", checksum("a.py", 7, "text\n"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def url() -> str:
    return shared().schema()


def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def relations(url: str) -> list[str]:
    """Name everything that is in the URL's schema, indexes and sequences included."""
    schema = "current_schema()::regnamespace"
    return [name for (name,) in ask(url, f"SELECT relname FROM pg_class WHERE relnamespace = {schema} ORDER BY 1")]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "safedb", "stress", *arguments]


def stress(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=100, env=unmeasured())


# The whole command.


def test_both_sides_run_in_several_processes_and_leave_nothing(here: Path, url: str) -> None:
    ask(url, "CREATE TABLE mine AS SELECT 42 AS x")
    done = stress(*SHORT, "--seconds", "2", url, "--processes", "2", "--json", "../x.json", "--plot", "../x.png")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((here / "../x.json").read_text())
    assert report["problems"] == []
    assert list(report["sides"]) == ["by_hand", "safedb"]
    for side in report["sides"].values():
        assert side["acknowledged_writes"] == side["findings"]["checked"] > 0
        assert side["write_latency"]["count"] == side["acknowledged_writes"]
        assert side["read_latency"]["count"] > 0
        assert side["wal_written_bytes"] > 0
        assert "largest_wal_bytes" not in side
        assert "database_is_locked" not in side["errors"]
        assert len(side["described"]) == 2
        assert side["broken"] == []
    assert report["sides"]["by_hand"]["described"][0]["connections"] == 4
    assert report["sides"]["safedb"]["findings"]["lost_updates"] == 0
    assert report["sides"]["safedb"]["wrong_totals_read"] == 0
    assert report["options"]["synchronous"] is None
    assert report["machine"]["postgresql"]
    assert "sqlite" not in report["machine"]
    for line in (
        "WAL that the server wrote meanwhile, MB",
        "deadlocks and other conflicts",
        "connections to the server",
    ):
        assert line in done.stdout
    for line in ("largest WAL", "integrity_check", "database is locked", "synchronous=", "SQLite", "file"):
        assert line not in done.stdout
    assert "acknowledged writes is in the database exactly once, and every account is right." in done.stdout
    assert (here / "../x.png").read_bytes().startswith(b"\x89PNG")
    assert relations(url) == ["mine"]
    assert ask(url, "SELECT x FROM mine") == [(42,)]
    assert list(here.iterdir()) == []


def test_the_unpleasant_cases_at_once(here: Path, url: str) -> None:
    trouble = ("--lock-holder", "0.3", "--slow-reader", "0.3", "--cpu-threads", "1")
    # Longer than elsewhere: a holder that gets the lock only when all is over holds nobody up.
    done = stress(*SHORT, "--seconds", "5", url, *trouble, "--json", "../trouble.json", "--plot", "../trouble.svg")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((here / "../trouble.json").read_text())
    for side in report["sides"].values():
        assert side["lock_holder"]["held"] >= 0.3
        assert side["write_latency"]["max"] >= 0.25
        assert side["findings"]["lost"] == side["findings"]["doubled"] == 0
        assert side["broken"] == []
    assert "another program locked the tables against writing" in done.stdout
    ElementTree.parse(here / "../trouble.svg")
    assert relations(url) == []


def test_a_lock_held_for_longer_than_the_deadline_is_no_broken_promise(
    here: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble = ("--lock-holder", "3", "--no-by-hand", "--json", "x.json")
    assert main(["stress", "--seconds", "5", "--threads", "10", f"{url}&timeout=1.5", *trouble]) == 0
    output = capsys.readouterr().out
    assert "another program held the lock for 3 s, and a call waits no longer than 1.5 s, as promised" in output
    side = json.loads((here / "x.json").read_text())["sides"]["safedb"]
    assert side["errors"]["waited_in_vain"] > 0
    assert side["errors"]["other"] == side["errors"]["commit_unknown"] == 0


def test_the_tables_can_be_kept_and_then_stand_in_the_way(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", *SHORT, url, "--keep"]) == 0
    [(schema,)] = ask(url, "SELECT current_schema()")
    said = capsys.readouterr().err
    assert "The tables safedb_stress_* are kept in postgresql://" in said
    assert f"schema {schema}" in said
    assert ask(url, f"SELECT count(*), sum(balance) FROM {ACCOUNTS}") == [(64, TOTAL)]
    kept = relations(url)
    assert main(["stress", *SHORT, url]) == 2
    assert f"drop the tables whose names begin with {PREFIX}" in capsys.readouterr().err
    assert relations(url) == kept


# Ctrl-C.


def writing(url: str, side: str) -> bool:
    """Tell whether a side's processes have begun to write; those of safedb give its name to their connections."""
    try:
        [(rows,)] = ask(url, f"SELECT count(*) FROM {ROWS}")
    except psycopg.errors.UndefinedTable:
        return False
    [(named,)] = ask(url, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'safedb'")
    return bool(rows > 20 and (named > 0) == (side == SAFEDB))


def in_group(group: int) -> list[str]:
    """Return the processes of a process group that are still there (zombies left out)."""
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,stat=,pid="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [pid for pgid, stat, pid in rows if pgid == str(group) and not stat.startswith("Z")]


@pytest.mark.parametrize(("processes", "side"), [("1", BY_HAND), ("2", SAFEDB)])
def test_ctrl_c_reports_what_there_is_and_leaves_nothing(url: str, processes: str, side: str) -> None:
    """The signal goes to the whole group, children included, as a terminal sends it."""
    seconds = "60" if side == BY_HAND else "4"
    arguments = ("--processes", processes, "--threads", "4", "--seconds", seconds, "--lock-holder", "0.2", "--json")
    with process_group(command(url, *arguments), stdout=subprocess.PIPE) as process:
        wait_until(lambda: writing(url, side), f"{side} to write", within=90)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    report = json.loads(output)
    assert report["interrupted"] is True
    assert list(report["sides"]) == (["by_hand"] if side == BY_HAND else ["by_hand", "safedb"])
    last = report["sides"][side.replace(" ", "_")]
    assert last["findings"]["checked"] > 0
    assert last["findings"]["lost"] == last["findings"]["doubled"] == 0
    assert last["broken"] == []
    assert report["problems"] == []
    assert relations(url) == []
    wait_until(lambda: in_group(process.pid) == [], "every process to end")


def test_ctrl_c_twice_gives_up_at_once_and_still_drops_the_tables(url: str) -> None:
    """The tables are locked by a process of ours then: it is killed, and dropping waits until the server knows."""
    arguments = ("--threads", "4", "--seconds", "60", "--lock-holder", "59")
    held = f"SELECT 1 FROM pg_locks WHERE mode = 'ExclusiveLock' AND granted AND relation = to_regclass('{ROWS}')"
    with process_group(command(url, *arguments), stderr=subprocess.PIPE) as process:
        wait_until(lambda: ask(url, held) == [(1,)], "the lock to be held", within=90)
        os.kill(process.pid, signal.SIGSTOP)  # both are there when it wakes up
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in {130, 143}
    assert "Interrupted twice" in errors
    assert relations(url) == []
    wait_until(lambda: in_group(process.pid) == [], "every process to end")


def test_ctrl_c_before_anything_was_measured(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(self: Phase) -> PhaseResult:
        os.kill(os.getpid(), signal.SIGINT)
        return PhaseResult(BY_HAND)

    monkeypatch.setattr(Phase, "run", pressed)
    assert main(["stress", *SHORT, url]) == 130
    assert "nothing was measured yet" in capsys.readouterr().out
    assert relations(url) == []


# What is refused, before anything is made.


def refused(*arguments: str) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, env=unmeasured())
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_only_sqlite_has_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", *SHORT, url, "--synchronous", "normal"]) == 2
    assert "--synchronous is SQLite's; on PostgreSQL the server's synchronous_commit decides" in capsys.readouterr().err
    assert main(["stress", *SHORT, f"{url}&mode=ro"]) == 2
    assert "without mode=ro" in capsys.readouterr().err
    assert relations(url) == []


def test_without_the_driver_it_is_said_what_to_install(here: Path) -> None:
    code = "import sys; sys.modules['psycopg'] = None; from safedb.cli import main; sys.exit(main(sys.argv[1:]))"
    alone = subprocess.run(
        [sys.executable, "-c", code, "stress", "postgresql://me:secret@nowhere/x"],
        capture_output=True, text=True, env=unmeasured(), check=False,
    )  # fmt: skip
    assert alone.returncode == 2
    assert "pip install 'safedb[postgres]'" in alone.stderr
    assert "secret" not in alone.stderr
    assert list(here.iterdir()) == []


def test_a_schema_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(TargetError, match="no schema of the search_path is there"):
        choose(re.sub("search_path%3D[a-z0-9_]+", "search_path%3Dnowhere", url))


def test_a_database_that_cannot_hold_every_text_is_refused() -> None:
    name = f"safedb_test_latin_{os.getpid()}"
    shared().execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        with pytest.raises(TargetError, match="stores text as SQL_ASCII"):
            choose(shared().url(name))
    finally:
        shared().execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_tables_of_another_run_are_neither_used_nor_dropped(url: str) -> None:
    first, second = choose(url), choose(url)
    first.prepare(BY_HAND, first.place(BY_HAND, None))
    with pytest.raises(TargetError, match=r"already has the table 'safedb_stress_.*drop the tables"):
        choose(url)
    for side in (BY_HAND, SAFEDB):
        with pytest.raises((psycopg.Error, safedb.Error), match="already exists"):
            second.prepare(side, second.place(side, None))
    made = relations(url)
    second.remove()
    assert relations(url) == made
    first.remove()
    first.remove()
    assert relations(url) == []


# Passwords.


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """Be a server that asks for a password."""
    with Server(tcp=True) as made:
        made.start()
        made.execute(f"CREATE ROLE ada LOGIN PASSWORD '{SECRET}'")
        made.execute("CREATE SCHEMA ada AUTHORIZATION ada")
        yield made


def test_a_password_is_nowhere_in_what_is_written(here: Path, guarded: Server) -> None:
    where = guarded.url(user="ada", password=SECRET)
    shown = ("--json", "x.json", "--plot", "x.svg", "--processes", "2")
    done = stress(*SHORT, where, *shown, "--keep")
    assert done.returncode == 0, done.stderr
    again = refused(*SHORT, where)
    written = [done.stdout, done.stderr, again, (here / "x.json").read_text(), (here / "x.svg").read_text()]
    assert json.loads(written[3])["options"]["url"].startswith("postgresql://ada:***@")
    assert "kept in postgresql://ada:***@" in done.stderr
    for text in written:
        assert SECRET not in text
        assert SECRET.replace("!", "%21") not in text
    assert refused(*SHORT, guarded.url(user="ada", password=SECRET + "no")).count(SECRET) == 0


def test_a_user_who_may_make_no_tables_is_told(guarded: Server) -> None:
    where = f"{guarded.url(user='ada', password=SECRET)}&options=-csearch_path%3Dpublic"
    with pytest.raises(TargetError, match="may not create tables in the schema 'public'") as caught:
        choose(where)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["postgresql://ada:open@sesame!@localhost/x"],
        ["postgresql://ada:open/sesame!@localhost/x"],
        ["postgresql://ada:sesame!@localhost:1/x"],
        ["postgresql://ada@localhost/x?sslmode=wrong&password=sesame!"],
        ["postgresql://ada@localhost/x?password=sesame!&sslmod=disable"],
        ["host=localhost password=sesame!"],
        ["sqlite:///x.db", "postgresql://ada:sesame!@localhost/x"],
        ["--threads", "postgresql://ada:sesame!@localhost/x"],
        ["--seed", "postgresql://ada:sesame!@localhost/x"],
        ["--synchronous", "postgresql://ada:sesame!@localhost/x"],
        ["--source", "postgresql://ada:sesame!@localhost/x"],
        ["--plot", "postgresql://ada:sesame!@localhost/x"],
        ["--plot=postgresql://ada:sesame!@localhost/x"],
        ["--json", "postgresql://ada:sesame!@localhost/x"],
        ["--seconds", "host=localhost password=sesame!"],
        ["--what=postgresql://ada:sesame!@localhost/x"],
    ],
)
def test_a_url_that_is_wrong_or_in_the_wrong_place_shows_no_password(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["stress", *SHORT, *arguments]) == 2
    output, errors = capfd.readouterr()
    assert "sesame" not in (output + errors).lower()
    assert list(here.iterdir()) == []


# The pieces.


@pytest.fixture
def place(url: str) -> Iterator[Place]:
    where = choose(url)
    assert isinstance(where, GivenServer)
    yield where.place(SAFEDB, None)
    where.remove()
    assert relations(url) == []


@pytest.fixture(params=[BY_HAND, SAFEDB])
def side(request: pytest.FixtureRequest, place: Place) -> Iterator[Side]:
    engine = target.engine("postgresql")
    engine.prepare[request.param](place)
    opened = engine.open[request.param](place)
    yield opened
    opened.close()


def test_nothing_that_is_passed_to_a_process_shows_a_password() -> None:
    shown = repr(
        Place("x", f"postgresql://ada:{SECRET}@h/x", None, "postgresql", safedb.config.Dsn(f"p://a:{SECRET}@h/"))
    )
    assert SECRET not in shown


def test_both_sides_do_the_same_to_the_tables(side: Side, place: Place) -> None:
    hands = side.hands()
    number = next(number for number in range(100) if seal(ROW.crc, 3, number) >= 2**31)  # more than INTEGER holds
    hands.insert(3, number, ROW)
    assert hands.transfer(Transfer(3, 0, 1, 60, 30))
    assert not hands.transfer(Transfer(3, 1, 1, 2, OPENING_BALANCE + 1))
    assert hands.read_row(1) == ("a.py", 7, "text\n")
    assert hands.read_row(2) is None
    assert hands.read_total() == TOTAL
    hands.close()
    url = str(place.url)
    assert ask(url, f"SELECT worker, sequence, seal FROM {ROWS}") == [(3, number, seal(ROW.crc, 3, number))]
    assert ask(url, f"SELECT worker, sequence, source, target, amount FROM {JOURNAL}") == [(3, 0, 1, 60, 30)]
    assert ask(url, f"SELECT balance, version FROM {ACCOUNTS} WHERE id IN (1, 60) ORDER BY id") == [
        (OPENING_BALANCE - 30, 1),
        (OPENING_BALANCE + 30, 1),
    ]


def test_a_reader_that_is_held_open_sees_one_state_and_lets_others_write(
    side: Side, place: Place, threads: Crew
) -> None:
    def write() -> bool:
        hands = side.hands()
        hands.insert(1, 0, ROW)
        return hands.transfer(Transfer(1, 0, 1, 2, 10))

    holds = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND backend_xmin IS NOT NULL"
    held: list[tuple[Any, ...]] = []

    def wait() -> None:
        held.extend(ask(str(place.url), holds))
        assert threads(write).result()

    side.hands().hold(wait)
    assert held[0][0] >= 1


@pytest.fixture
def threads() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.finish()


def collide(side: Side, place: Place, threads: Crew) -> Findings:
    """Let two transfers read the same balances before either writes; return what the check says afterwards."""
    tallies = [WriterTally(0), WriterTally(1)]

    def move(worker: int) -> None:
        transfer = Transfer(worker, 0, 1, 2, 10 + worker)
        assert side.hands().transfer(transfer)
        tallies[worker].transferred(transfer)
        tallies[worker].transfers.done(1_000, in_time=True)

    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE safedb_stress%'"
        f" AND pid IN (SELECT pid FROM pg_locks WHERE relation = '{ACCOUNTS}'::regclass)"
    )
    with psycopg.connect(str(place.url)) as other:
        other.execute(f"SELECT 1 FROM {ACCOUNTS} WHERE id = 1 FOR UPDATE".encode())
        workers = [threads(move, worker) for worker in range(2)]
        wait_until(lambda: ask(str(place.url), waiting) == [(2,)], "both to have read")
    for worker in workers:
        worker.result()
    return verify(place, tallies, set())


def test_by_hand_loses_an_update_and_safedb_does_not(place: Place, threads: Crew) -> None:
    engine = target.engine("postgresql")
    engine.prepare[BY_HAND](place)
    for name in (BY_HAND, SAFEDB):
        ask(str(place.url), f"UPDATE {ACCOUNTS} SET balance = {OPENING_BALANCE}, version = 0")
        ask(str(place.url), f"DELETE FROM {JOURNAL}")
        side = engine.open[name](place)
        try:
            found = collide(side, place, threads)
            told = side.describe()
        finally:
            side.close()
        if name == BY_HAND:
            assert (found.lost, found.lost_updates, found.wrong_accounts) == (0, 2, 2)
        else:
            assert found == Findings(checked=2)
            assert told["retries_serialization"] == 1


class Bench:
    """Tables, and one writer whose work is all acknowledged: three rows and two transfers."""

    def __init__(self, place: Place, side: Side) -> None:
        self.place, self.hands = place, side.hands()
        self.tally = WriterTally(4)
        for sequence in range(3):
            self.hands.insert(4, sequence, ROW)
            self.tally.rows.done(1_000, in_time=True)
        for sequence in range(2):
            transfer = Transfer(4, sequence, 1, 2, 100)
            assert self.hands.transfer(transfer)
            self.tally.transfers.done(1_000, in_time=True)
            self.tally.transferred(transfer)

    def findings_after(self, sql: str) -> Findings:
        ask(str(self.place.url), sql)
        found = verify(self.place, [self.tally], set())
        found.examples.clear()
        return found


@pytest.fixture
def bench(place: Place, side: Side) -> Bench:
    return Bench(place, side)


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT 1", Findings(checked=5)),
        (f"DELETE FROM {ROWS} WHERE sequence = 1", Findings(checked=5, lost=1)),
        (
            f"INSERT INTO {ROWS} (worker, sequence, path, line, body, seal)"
            f" SELECT worker, sequence, path, line, body, seal FROM {ROWS} WHERE sequence = 2",
            Findings(checked=5, doubled=1),
        ),
        (f"UPDATE {ROWS} SET body = 'other' WHERE sequence = 0", Findings(checked=5, damaged=1)),
        (f"DELETE FROM {JOURNAL} WHERE sequence = 0", Findings(checked=5, lost=1)),
        (
            f"UPDATE {ACCOUNTS} SET balance = balance + 1, version = version - 1 WHERE id = 2",
            Findings(checked=5, lost_updates=1, wrong_accounts=1, missing_money=1),
        ),
    ],
)
def test_each_kind_of_broken_promise_is_found(bench: Bench, sql: str, found: Findings) -> None:
    assert bench.findings_after(sql) == found


def test_tables_that_cannot_be_read_are_a_finding_and_no_crash(bench: Bench) -> None:
    found = bench.findings_after(f"ALTER TABLE {ROWS} RENAME COLUMN seal TO gone")
    assert found.integrity[0].startswith("the database cannot be read: ")
    ask(str(bench.place.url), f"ALTER TABLE {ROWS} RENAME COLUMN gone TO seal")


def failing(url: str, statement: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        ask(url, statement)
    return caught.value


def test_errors_are_judged_by_their_sqlstate(place: Place) -> None:
    hand, library, url = ByHand(place), WithSafedb(place), str(place.url)
    raised = "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{}'; END $$"
    try:
        for state, outcome in {
            "55P03": Outcome.LOCKED,
            "40001": Outcome.CONFLICT,
            "40P01": Outcome.CONFLICT,
            "23505": Outcome.OTHER,
            "53100": Outcome.OTHER,
        }.items():
            assert hand.judge(failing(url, raised.format(state))) is outcome
        assert hand.judge(failing(url, "SELECT pg_terminate_backend(pg_backend_pid())")) is Outcome.UNKNOWN
        assert hand.judge(failing("postgresql://nobody@127.0.0.1:1/x", "SELECT 1")) is Outcome.UNKNOWN
        with psycopg_pool.ConnectionPool(url, min_size=1, max_size=1, open=True) as pool, pool.connection():
            with pytest.raises(psycopg_pool.PoolTimeout) as caught, pool.connection(timeout=0.01):
                pass
            assert hand.judge(caught.value) is Outcome.LOCKED
        assert hand.judge(ValueError("x")) is Outcome.OTHER
        for error, outcome in {
            safedb.LockTimeout("x"): Outcome.LOCKED,
            safedb.PoolTimeout("x"): Outcome.LOCKED,
            safedb.SerializationFailure("x"): Outcome.CONFLICT,
            safedb.DeadlockDetected("x"): Outcome.CONFLICT,
            safedb.CommitUnknownError("x"): Outcome.UNKNOWN,
            safedb.ConnectionLost("x"): Outcome.OTHER,
        }.items():
            assert library.judge(error) is outcome
    finally:
        hand.close()
        library.close()


def hold(task: Task, *answers: bool) -> Held:
    told = iter(answers)
    return lock_holder._hold(task, lambda _seconds: next(told))


def test_the_lock_holder_keeps_writers_out_and_readers_not(place: Place, threads: Crew) -> None:
    target.engine("postgresql").prepare[BY_HAND](place)
    side = ByHand(place)
    hands = side.hands()
    wrote: list[Worker] = []

    def stopped(seconds: float) -> bool:
        if seconds == 0.0:
            return False
        if not wrote:
            wrote.append(threads(hands.insert, 1, 0, ROW))
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
            wait_until(lambda: bool(ask(str(place.url), waiting)), "the writer to wait")
            assert hands.read_total() == TOTAL
        return wrote[0].running is False

    held = lock_holder._hold(Task(place, 0.0, 0.1), stopped)
    assert held.held >= 0.1
    wrote[0].result()
    side.close()


def test_the_lock_holder_gives_up_trying_when_told(place: Place) -> None:
    target.engine("postgresql").prepare[BY_HAND](place)
    with psycopg.connect(str(place.url)) as other:
        other.execute(f"INSERT INTO {JOURNAL} VALUES (1, 1, 1, 1, 1, 1)".encode())
        assert hold(Task(place, 0, 60), False, False, True).held == 0
    ours, theirs = Pipe()
    before = signal.getsignal(signal.SIGINT)
    with ours, theirs:
        ours.send("go")
        lock_holder.main(Task(place, 0.01, 0.1), theirs)
        assert ours.recv() == ("ready",)
        word, held = ours.recv()
    signal.signal(signal.SIGINT, before)
    assert word == "done"
    assert 0.1 <= held.held < 30


def test_a_server_that_does_not_say_how_much_it_writes_is_not_shown_as_writing_nothing(place: Place) -> None:
    watch = server.WalWritten(place)
    watch._begun = None
    watch.look()
    assert watch.result() == {}
    gone = Place("x", None, None, "postgresql", safedb.config.Dsn("postgresql://nobody@127.0.0.1:1/x"))
    assert server.WalWritten(gone).result() == {}
    with pytest.raises(TargetError, match="names no server"):
        server.dsn_of(Place("x", None, None))


def test_what_makes_the_numbers_worth_less_is_said() -> None:
    fast = machine.Server("18.1", "3.3.9", "3.3.3", 1e-4, "off", "off")
    assert [note.partition(" ")[0] for note in fast.notes] == ["fsync", "synchronous_commit"]
    assert machine.Server("18.1", "3.3.9", "3.3.3", 1e-4, "on", "on").notes == []
