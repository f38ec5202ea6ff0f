"""Check every acknowledged write against the database, when all processes are gone."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from safedb.cli.stress import target, workload
from safedb.cli.stress.source import checksum, seal
from safedb.cli.stress.tally import Ledger, WriterTally
from safedb.cli.stress.target import Evidence
from safedb.cli.stress.workload import ACCOUNTS, HOW_MANY_ACCOUNTS, JOURNAL, OPENING_BALANCE, ROWS, Outcome, Place

_EXAMPLES = 5


@dataclass(slots=True)
class Findings:
    """Be what is wrong with a database: all zeros and empty when every promise was kept.

    ``lost``: acknowledged, not there. ``doubled``: there more than once. ``damaged``: there with other content.
    ``stray``: there, and nobody wrote it. ``applied``: its writer got an error, yet it is there (not counted where
    the error said that nobody can know). ``lost_updates``: account updates overwritten by someone who had read an
    older state. ``wrong_accounts``: accounts whose balance is not what the acknowledged transfers make it.
    ``missing_money``: by how much the total of all accounts has changed, up or down.
    """

    checked: int = 0
    lost: int = 0
    doubled: int = 0
    damaged: int = 0
    stray: int = 0
    applied: int = 0
    settled: int = 0
    lost_updates: int = 0
    wrong_accounts: int = 0
    missing_money: int = 0
    integrity: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Say each violation in a few words; empty when there is none."""
        counted = {
            "acknowledged writes lost": self.lost,
            "writes found more than once": self.doubled,
            "writes found with other content": self.damaged,
            "writes found that nobody made": self.stray,
            "writes found although their writer got an error": self.applied,
            "account updates lost": self.lost_updates,
            "accounts with a wrong balance": self.wrong_accounts,
            "is what the total of all accounts is off by": abs(self.missing_money),
        }
        said = [f"{number:,} {what}" for what, number in counted.items() if number]
        return said + [f"integrity_check: {line}" for line in self.integrity[:_EXAMPLES]]

    def example(self, text: str) -> None:
        """Keep the first few findings by name."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


def verify(place: Place, writers: list[WriterTally], absent: Set[int]) -> Findings:
    """Compare the database with what the writers noted; ``absent`` are the writers that died without a word."""
    findings = Findings()
    engine = target.engine(place.dialect)
    try:
        with engine.evidence(place) as evidence:
            _check(evidence, findings, writers, absent)
    except engine.errors as error:  # a damaged database may refuse any of the questions
        findings.integrity.append(f"the {engine.words.store} cannot be read: {error}")
    return findings


def _check(evidence: Evidence, findings: Findings, writers: list[WriterTally], absent: Set[int]) -> None:
    _check_rows(evidence, findings, {tally.worker: tally.rows for tally in writers}, absent)
    moved, touched = _check_journal(evidence, findings, writers, absent)
    _check_accounts(evidence, findings, moved, touched)
    findings.integrity += evidence.integrity()


class _Attendance:
    """Tick off the writes of one kind as they are found."""

    def __init__(self, what: str, ledgers: dict[int, Ledger], absent: Set[int], findings: Findings) -> None:
        self._what, self._ledgers, self._absent, self._findings = what, ledgers, absent, findings
        self._seen = {worker: bytearray(ledger.attempts) for worker, ledger in ledgers.items()}

    def found(self, worker: int, sequence: int) -> bool:
        """Note one write found in the database; tell whether it was acknowledged."""
        seen = self._seen.get(worker)
        if seen is None or not 0 <= sequence < len(seen):
            if worker not in self._absent:
                self._findings.stray += 1
                self._findings.example(f"{self._what} {worker}/{sequence} is there, and nobody wrote it")
            return False
        if seen[sequence]:
            self._findings.doubled += 1
            self._findings.example(f"{self._what} {worker}/{sequence} is there more than once")
        seen[sequence] = 1
        failure = self._ledgers[worker].failures.get(sequence)
        if failure is Outcome.UNKNOWN:
            self._findings.settled += 1
        elif failure is not None:
            self._findings.applied += 1
            self._findings.example(f"{self._what} {worker}/{sequence} is there, although its writer got an error")
        return failure is None

    def close(self) -> None:
        """Count what was acknowledged and not found."""
        for worker, ledger in self._ledgers.items():
            self._findings.checked += ledger.acknowledged
            for sequence, seen in enumerate(self._seen[worker]):
                if not seen and sequence not in ledger.failures:
                    self._findings.lost += 1
                    self._findings.example(f"{self._what} {worker}/{sequence} was acknowledged, and is not there")


def _check_rows(evidence: Evidence, findings: Findings, ledgers: dict[int, Ledger], absent: Set[int]) -> None:
    attendance = _Attendance("row", ledgers, absent, findings)
    for worker, sequence, path, line, body, stored in evidence.ask(
        f"SELECT worker, sequence, path, line, body, seal FROM {ROWS}"  # noqa: S608
    ):
        attendance.found(worker, sequence)
        if seal(checksum(path, line, body), worker, sequence) != stored:
            findings.damaged += 1
            findings.example(f"row {worker}/{sequence} does not have the content it was written with")
    attendance.close()


def _check_journal(
    evidence: Evidence, findings: Findings, writers: list[WriterTally], absent: Set[int]
) -> tuple[list[int], list[int]]:
    """Check the transfers; return, by account, what moved and how often, by the writers' own ledgers.

    What is in the journal without having been acknowledged (a COMMIT that nobody could know about) is added: it must
    then be in the balances as well, whole or not at all.
    """
    moved = [sum(amounts) for amounts in zip([0] * HOW_MANY_ACCOUNTS, *(tally.moved for tally in writers), strict=True)]
    touched = [sum(times) for times in zip([0] * HOW_MANY_ACCOUNTS, *(tally.touched for tally in writers), strict=True)]
    attendance = _Attendance("transfer", {tally.worker: tally.transfers for tally in writers}, absent, findings)
    for worker, sequence, source, destination, amount in evidence.ask(
        f"SELECT worker, sequence, source, target, amount FROM {JOURNAL}"  # noqa: S608
    ):
        if not attendance.found(worker, sequence):
            moved[source] -= amount
            moved[destination] += amount
            touched[source] += 1
            touched[destination] += 1
    attendance.close()
    return moved, touched


def _check_accounts(evidence: Evidence, findings: Findings, moved: list[int], touched: list[int]) -> None:
    """Compare balances, and versions: each update adds one to the version it read, so a gap is a lost update."""
    accounts = list(evidence.ask(f"SELECT id, balance, version FROM {ACCOUNTS} ORDER BY id"))  # noqa: S608
    findings.missing_money = sum(balance for _, balance, _ in accounts) - workload.TOTAL
    for account, balance, version in accounts:
        expected = OPENING_BALANCE + moved[account]
        findings.lost_updates += max(touched[account] - version, 0)
        if balance != expected or version != touched[account]:
            findings.wrong_accounts += 1
            findings.example(f"account {account} holds {balance}; the acknowledged transfers make it {expected}")
