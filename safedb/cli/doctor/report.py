"""What was seen: facts, what is worth knowing beside them, and what is wrong."""

from __future__ import annotations

import textwrap
from typing import TextIO

_LABEL = 20  # characters
_WIDTH = 110


class Report:
    """Collect facts, notes and findings, and print them in this order; only findings make the exit code 1."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.findings: list[str] = []

    def fact(self, label: str, text: object) -> None:
        """Add a line of the table."""
        self.facts.append((label, str(text)))

    def note(self, text: str) -> None:
        """Add what one should know, though nothing is wrong."""
        self.notes.append(text)

    def finding(self, text: str) -> None:
        """Add what is wrong."""
        self.findings.append(text)

    def show(self, output: TextIO) -> None:
        """Print everything."""
        for label, text in self.facts:
            print(f"{label:<{_LABEL}}{text}", file=output)
        for title, texts in (("Good to know", self.notes), ("Found", self.findings)):
            if texts:
                print(f"\n{title}", file=output)
            for text in texts:
                print(
                    textwrap.fill(
                        text, _WIDTH, initial_indent="- ", subsequent_indent="  ",
                        break_long_words=False, break_on_hyphens=False,
                    ),
                    file=output,
                )  # fmt: skip
        count = len(self.findings)
        print(f"\n{count} finding{'s' * (count > 1)}." if count else "\nAll is well.", file=output)
