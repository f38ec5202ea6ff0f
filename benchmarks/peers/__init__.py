"""The peers, by name. Each stands in a module of its own, and is imported only where it is used."""

from __future__ import annotations

from importlib import import_module

from benchmarks.peers.peer import Peer

SAFEDB = "safedb"
PER_THREAD = "sqlite3, a connection per thread"
ONE_LOCK = "sqlite3, one lock"

# By name: the module and the class.
PEERS = {
    SAFEDB: "with_safedb:WithSafedb",
    PER_THREAD: "by_hand:PerThread",
    ONE_LOCK: "by_hand:OneLock",
    "apsw": "with_apsw:WithApsw",
    "peewee, SqliteQueueDatabase": "with_peewee:Queued",
    "peewee, pooled": "with_peewee:Pooled",
    "SQLAlchemy": "with_sqlalchemy:WithSqlalchemy",
    "sqlspec": "with_sqlspec:WithSqlspec",
    "Datasette": "with_datasette:WithDatasette",
    "diskcache": "with_diskcache:WithDiskcache",
    "litequeue": "with_litequeue:WithLitequeue",
    "sqlite3worker": "with_sqlite3worker:WithSqlite3worker",
    "safedb on PostgreSQL": "with_safedb:OnPostgres",
    "psycopg_pool by hand": "by_hand_postgres:ByHand",
    "SQLAlchemy on PostgreSQL": "with_sqlalchemy:OnPostgres",
}


def peer(name: str) -> type[Peer]:
    """Import a peer by its name; one of your own is named ``module:Class``."""
    module, _, attribute = (name if ":" in name else f"benchmarks.peers.{PEERS[name]}").partition(":")
    found: type[Peer] = getattr(import_module(module), attribute)
    return found
