"""Opening prepares what the first statement of every thread needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support import Crew

import safedb
from safedb import lexer

THREADS = 16


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Forget what reads SQL, as a new process does not have it yet."""
    lexer._pattern.cache_clear()
    yield
    lexer._pattern.cache_clear()


@pytest.mark.usefixtures("nothing_compiled")
def test_the_first_statements_of_many_threads_compile_nothing(
    connect: Callable[..., safedb.Database], crew: Crew
) -> None:
    """Sixteen threads that compiled the same pattern at once took 0.7 to 1.7 seconds for it, one takes 0.1.

    Written down: a handle without a schema, then sixteen threads whose first statements begin at one moment.
    """
    db = connect()
    compiled = lexer._pattern.cache_info().misses
    assert compiled == 1
    assert crew.together(THREADS, lambda number: db.execute("SELECT ?", (number,)).scalar()) == list(range(THREADS))
    assert lexer._pattern.cache_info().misses == compiled
