"""Which database is meant: URLs, paths and the environment, read strictly and shown without passwords."""

# pathlib costs milliseconds of import, and drops trailing slashes.
# ruff: noqa: PTH109, PTH117, PTH118
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from safedb.errors import ConfigError
from safedb.options import PoolConfig, Pragmas, RetryPolicy
from safedb.values import suggest

_FORMS = (
    "give sqlite:///relative.db, sqlite:////absolute.db, sqlite:// (in memory), postgresql://user@host/name "
    'or pathlib.Path("relative.db")'
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_DIALECTS = {"sqlite": "sqlite", "postgresql": "postgresql", "postgres": "postgresql"}
_NO_PORT = re.compile(r"[^/?:]*:(?!\d*([/?,]|$))")  # user:password, with the host forgotten
_AUTHORITY = re.compile(r"(?:[^:@]*(?::[^:@]*)?@)?(?:(?:\[[^\[\]@]*\]|[^:@\[\],]*)(?::[0-9]*)?(?:,|$))*")
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HARMLESS = frozenset({"application_name", "connect_timeout", "dbname", "host", "hostaddr", "port", "sslmode", "user"})

SHARED = frozenset({"mode", *RetryPolicy.kinds(), *PoolConfig.kinds()})
"""Query parameters that both databases know."""

QUERY = SHARED | frozenset(Pragmas.kinds())
"""Query parameters of a SQLite URL."""


class Dsn:
    """Hold a server's URL whose password is shown to nobody; only ``reveal()`` has it, for the driver."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def reveal(self) -> str:
        """Return the URL as it was given, password included: for the driver alone, never for a message."""
        return self._url

    def __repr__(self) -> str:
        """Show the URL with its secrets masked."""
        return f"Dsn({masked(self._url)!r})"

    def __str__(self) -> str:
        """Show the URL with its secrets masked."""
        return masked(self._url)

    def __eq__(self, other: object) -> bool:
        """Compare the whole URL."""
        return isinstance(other, Dsn) and other._url == self._url

    def __hash__(self) -> int:
        """Hash the whole URL."""
        return hash(self._url)


@dataclass(frozen=True, slots=True)
class Target:
    """Name one database.

    ``dialect`` is ``"sqlite"`` or ``"postgresql"``. On SQLite ``path`` is the absolute path of the file (symbolic
    links not yet resolved), or ``None`` for a database in memory. On PostgreSQL ``dsn`` holds the URL without the
    options that are ours. ``options`` are the query's items of ours, as text.
    """

    dialect: str
    path: str | None = None
    dsn: Dsn | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def parse_target(
    target: str | os.PathLike[str] | None, environ: Mapping[str, str] = os.environ, cwd: str | None = None
) -> Target:
    """Read what ``connect()`` was given; without one, ``SAFEDB_URL`` and then ``DATABASE_URL`` of ``environ``.

    Relative paths are taken from ``cwd`` (the current folder) now, so that a later change of folder changes nothing.
    Raises ``ConfigError`` that names the form meant; no password is ever part of it.
    """
    if target is None:
        return parse_url(*_from_environment(environ), cwd=cwd)
    if isinstance(target, str):
        return parse_url(target, "the target", cwd=cwd)
    if isinstance(target, os.PathLike):
        return Target("sqlite", _absolute(os.fsdecode(target), "the path", cwd))
    raise ConfigError(f"the target is a {type(target).__name__}; {_FORMS}")


def parse_url(url: str, where: str, *, cwd: str | None = None) -> Target:
    """Read a URL; ``where`` tells in errors where it came from."""
    if url == ":memory:":
        return Target("sqlite")
    if any("\ud800" <= character <= "\udfff" for character in url):
        raise ConfigError(f"{where} holds half of a surrogate pair, which no URL can; percent-encode the path's bytes")
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise ConfigError(f"{where}, {masked(url)!r}, has no scheme; {_without_scheme(url)}")
    name = scheme[1].lower()
    if name not in _DIALECTS:
        near = suggest(name.partition("+")[0], _DIALECTS)
        raise ConfigError(f"{where}, {masked(url)!r}, has the unknown scheme {name!r}{near}; {_FORMS}")
    if "\0" in url:
        raise ConfigError(f"{where}, {masked(url)!r}, holds a NUL character; remove it")
    place, _, query = url[scheme.end() :].partition("?")
    if _DIALECTS[name] == "postgresql":
        return _server(f"{name}{url[scheme.end(1) :]}", query, where)  # libpq knows its scheme in lower case alone
    return Target("sqlite", _file(place, url, where, cwd), options=_items(query, where))


def masked(url: str) -> str:
    """Return a URL that can be shown: no password, and no query value that is not known to be harmless.

    A password with an unescaped ``@``, ``/`` or ``?`` shifts where a parser believes the host to begin (H51), so
    everything from the first colon to the last ``@`` of the whole text goes, whatever it was meant to be.
    """
    scheme = _SCHEME.match(url)
    rest = url[scheme.end() :] if scheme else url
    if not scheme and "=" in rest:
        return "***"  # a key=value connection string: any part of it may be a password's
    head, at, tail = rest.rpartition("@")
    if at and scheme and scheme[1].lower() not in _DIALECTS:
        # What looks like a scheme may be a user's name, and what follows it a password that begins with slashes.
        return f"{scheme[0]}***" + (at + tail if not {"?", "&"} & set(rest) else "")
    secret = re.search("[:?]", head) if at else _NO_PORT.match(rest)
    if secret:
        # With a '?' before the '@' nobody can tell a password's tail from a host, so the tail goes as well.
        rest = rest[: secret.end()] + "***" + (at + tail if at and "?" not in head else "")
    place, mark, query = rest.partition("?")
    return f"{scheme[0] if scheme else ''}{place}{mark}{'&'.join(map(_masked_item, query.split('&')))}"


def _masked_item(item: str) -> str:
    # A password with an unescaped '&' goes on in the next item's name, so an unknown name is not shown either.
    return item if not item or item.partition("=")[0] in QUERY | _HARMLESS else "***"


def _from_environment(environ: Mapping[str, str]) -> tuple[str, str]:
    for variable in ("SAFEDB_URL", "DATABASE_URL"):
        url = environ.get(variable)
        if url is not None:
            if not url:  # passing over it might open another database than the one meant
                raise ConfigError(f"the environment variable {variable} is empty; unset it, or {_FORMS}")
            return url, f"the environment variable {variable}"
    raise ConfigError(f"no target: set SAFEDB_URL or DATABASE_URL, or give connect() one; {_FORMS}")


def _without_scheme(url: str) -> str:
    """Return the remedy for a text without a scheme: the two ways to write it, if it can be shown."""
    if not url or masked(url) != url or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
        return _FORMS
    return f"write sqlite:///{url} or pathlib.Path({url!r})"


def _file(place: str, url: str, where: str, cwd: str | None) -> str | None:
    """Return the absolute path of a SQLite URL, or ``None`` for one in memory."""
    if not place:
        return None
    if not place.startswith("/"):
        raise ConfigError(
            f"{where}, {masked(url)!r}, names a host, which SQLite has not; write sqlite:/// (three slashes)"
        )
    if "#" in place:
        raise ConfigError(f"{where}, {masked(url)!r}, holds a bare '#'; write it as %23")
    path = _unquoted(place[1:], url, where)
    return None if path == ":memory:" else _absolute(path, where, cwd)


def _absolute(path: str, where: str, cwd: str | None) -> str:
    if "\0" in path:
        raise ConfigError(f"{where}, {path!r}, holds a NUL character; remove it")
    if not path:
        raise ConfigError(f"{where} names no file; for a database in memory write sqlite://")
    if path == ":memory:":
        raise ConfigError(f"{where} is a path named :memory:; for a database in memory write sqlite://")
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(cwd or os.getcwd(), path)
    except FileNotFoundError:
        raise ConfigError(f"{where}, {path!r}, is relative to a folder that is gone; give an absolute path") from None


def _unquoted(text: str, url: str, where: str) -> str:
    """Decode percent signs into the bytes of a file name; a ``+`` stays a ``+``."""
    if _BARE_PERCENT.search(text):
        raise ConfigError(f"{where}, {masked(url)!r}, holds a bare '%'; write it as %25")
    return _decoded(text)


def _decoded(text: str) -> str:
    return os.fsdecode(re.sub(rb"%([0-9A-Fa-f]{2})", lambda code: bytes([int(code[1], 16)]), os.fsencode(text)))


def _items(query: str, where: str) -> dict[str, str]:
    """Return the items of a query, all of them known and none of them given twice."""
    items: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if name not in QUERY:
            raise ConfigError(f"{where} has the unknown parameter {name!r}{suggest(name, QUERY)}")
        if name in items:
            raise ConfigError(f"{where} gives {name!r} twice; keep one")
        if not equals:
            raise ConfigError(f"{where} gives {name!r} no value; write {name}=…")
        items[name] = _unquoted(value, item, where)
    return items


def _server(url: str, query: str, where: str) -> Target:
    """Part what is ours from what is the driver's, which knows its own parameters and refuses unknown ones.

    A user or a password with a bare '@', '/', '?' or '%' in it would be read as something else, and errors of the
    network library would quote its pieces (H51): so such a URL is refused here, before anything is looked up.
    """
    place = url.partition("://")[2].partition("?")[0]
    authority, _, path = place.partition("/")
    if not _AUTHORITY.fullmatch(authority) or "@" in path + query or _BARE_PERCENT.search(url):
        raise ConfigError(
            f"{where}, {masked(url)!r}, is not postgresql://user:password@host:port/name; percent-encode what is "
            "special in the user and the password (@ is %40, : is %3A, / is %2F, ? is %3F, # is %23, % is %25)"
        )
    if any(
        "\udc80" <= character <= "\udcff" for character in _decoded(url)
    ):  # the driver's error would hold the password
        raise ConfigError(f"{where}, {masked(url)!r}, is not UTF-8; percent-encode it as that (é is %C3%A9)")
    items = query.split("&")
    for item in items:
        name = item.partition("=")[0]
        if name in QUERY - SHARED:
            raise ConfigError(f"{where}: {name!r} is a setting of SQLite; remove it from a PostgreSQL URL")
    ours = [item for item in items if item.partition("=")[0] in SHARED]
    theirs = "&".join(item for item in items if item not in ours)
    dsn = Dsn(f"{url.partition('?')[0]}{'?' if theirs else ''}{theirs}")
    return Target("postgresql", dsn=dsn, options=_items("&".join(ours), where))
