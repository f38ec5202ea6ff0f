"""What one setting may be: a checker of Python values, and a reader of the same value written as text.

Each kind answers two questions: ``check`` takes what code or TOML gives, ``parse`` what a URL or the environment
gives. Both return the value in its one canonical form, and raise ``ValueError`` or ``TypeError`` with a reason; whoever
asked knows where the value came from and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

_TRUE = frozenset({"1", "on", "true", "yes"})
_FALSE = frozenset({"0", "off", "false", "no"})


class Kind(Protocol):
    """Stand for one kind of setting."""

    def check(self, value: object) -> object:
        """Return the canonical form of a Python value."""
        ...

    def parse(self, text: str) -> object:
        """Return the canonical form of a value written as text."""
        ...


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or nothing when none is near."""
    import difflib  # only a mistake pays for it

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Flag:
    """Be a switch: ``True`` or ``False``; as text 1/0, on/off, true/false or yes/no."""

    def check(self, value: object) -> bool:
        """Accept a bool alone: 1 and "on" in code are more often a mistake than a wish."""
        if not isinstance(value, bool):
            raise TypeError(f"is a {type(value).__name__}; give True or False")
        return value

    def parse(self, text: str) -> bool:
        """Read the usual words, in any case."""
        word = text.lower()
        if word not in _TRUE | _FALSE:
            raise ValueError("is no switch; give true or false")
        return word in _TRUE


@dataclass(frozen=True)
class OneOf:
    """Be one of some words, in any case; the canonical form is the one written here."""

    words: tuple[str, ...]

    def check(self, value: object) -> str:
        """Return the word as it is written in ``words``."""
        listed = ", ".join(self.words)
        if not isinstance(value, str):
            raise TypeError(f"is a {type(value).__name__}; give one of {listed}")
        for word in self.words:
            if word.lower() == value.lower():
                return word
        near = suggest(value.lower(), (word.lower() for word in self.words))
        raise ValueError(f"is not one of {listed}{near}")

    def parse(self, text: str) -> str:
        """Read a word."""
        return self.check(text)


@dataclass(frozen=True)
class Whole:
    """Be a whole number between two bounds, both included."""

    low: int
    high: int

    def check(self, value: object) -> int:
        """Accept an int (no bool, no float) within the bounds."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"is a {type(value).__name__}; give a whole number")
        if not self.low <= value <= self.high:
            raise ValueError(f"is outside {self.low} to {self.high}")
        return int(value)

    def parse(self, text: str) -> int:
        """Read decimal digits with an optional sign; no blanks, no underscores, no other alphabets' digits."""
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError("is no whole number")
        return self.check(int(text))


@dataclass(frozen=True)
class PowerOfTwo(Whole):
    """Be a power of two between two bounds, both included."""

    def check(self, value: object) -> int:
        """Accept a power of two within the bounds."""
        number = super().check(value)
        if number & (number - 1):
            raise ValueError(f"is no power of two between {self.low} and {self.high}")
        return number


@dataclass(frozen=True)
class FileMode:
    """Be permission bits of a file that its owner can at least read and write; as text, octal digits."""

    def check(self, value: object) -> int:
        """Accept bits between 0o600 and 0o777 that hold 0o600."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"is a {type(value).__name__}; give permission bits such as 0o600")
        if not 0 <= value <= 0o777:
            raise ValueError(f"(octal {value:o}) is outside 0o600 to 0o777")
        if value & 0o600 != 0o600:
            raise ValueError(f"(octal {value:o}) shuts the owner out; give at least 0o600")
        return int(value)

    def parse(self, text: str) -> int:
        """Read octal digits, with or without a leading ``0`` or ``0o``, as chmod does."""
        digits = text.lower().removeprefix("0o")
        if not digits or len(digits) > 4 or set(digits) - set("01234567"):
            raise ValueError("is no octal file mode; give one such as 0600")
        return self.check(int(digits, 8))


@dataclass(frozen=True)
class Number:
    """Be a finite number above ``low`` (or equal to it, when ``closed``) and not above ``high``."""

    low: float
    high: float
    closed: bool = False

    def check(self, value: object) -> float:
        """Accept an int or a float, never a bool, NaN or an infinity."""
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"is a {type(value).__name__}; give a number")
        if not (self.low < value <= self.high or (self.closed and value == self.low)):  # NaN fails every comparison
            edge = "at least" if self.closed else "above"
            raise ValueError(f"is out of range; give a number {edge} {self.low:g} and at most {self.high:g}")
        return float(value)

    def parse(self, text: str) -> float:
        """Read what ``float()`` reads, but for blanks and underscores."""
        if not text.isascii() or "_" in text or text != text.strip():
            raise ValueError("is no number")
        try:
            number = float(text)
        except ValueError:
            raise ValueError("is no number") from None
        if not math.isfinite(number):
            raise ValueError("is no finite number")
        return self.check(number)


@dataclass(frozen=True)
class FlagOr:
    """Be a switch, or one word beside it."""

    word: str

    def check(self, value: object) -> bool | str:
        """Accept True, False or the word, in any case."""
        if isinstance(value, str) and value.lower() == self.word.lower():
            return self.word
        if isinstance(value, bool):
            return value
        raise ValueError(f"is neither True, False nor {self.word!r}")

    def parse(self, text: str) -> bool | str:
        """Read the word or a switch."""
        return self.word if text.lower() == self.word.lower() else Flag().parse(text)
