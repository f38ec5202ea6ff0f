"""Lending links: psycopg_pool behind deadlines, errors of ours, and a look at each link that costs no round trip.

The pool opens, counts, queues, replaces and retires connections. What is ours is the check: a server that went away has
hung up, so something is there to read on an idle link. The pool's own check would ask the server at each checkout,
which is most of a point read's time, and what it misses (a link that breaks a moment later) has to be survived anyway:
reads are run again, and so is every write whose COMMIT was not sent.
"""

from __future__ import annotations

import math
import threading
import time
from time import monotonic

from safedb import errors
from safedb.config import ResolvedPoolConfig
from safedb.postgres.admission import Admission
from safedb.postgres.driver import psycopg_pool
from safedb.postgres.limits import GRACE
from safedb.postgres.opener import Link, Opener
from safedb.stats import PoolStats

RECONNECT = 0.2  # seconds between two tries to connect, while somebody waits; the pool's own are 1, 2, 4, …
CLOSING = 0.5  # seconds for the pool's worker to come to its end: it may be waiting for a host that never answers
MOMENT = 0.02  # seconds for the same where the deadline is over
SLOW = 0.05  # seconds from which on a try to connect is what a call has waited for
GLANCE = 0.05  # seconds between two looks at whether the server refuses us, while the database is opened


