"""Run the plan, show how far it is, and write what came of it: figures, tables, pictures, and the goals.

    python -m benchmarks.compare [--long] [--out DIR] [--folder DIR] [--only WORD …] [--peers WORD …] [--repeats N]

in an environment that has the peers (`python3 -m benchmarks` makes one). Everything is written as it comes, so that a
run which was interrupted keeps what it has; it is marked as unfinished. With ``--render FILE`` nothing is measured: the
tables and pictures of an older run are made anew.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import re
import shlex
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks import goals, imports, lab, machine, model, pairs, pictures, tables
from benchmarks.case import Case, Outcome, Run
from benchmarks.markup import NOTHING, TIMES, head, line
from benchmarks.peers import PEERS, peer
from benchmarks.peers.peer import Peer
from benchmarks.plan import REPEATS, SCENARIOS, Form, Step, able, chosen, estimate, has, plan, steps
from benchmarks.progress import Progress, clock, tell
from benchmarks.results import Results, alone

OUT = Path(".benchmarks", "results")
INTERPRETERS: dict[Form, int] = {"short": 7, "long": 31}
PAIRS: dict[Form, float] = {"short": 12.0, "long": 90.0}  # seconds that the pairs and the imports take
GOALS, MACHINE, IN_TURN, WHO, MODEL = "goals", "machine", "pairs", "peers", "model"
SAVED = 20.0  # seconds between two savings: each keeps the disk busy
INTERRUPTED = 130


# -- what is to be done -----------------------------------------------------------------------------------------------


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--long", action="store_true", help="all of it, three times: more than half an hour")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"where results go (default: {OUT})")
    parser.add_argument(
        "--folder", type=_folder, default=".", metavar="DIR", help="the disk that is meant (default: here)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only scenarios with such a word")
    parser.add_argument("--peers", nargs="+", default=[], metavar="WORD", help="only peers with such a word")
    parser.add_argument("--repeats", type=_positive, metavar="N", help="how often all of it is done")
    parser.add_argument(
        "--list", action="store_true", help="show the cases and the time they take, and measure nothing"
    )
    parser.add_argument(
        "--render", type=_file, metavar="FILE", help="make tables and pictures of an older results.json"
    )
    parser.add_argument("--insert", type=_file, metavar="FILE", help="put the tables into this page, between its marks")
    return parser.parse_args(given)


def command(asked: argparse.Namespace) -> str:
    """Write the command that measures the same, wherever its files lie."""
    parts = ["python3", "-m", "benchmarks", *(["--long"] if asked.long else [])]
    for name in ("only", "peers"):
        parts += [f"--{name}", *getattr(asked, name)] if getattr(asked, name) else []
    parts += ["--repeats", str(asked.repeats)] if asked.repeats else []
    return shlex.join(parts)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _folder(text: str) -> Path:
    if not os.access(text, os.W_OK) or not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder that can be written to")
    return Path(text)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def selection(form: Form, only: Sequence[str], names: Sequence[str]) -> tuple[list[Case], list[str]]:
    """Give the cases that were asked for and can be run here, and notes about what is left out."""
    kinds: dict[str, type[Peer]] = {}
    notes: list[str] = []
    cases = chosen(plan(form), only, names)
    for name in dict.fromkeys(case.peer for case in cases):
        try:
            kinds[name] = peer(name)
        except ImportError as error:
            notes.append(f"{name} is left out: {error}")
    return [case for case in cases if case.peer in kinds and able(case, kinds[case.peer])], notes


def about(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Tell of the peers what stands in the results."""
    kinds = {name: peer(name) for name in names}
    return {
        name: {
            "package": kind.package,
            "version": _version(kind.package),
            "source": kind.source,
            "kind": kind.kind,
            "remark": kind.remark,
        }
        for name, kind in kinds.items()
    }


def _version(package: str) -> str:
    if package == "sqlite3":
        return f"SQLite {sqlite3.sqlite_version}"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# -- doing it ---------------------------------------------------------------------------------------------------------


def measure(results: Results, cases: Sequence[Case], repeats: int, folder: Path, out: Path, *, whole: bool) -> None:
    """Run all of it, and save what there is now and then; ``whole``: with the pairs and the imports."""
    form: Form = "long" if results.form == "long" else "short"
    every = list(steps(cases, repeats))
    progress = Progress(every, PAIRS[form] if whole else 0.0)
    try:
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safedb-benchmarks-", dir=folder)))
            here = machine.describe(place)
            results.machine = asdict(here)
            url, every = _server(stack, results, every, progress)
            progress.expect(every)
            saved = time.monotonic()
            for step in every:
                with progress.case(step.case):
                    results.runs.append(Run(step.case, step.repeat, _run(step, place, url)))
                if time.monotonic() > saved + SAVED:
                    results.save(out)
                    saved = time.monotonic()
            if whole:
                for pair in pairs.measure(place, pairs.EFFORTS[form], progress.say):
                    results.pairs.append(pair)
                progress.say("imports")
                times, modules, unwanted = imports.cost(place, INTERPRETERS[form])
                results.imports = {"seconds": times, "modules": modules, "unwanted": unwanted}
            results.machine = asdict(replace(here, after=machine.flush_time(place)))
        results.finished = True
    finally:
        results.save(out)
        progress.end()


