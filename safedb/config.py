"""Settings from every level, merged: code above URL above environment above file above profile above default.

Fields merge one by one. A profile is a field like any other, and fills only what no level gave: ``synchronous`` from
a file stays in force under ``Pragmas.balanced()`` in code. The levels below code are

- the URL's query: ``sqlite:///app.db?synchronous=NORMAL&timeout=3&mode=ro``;
- the environment: ``SAFEDB_`` and a field's name in capitals (``SAFEDB_SYNCHRONOUS``); besides, ``SAFEDB_URL`` is the
  target, ``SAFEDB_CONFIG`` the path of a file, ``SAFEDB_SQLITE`` chooses SQLite's module (`safedb.sqlite.driver`),
  ``SAFEDB_WAL_RESET_FIXED`` says that it is mended (`safedb.sqlite.health`), and ``SAFEDB_TEST_*`` and
  ``SAFEDB_BENCH_*`` belong to the test suite;
- one TOML file: that of ``SAFEDB_CONFIG``, else ``safedb.toml``, else ``[tool.safedb]`` of ``pyproject.toml``, both in
  the current folder; it has ``url`` and the tables ``pragmas``, ``retry`` and ``pool``.

A name that no level knows is refused: a misspelt limit must not be a limit that is not there.
"""

# pathlib costs milliseconds of import.
# ruff: noqa: PTH118
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from safedb.errors import ConfigError
from safedb.options import (
    Options,
    PoolConfig,
    Pragmas,
    ResolvedPoolConfig,
    ResolvedPragmas,
    ResolvedRetryPolicy,
    RetryPolicy,
    check_timeout,
    checked,
)
from safedb.targets import Dsn, Target, parse_target, parse_url
from safedb.values import Kind, OneOf, suggest

__all__ = [
    "Dsn",
    "PoolConfig",
    "Pragmas",
    "ResolvedPoolConfig",
    "ResolvedPragmas",
    "ResolvedRetryPolicy",
    "RetryPolicy",
    "Settings",
    "Target",
    "check_timeout",
    "load_settings",
    "parse_target",
]

_PREFIX = "SAFEDB_"
_FREE = ("SAFEDB_TEST_", "SAFEDB_BENCH_")
_TABLES: dict[str, type[Options]] = {"pragmas": Pragmas, "retry": RetryPolicy, "pool": PoolConfig}
_FIELDS = [name for cls in _TABLES.values() for name in cls.kinds()]
_OTHERS = ("URL", "CONFIG", "SQLITE", "WAL_RESET_FIXED")
_VARIABLES = {_PREFIX + name.upper() for name in (*_OTHERS, *_FIELDS)}

_O = TypeVar("_O", bound=Options)


@dataclass(frozen=True, slots=True)
class Settings:
    """Hold what all levels gave together; ``None`` in a field still means that none gave it."""

    target: Target
    pragmas: Pragmas
    retry: RetryPolicy
    pool: PoolConfig
    read_only: bool


def load_settings(
    target: str | os.PathLike[str] | None = None,
    *,
    pragmas: Pragmas | None = None,
    retry: RetryPolicy | None = None,
    pool: PoolConfig | None = None,
    read_only: bool | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: str | None = None,
) -> Settings:
    """Return the settings of all levels, merged field by field, and the target.

    Raises ``ConfigError`` that says what is wrong, where it stands (code, URL, variable or file), and what was meant.
    """
    _refuse_unknown_variables(environ)
    file = _File.find(environ, cwd)
    found = _target(target, file, environ, cwd)

    def merged(given: Options | None, cls: type[_O]) -> _O:
        if given is not None and not isinstance(given, cls):
            raise ConfigError(f"a {type(given).__name__} stands where a {cls.__name__} belongs")
        url = _from_text(cls, found.options, str, "the URL: {}")
        environment = _from_text(cls, environ, _variable, "the environment variable {}")
        return (given or cls()).over(url).over(environment).over(file.options(cls))

    settings = Settings(
        target=found,
        pragmas=merged(pragmas, Pragmas),
        retry=merged(retry, RetryPolicy),
        pool=merged(pool, PoolConfig),
        read_only=_read_only(read_only, found),
    )
    # Fields that are right alone may contradict each other once they are merged.
    settings.retry.effective()
    settings.pool.effective()
    return settings


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    for name in environ:
        if name.startswith(_PREFIX) and name not in _VARIABLES and not name.startswith(_FREE):
            raise ConfigError(f"the environment variable {name} is no setting of safedb{suggest(name, _VARIABLES)}")