class Links:
    """Lend links to the database; safe from any thread."""

    def __init__(self, opener: Opener, config: ResolvedPoolConfig, *, name: str) -> None:
        self._opener = opener
        self._config = config
        self._name = name
        self._pool: psycopg_pool.ConnectionPool[Link] = psycopg_pool.ConnectionPool(
            "",
            connection_class=Link,
            kwargs={"opener": opener},
            min_size=config.min_size,
            max_size=config.max_size,
            max_idle=config.max_idle,
            reconnect_timeout=RECONNECT,
            reconnect_failed=self._try_again,
            num_workers=1,
            name=f"safedb {name}",
            open=False,
        )
        self._admission = Admission(config.max_size, config.max_waiting)
        self._seeking: set[int] = set()  # threads that ask the pool, by ident
        self._opened = False
        self._closed = False
        self.resting = 0.0  # until when (monotonic seconds) a replica that gave no answer is passed over

    def __repr__(self) -> str:
        return f"<Links {self._name}>"

    def lend(self, deadline: float) -> Link:
        """Lend a link, at once or by the deadline; it must come back by `give_back`, whatever has become of it."""
        admission = self._admission
        if not (admitted := admission.enter(deadline)):
            raise self._not_admitted(admitted)
        try:
            return self._live(deadline)
        except BaseException:
            admission.leave()
            raise

    def _live(self, deadline: float) -> Link:
        """Get a link from the pool whose server has not hung up."""
        while True:
            link = self._get(deadline)
            try:
                link.until = deadline + GRACE
                if link.is_alive():
                    return link
            except BaseException:  # an interrupt: nobody has the link yet, so nobody else would bring it back
                link.close()
                self._pool.putconn(link)
                raise
            link.close()
            self._pool.putconn(link)

    def _get(self, deadline: float) -> Link:
        ident = threading.get_ident()
        self._seeking.add(ident)
        try:
            while True:
                try:
                    return self._pool.getconn(deadline - monotonic())
                except psycopg_pool.PoolClosed:
                    if not self._open():
                        break
                except psycopg_pool.PoolTimeout:
                    raise self._too_late() from None
                except BaseException as interrupt:
                    self._bring_back(interrupt)
                    raise
        finally:
            self._seeking.discard(ident)
        raise errors.DatabaseClosed(f"{self._name} is closed; connect again")

    def lend_primary(self, deadline: float) -> Link:
        """Lend a link to a server that takes writes; one that only follows another may yet be promoted."""
        while True:
            link = self.lend(deadline)
            if not link.standby or not link.is_still_standby():
                return link
            self.retire(link)
            if monotonic() + RECONNECT >= deadline:
                raise errors.OperationalError(
                    f"{self._name} only follows another server, so it takes no writes: connect to the primary, or list "
                    "all servers in the URL (postgresql://host1,host2/name), so that the primary is found",
                    retryable=True,
                )
            time.sleep(RECONNECT)

    def give_back(self, link: Link) -> None:
        """Take a link back; a broken one is replaced."""
        link.until = math.inf
        try:
            self._pool.putconn(link)
        finally:
            self._admission.leave()

    def discard(self, link: Link) -> None:
        """Close a link that must not be used again, and let it be replaced."""
        link.close()
        self.give_back(link)

    def retire(self, link: Link) -> None:
        """Take a sound link back for the last time: the pool closes it as one past its age, without a warning."""
        link._expire_at = 0.0
        self.give_back(link)

    def first(self, deadline: float) -> Link:
        """Lend the first link. A server that refuses us is told at once; one that does not answer is awaited."""
        self._opener.asking = True
        try:
            while True:
                try:
                    return self.lend(min(deadline, monotonic() + GLANCE))
                except (errors.PoolTimeout, errors.ConnectionLost):
                    failure = self._opener.failure
                    if monotonic() >= deadline:
                        raise
                    if failure is not None and not isinstance(failure, errors.ConnectionLost):
                        break
        finally:
            self._opener.asking = False
        raise failure

    def stats(self) -> PoolStats:
        """Show the pool at this moment."""
        if not self._opened or self._closed:  # a closed pool counts what it had as lent
            return PoolStats(max_size=self._config.max_size)
        found = self._pool.get_stats()
        size = found["pool_size"]
        return PoolStats(
            size=size,
            in_use=max(0, size - found["pool_available"]),
            waiting=self._admission.waiting,
            waited=self._admission.waited,
            max_size=found["pool_max"],
        )

    def close(self, within: float = CLOSING) -> None:
        """Close the pool; links that are lent are closed when they come back. Idempotent."""
        self._closed = True
        self._pool.close(min(CLOSING, max(within, MOMENT)))

    # -- while nothing is to be had ---------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Open the pool at first need; tell whether it is open."""
        if not self._closed:
            self._pool.open()
            self._opened = True
        return not self._closed

    def _not_admitted(self, admitted: bool | None) -> errors.Error:
        if admitted is None:
            return errors.QueueFull(
                f"{self._config.max_waiting} calls waited for a connection to {self._name} until the deadline; call "
                "from fewer threads, or raise the timeout or max_waiting"
            )
        return errors.PoolTimeout(
            f"all {self._config.max_size} connections to {self._name} were in use until the deadline; finish "
            "transactions and snapshots sooner, call from fewer threads, or raise max_size in PoolConfig"
        )

    def _too_late(self) -> errors.Error:
        failure, began = self._opener.failure, self._opener.trying
        if failure is not None:
            return errors.ConnectionLost(f"{failure}; it was tried again until the deadline")
        if began is not None and monotonic() - began > SLOW:
            return errors.ConnectionLost(
                f"cannot connect to {self._name}: no answer came for {monotonic() - began:.1f} s, until the deadline"
            )
        return errors.PoolTimeout(
            f"the deadline passed before a connection to {self._name} had been opened: raise the timeout, or keep some "
            "open with min_size in PoolConfig"
        )

    def _bring_back(self, interrupt: BaseException) -> None:
        """Give up a place in the pool's own queue that an interrupt has left behind.

        The pool forgets it there, and would hand it a connection that nobody ever brings back. Only the interrupt
        knows it: it is a variable of the frame that it came through.
        """
        trace = interrupt.__traceback__
        while trace is not None:
            place = trace.tb_frame.f_locals.get("pos")
            if trace.tb_frame.f_code.co_name == "_getconn_unchecked" and place is not None:
                if not place.fail(psycopg_pool.PoolTimeout()) and place.conn is not None:
                    place.conn._pool = self._pool  # as if it had been lent
                    self._pool.putconn(place.conn)
                return
            trace = trace.tb_next

    def _try_again(self, pool: psycopg_pool.ConnectionPool[Link]) -> None:
        """Go on connecting as long as somebody waits; in the pool's worker."""
        time.sleep(RECONNECT / 2)
        if not pool.closed and self._seeking:
            pool.check()