def _server(stack: ExitStack, results: Results, every: list[Step], progress: Progress) -> tuple[str, list[Step]]:
    """Start a server if one is needed; where there is none, its cases are left out, and that is told."""
    if all(step.case.dialect == "sqlite" for step in every):
        return "", every
    progress.say("starting PostgreSQL")
    from benchmarks import pgsides

    try:
        url = stack.enter_context(pgsides.serving(None))
    except (ImportError, RuntimeError) as error:
        results.notes.append(f"PostgreSQL is left out: {str(error).partition(chr(10))[0].removesuffix(' Tried:')}")
        return "", [step for step in every if step.case.dialect == "sqlite"]
    results.notes.append(pgsides.server(url))
    return url, every


def _run(step: Step, place: Path, url: str) -> Outcome:
    try:
        return lab.run(step.case, place, url=url)
    except Exception as error:  # one case must not cost all the others
        return Outcome(failed=f"{type(error).__name__}: {error}")


# -- what came of it --------------------------------------------------------------------------------------------------


def sections(results: Results) -> dict[str, str]:
    """Give the tables by name."""
    about = machine.Machine(**results.machine).lines()
    began = f"- `{results.command}`, begun {results.began}" + ("" if results.finished else ", **unfinished**")
    return {
        MACHINE: "\n".join([began, *about, *(f"- {note}" for note in results.notes)]),
        GOALS: goals.markdown(goals.rows(results)),
        WHO: _peers(results.peers),
        **({IN_TURN: pairs.markdown(results.pairs)} if results.pairs else {}),
        **({MODEL: foretold} if (foretold := model.markdown(results)) else {}),
        **tables.markdown(results.runs, results.peers),
    }


def _peers(found: Mapping[str, Mapping[str, str]]) -> str:
    rows = [
        line(
            [
                f"[{name}]({one['source']})" if "://" in one["source"] else name,
                f"{one['package']} {one['version']}",
                one["kind"],
                one["remark"] or NOTHING,
            ]
        )
        for name, one in found.items()
    ]
    return "\n".join([*head(["peer", "package", "kind", "remark"]), *rows])


def render(results: Results, out: Path) -> list[Path]:
    """Write tables and pictures; give what was written."""
    out.mkdir(parents=True, exist_ok=True)
    page = out / "tables.md"
    found = sections(results)
    page.write_text("\n\n".join(f"## {name}\n\n{text}" for name, text in found.items()) + "\n", encoding="utf-8")
    drawn = pictures.draw(results.runs, out, results.peers, results.machine["flush"])
    return [page, *drawn, *model.draw(results, out)]


def insert(page: Path, found: dict[str, str]) -> None:
    """Put each section between its marks in a page: ``<!-- NAME: begin … -->`` and ``<!-- NAME: end -->``."""
    text = page.read_text(encoding="utf-8")
    for name, section in found.items():
        marks = rf"(?<=<!-- {re.escape(name)}: begin)([^\n]*-->\n).*?(?=<!-- {re.escape(name)}: end -->)"
        text = re.sub(marks, partial(_between, section), text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def _between(section: str, mark: re.Match[str]) -> str:
    return f"{mark[1]}\n{section}\n\n"


def listing(cases: Sequence[Case], repeats: int, beyond: float) -> str:
    """Write all cases, and how long they take with the seconds that are needed ``beyond`` them."""
    seconds = sum(map(estimate, cases)) * repeats + beyond
    return "\n".join([*map(tell, cases), f"{len(cases)} cases {TIMES} {repeats}, about {clock(seconds)} minutes"])


def finish(results: Results, out: Path, page: Path | None) -> None:
    """Write and tell everything."""
    written = render(results, out)
    found = sections(results)
    if page is not None:
        insert(page, found)
    print(found[MACHINE], found[GOALS], sep="\n\n")
    print("\n".join(["", "Written:", *(f"- {path}" for path in written)]))


def main(given: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    asked = arguments(sys.argv[1:] if given is None else given)
    if asked.render is not None:
        finish(Results.load(asked.render), asked.out, asked.insert)
        return 0
    form: Form = "long" if asked.long else "short"
    repeats = asked.repeats or REPEATS[form]
    cases, notes = selection(form, asked.only, asked.peers)
    whole = not asked.peers and has(IN_TURN, asked.only)
    if asked.list:
        print("\n".join([*notes, listing(cases, repeats, PAIRS[form] if whole else 0.0)]))
        return 0
    if not cases and not whole:
        print(
            f"No case is left. Scenarios: {', '.join((*SCENARIOS, IN_TURN))}. Peers: {', '.join(PEERS)}.",
            file=sys.stderr,
        )
        return 2
    results = Results(
        form,
        datetime.now(UTC).isoformat(timespec="seconds"),
        command(asked),
        peers=about(list(dict.fromkeys(case.peer for case in cases))),
        notes=notes,
    )
    file = asked.out / "results.json"
    status = 0
    try:
        with alone(asked.out):
            logging.getLogger("safedb").setLevel(logging.ERROR)  # temporary folders are meant here
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind then either
            try:
                measure(results, cases, repeats, asked.folder, file, whole=whole)
            except KeyboardInterrupt:
                status = INTERRUPTED
                print("\nInterrupted: what there is was kept.", file=sys.stderr)
            if results.machine:
                finish(results, asked.out, asked.insert)
    except OSError as error:
        print(f"This cannot be done: {error}", file=sys.stderr)
        return 1
    print(f"- {file}")
    return status


if __name__ == "__main__":
    sys.exit(main())