def _target(target: str | os.PathLike[str] | None, file: _File, environ: Mapping[str, str], cwd: str | None) -> Target:
    """Take the target from code, else the environment, else the file."""
    if target is None and file.url is not None and not {"SAFEDB_URL", "DATABASE_URL"} & environ.keys():
        return parse_url(file.url, f"the url in {file.name}", cwd=cwd)
    return parse_target(target, environ, cwd)


def _read_only(given: bool | None, target: Target) -> bool:
    """Take ``read_only=`` from code, else ``mode=`` from the URL."""
    if given is not None:
        if not isinstance(given, bool):
            raise ConfigError(f"read_only = {given!r} is a {type(given).__name__}; give True or False")
        return given
    mode: str = checked(OneOf(("ro", "rw")).check, target.options.get("mode", "rw"), "the URL: mode")
    return mode == "ro"


def _from_text(cls: type[_O], texts: Mapping[str, str], key: Callable[[str], str], where: str) -> _O:
    """Read the fields whose ``key`` is in ``texts``; ``where`` is the place in errors, with ``{}`` for the key."""
    return cls(
        **{
            name: checked(kind.parse, texts[key(name)], where.format(key(name)))
            for name, kind in cls.kinds().items()
            if key(name) in texts
        }
    )


class _File:
    """Be the one TOML file in force, or none."""

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        self.name = name
        self.url = self._text(content.get("url"))
        self._tables = {key: self._table(key, content.get(key, {})) for key in _TABLES}
        self._refuse_unknown(content, {"url", *_TABLES}, "key")

    @classmethod
    def find(cls, environ: Mapping[str, str], cwd: str | None) -> _File:
        """Return the file of ``SAFEDB_CONFIG``, else those of the current folder, else an empty one."""
        named = environ.get("SAFEDB_CONFIG")
        folder = cwd or ""
        if named is not None:
            content = _toml(os.path.join(folder, named))
            if content is None:
                raise ConfigError(f"the file of SAFEDB_CONFIG, {named!r}, is not there")
            return cls(named, content)
        content = _toml(os.path.join(folder, "safedb.toml"))
        if content is not None:
            return cls("safedb.toml", content)
        project = _toml(os.path.join(folder, "pyproject.toml")) or {}
        tools = project.get("tool", {})
        own = tools.get("safedb", {}) if isinstance(tools, dict) else {}
        if not isinstance(own, dict):
            raise ConfigError("safedb in [tool] of pyproject.toml is no table; write [tool.safedb]")
        return cls("[tool.safedb] in pyproject.toml", own)

    def options(self, cls: type[_O]) -> _O:
        """Return the fields that the file gives of ``cls``."""
        key = next(key for key, options in _TABLES.items() if options is cls)
        given = self._tables[key]
        kinds: dict[str, Kind] = cls.kinds()
        self._refuse_unknown(given, kinds, f"setting in [{key}]")
        return cls(
            **{name: checked(kinds[name].check, value, f"{self.name}: {key}.{name}") for name, value in given.items()}
        )

    def _refuse_unknown(self, given: Mapping[str, Any], known: Any, what: str) -> None:
        for name in given:
            if name not in known:
                raise ConfigError(f"{self.name} has the unknown {what} {name!r}{suggest(name, known)}")

    def _text(self, url: object) -> str | None:
        if url is not None and not isinstance(url, str):
            raise ConfigError(f"{self.name}: url is a {type(url).__name__}; give a string")
        return url

    def _table(self, key: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ConfigError(f"{self.name}: {key} is a {type(value).__name__}; write a table, [{key}]")
        return value


def _toml(path: str) -> dict[str, Any] | None:
    """Return a TOML file's content, or ``None`` if there is no such file."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, once it is known to be there
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {path!r}: {error.strerror}") from error
    import tomllib  # most programs have no file, and should not pay for reading one

    with file:
        try:
            return tomllib.load(file)
        except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
            raise ConfigError(f"{path!r} is no valid TOML: {error}") from None
