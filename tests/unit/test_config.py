"""Settings: every level says the same thing, the higher one wins, and mistakes are named, not swallowed."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from safedb.config import (
    Dsn,
    PoolConfig,
    Pragmas,
    ResolvedPoolConfig,
    ResolvedPragmas,
    ResolvedRetryPolicy,
    RetryPolicy,
    Settings,
    Target,
    check_timeout,
    load_settings,
    parse_target,
)
from safedb.errors import ConfigError
from safedb.options import LONGEST, PROFILES, Options
from safedb.targets import masked
from safedb.values import FileMode, Flag, FlagOr, Kind, Number, OneOf, PowerOfTwo, Whole

CLASSES: tuple[type[Options], ...] = (Pragmas, RetryPolicy, PoolConfig)
FULL_FORMS = ((Pragmas, ResolvedPragmas), (RetryPolicy, ResolvedRetryPolicy), (PoolConfig, ResolvedPoolConfig))


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """Draw the canonical values of a kind."""
    match kind:
        case Flag():
            return st.booleans()
        case FlagOr(word):
            return st.sampled_from([True, False, word])
        case OneOf(words):
            return st.sampled_from(words)
        case PowerOfTwo(low, high):
            return st.sampled_from([2**n for n in range(17) if low <= 2**n <= high])
        case Whole(low, high):
            return st.integers(low, high)
        case FileMode():
            return st.integers(0, 0o777).map(lambda bits: bits | 0o600)
        case Number(low, high, closed):
            return st.floats(low, high, exclude_min=not closed, allow_nan=False)
    raise AssertionError(kind)


def as_text(name: str, value: object) -> str:
    """Write a value as a user would in a URL or a variable."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"0{value:o}" if name == "file_mode" else str(value)


def as_toml(value: object) -> str:
    """Write a value as a user would in TOML."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


def some(cls: type[Options]) -> st.SearchStrategy[Any]:
    """Draw options with any of their fields given, and merging without contradiction."""
    fields = {name: st.none() | values(kind) for name, kind in cls.kinds().items()}
    return st.builds(cls, **fields).filter(agrees)


def agrees(options: Any) -> bool:
    try:
        options.effective()
    except ConfigError:
        return False
    return True


def load(
    target: str | os.PathLike[str] | None = "sqlite://",
    *,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    **code: Any,
) -> Settings:
    """Load settings with nothing of this machine's environment in them."""
    return load_settings(target, environ=environ or {}, cwd=str(cwd), **code)


# ---- values on entry


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (Pragmas, "synchronous", "FULLY"),
        (Pragmas, "synchronous", 2),
        (Pragmas, "profile", "fast"),
        (Pragmas, "foreign_keys", 1),
        (Pragmas, "secure_delete", "slow"),
        (Pragmas, "cache_size", 1.5),
        (Pragmas, "cache_size", True),
        (Pragmas, "cache_size", 2**31),
        (Pragmas, "mmap_size", -1),
        (Pragmas, "page_size", 1000),
        (Pragmas, "page_size", 256),
        (Pragmas, "application_id", 2**31),
        (Pragmas, "file_mode", 0o400),
        (Pragmas, "file_mode", 0o1600),
        (Pragmas, "file_mode", "0600"),
        (RetryPolicy, "timeout", 0),
        (RetryPolicy, "timeout", math.nan),
        (RetryPolicy, "timeout", math.inf),
        (RetryPolicy, "timeout", "10"),
        (RetryPolicy, "timeout", True),
        (RetryPolicy, "attempts", 0),
        (RetryPolicy, "multiplier", 0.5),
        (PoolConfig, "max_size", 0),
        (PoolConfig, "max_waiting", 0),
        (PoolConfig, "fork_wait", -0.1),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(cls: type[Options], name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{cls.__name__}\.{name} = .+ (is|shuts|\(octal)"):
        cls(**{name: value})


def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant() -> None:
    wrong: dict[str, Any] = {"synchronus": "FULL"}
    with pytest.raises(ConfigError, match="'synchronus'; did you mean 'synchronous'"):
        Pragmas(**wrong)
    with pytest.raises(ConfigError, match="is not one of OFF, NORMAL, FULL, EXTRA; did you mean 'normal'"):
        Pragmas(synchronous="nromal")


def test_a_huge_wrong_value_does_not_make_a_huge_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Pragmas(synchronous="x" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_words_are_taken_in_any_case_and_compare_equal() -> None:
    assert Pragmas(synchronous="full", secure_delete="fast") == Pragmas(synchronous="FULL", secure_delete="FAST")


@pytest.mark.parametrize("cls", CLASSES)
def test_options_are_frozen_hashable_and_travel_between_processes(cls: Any) -> None:
    options = cls()
    name = next(iter(cls.kinds()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, name, None)
    assert pickle.loads(pickle.dumps(options)) == options
    assert hash(options) == hash(cls())


def test_repr_shows_only_what_was_given() -> None:
    assert repr(Pragmas(synchronous="NORMAL", wal_limit=0)) == "Pragmas(synchronous='NORMAL', wal_limit=0)"


@pytest.mark.parametrize("value", [0, -1, 0.0, -0.5, math.nan, math.inf, -math.inf, 1e10, 10**400, True, "5", None, 5j])
def test_a_timeout_that_no_clock_can_wait_for_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^timeout = .+; give a number"):
        check_timeout(value)


@pytest.mark.parametrize("value", [5e-324, 0.5, 1, LONGEST, int(LONGEST)])
def test_a_timeout_within_bounds_is_seconds_as_a_float(value: float) -> None:
    assert check_timeout(value) == value
    assert type(check_timeout(value)) is float


def test_a_timeout_may_be_of_a_subclass_of_float() -> None:
    class Seconds(float):
        pass

    assert check_timeout(Seconds(2.5)) == 2.5


# ---- profiles and defaults


@pytest.mark.parametrize(("written", "full"), FULL_FORMS)
def test_nothing_given_means_the_defaults(written: Any, full: Any) -> None:
    assert written().effective() == full()
    assert written().given() == {}


@pytest.mark.parametrize(("written", "full"), FULL_FORMS)
def test_both_forms_have_the_same_names_in_the_same_order(written: Any, full: Any) -> None:
    assert [f.name for f in dataclasses.fields(written)] == [f.name for f in dataclasses.fields(full)]


@pytest.mark.parametrize(("written", "full"), FULL_FORMS)
def test_every_default_is_a_value_that_could_have_been_given(written: Any, full: Any) -> None:
    given = {name: value for name, value in dataclasses.asdict(full()).items() if value is not None}
    assert written(**given).given() == given


def test_every_profile_holds_values_that_could_have_been_given() -> None:
    for profile, filled in PROFILES.items():
        given: dict[str, Any] = dict(filled)
        assert Pragmas(profile=profile, **given).given() == {"profile": profile, **given}


def test_no_name_belongs_to_two_tables() -> None:
    names = [name for cls in CLASSES for name in cls.kinds()]
    assert len(names) == len(set(names))


def test_the_default_is_durable() -> None:
    assert Pragmas().effective().synchronous == "FULL"
    assert Pragmas.durable().effective() == Pragmas().effective()


def test_a_profile_fills_only_what_was_not_given() -> None:
    assert Pragmas.balanced().effective().synchronous == "NORMAL"
    assert Pragmas.balanced(synchronous="FULL").effective().synchronous == "FULL"


def test_litestream_leaves_every_checkpoint_to_litestream() -> None:
    effective = Pragmas.litestream().effective()
    assert (effective.synchronous, effective.checkpoint_pages, effective.wal_limit) == ("NORMAL", 0, 0)


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"initial \(1.0 s\) is above maximum \(0.05 s\)"):
        RetryPolicy(initial=1).effective()
    with pytest.raises(ConfigError, match=r"min_size \(9\) is above max_size \(8\)"):
        PoolConfig(min_size=9).effective()


# ---- the same settings from every level


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pragmas=some(Pragmas), retry=some(RetryPolicy), pool=some(PoolConfig))
def test_every_level_says_the_same_thing(
    pragmas: Pragmas, retry: RetryPolicy, pool: PoolConfig, tmp_path: Path
) -> None:
    written = (pragmas, retry, pool)
    texts = {name: as_text(name, value) for options in written for name, value in options.given().items()}

    code = load(cwd=tmp_path / "none", pragmas=pragmas, retry=retry, pool=pool)
    url = load(f"sqlite://?{'&'.join(f'{name}={text}' for name, text in texts.items())}", cwd=tmp_path / "none")
    environ = {f"SAFEDB_{name.upper()}": text for name, text in texts.items()}
    environment = load(cwd=tmp_path / "none", environ=environ)
    lines = []
    for table, options in zip(("pragmas", "retry", "pool"), written, strict=True):
        lines += [f"[{table}]", *(f"{name} = {as_toml(value)}" for name, value in options.given().items())]
    (tmp_path / "safedb.toml").write_text("\n".join(lines))
    file = load(cwd=tmp_path)

    for found in (code, url, environment, file):
        assert (found.pragmas, found.retry, found.pool) == written


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(levels=st.lists(some(Pragmas), min_size=4, max_size=4))
def test_the_higher_level_wins_field_by_field(levels: list[Pragmas], tmp_path: Path) -> None:
    code, url, environment, file = levels
    (tmp_path / "safedb.toml").write_text(
        "\n".join(["[pragmas]", *(f"{name} = {as_toml(value)}" for name, value in file.given().items())])
    )
    query = "&".join(f"{name}={as_text(name, value)}" for name, value in url.given().items())
    environ = {f"SAFEDB_{name.upper()}": as_text(name, value) for name, value in environment.given().items()}
    found = load(f"sqlite://?{query}", cwd=tmp_path, environ=environ, pragmas=code).pragmas
    for name in Pragmas.kinds():
        wanted = next((value for level in levels if (value := getattr(level, name)) is not None), None)
        assert getattr(found, name) == wanted


def test_a_field_from_below_stays_in_force_under_a_profile_from_above(tmp_path: Path) -> None:
    found = load(cwd=tmp_path, environ={"SAFEDB_SYNCHRONOUS": "EXTRA"}, pragmas=Pragmas.balanced())
    assert found.pragmas.effective().synchronous == "EXTRA"


def test_fields_that_contradict_each_other_across_levels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="min_size"):
        load("sqlite://?min_size=5", cwd=tmp_path, environ={"SAFEDB_MAX_SIZE": "3"})
    with pytest.raises(ConfigError, match="initial"):
        load("sqlite://?initial=5", cwd=tmp_path)


def test_options_of_the_wrong_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a RetryPolicy stands where a Pragmas belongs"):
        load(cwd=tmp_path, pragmas=RetryPolicy())


@pytest.mark.parametrize(
    ("query", "given", "expected"),
    [
        ("", None, False),
        ("?mode=ro", None, True),
        ("?mode=RW", None, False),
        ("?mode=ro", False, False),
        ("", True, True),
    ],
)
def test_read_only_comes_from_code_or_the_mode_in_the_url(
    query: str, given: bool | None, expected: bool, tmp_path: Path
) -> None:
    assert load(f"sqlite:///a.db{query}", cwd=tmp_path, read_only=given).read_only is expected


def test_a_mode_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the URL: mode = 'rwc' is not one of ro, rw"):
        load("sqlite:///a.db?mode=rwc", cwd=tmp_path)
    with pytest.raises(ConfigError, match="read_only = 1 is a int"):
        load(cwd=tmp_path, read_only=1)


# ---- text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("foreign_keys", "maybe"),
        ("foreign_keys", ""),
        ("cache_size", "1_000"),
        ("cache_size", " 1"),
        ("cache_size", "+1"),
        ("cache_size", "--1"),
        ("cache_size", "\u0661"),
        ("cache_size", "9" * 1000),
        ("timeout", "ten"),
        ("timeout", "nan"),
        ("timeout", "inf"),
        ("timeout", "1_0"),
        ("timeout", "1 "),
        ("timeout", "-1"),
        ("file_mode", "0o"),
        ("file_mode", "0680"),
        ("file_mode", "06000"),
        ("secure_delete", "sometimes"),
        ("jitter", "2"),
    ],
)
def test_text_that_is_no_value_is_refused_with_the_place_it_stands_in(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^the environment variable SAFEDB_{name.upper()} = "):
        load(cwd=tmp_path, environ={f"SAFEDB_{name.upper()}": text})
    if text.isascii():
        with pytest.raises(ConfigError, match=f"^the URL: {name} = "):
            load(f"sqlite://?{name}={text}", cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"), [("on", True), ("YES", True), ("1", True), ("off", False), ("No", False)]
)
def test_switches_may_be_written_in_the_usual_words(text: str, expected: bool, tmp_path: Path) -> None:
    found = load(f"sqlite://?foreign_keys={text}&secure_delete={text}", cwd=tmp_path).pragmas
    assert (found.foreign_keys, found.secure_delete) == (expected, expected)


@pytest.mark.parametrize("text", ["640", "0640", "0o640"])
def test_a_file_mode_in_text_is_octal(text: str, tmp_path: Path) -> None:
    assert load(f"sqlite://?file_mode={text}", cwd=tmp_path).pragmas.file_mode == 0o640


# ---- the environment


def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SAFEDB_SYNCRONOUS is no setting.*did you mean 'SAFEDB_SYNCHRONOUS'"):
        load(cwd=tmp_path, environ={"SAFEDB_SYNCRONOUS": "FULL"})


def test_variables_of_others_and_of_the_test_suite_are_left_alone(tmp_path: Path) -> None:
    environ = {"PATH": "/bin", "SAFEDB_TEST_LONG": "1", "SAFEDB_BENCH_X": "y", "safedb_timeout": "x"}
    assert load(cwd=tmp_path, environ=environ).retry == RetryPolicy()


def test_without_a_target_the_environment_decides_and_safedb_url_comes_first(tmp_path: Path) -> None:
    both = {"SAFEDB_URL": "sqlite:////one.db", "DATABASE_URL": "sqlite:////two.db"}
    assert load(None, cwd=tmp_path, environ=both).target.path == "/one.db"
    assert load(None, cwd=tmp_path, environ={"DATABASE_URL": "sqlite:////two.db"}).target.path == "/two.db"
    assert load("sqlite:////three.db", cwd=tmp_path, environ=both).target.path == "/three.db"


def test_without_any_target_the_error_names_both_variables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set SAFEDB_URL or DATABASE_URL"):
        load(None, cwd=tmp_path)


@pytest.mark.parametrize("variable", ["SAFEDB_URL", "DATABASE_URL"])
def test_an_empty_variable_is_refused_and_not_passed_over(variable: str, tmp_path: Path) -> None:
    (tmp_path / "safedb.toml").write_text('url = "sqlite:////other.db"')
    with pytest.raises(ConfigError, match=f"{variable} is empty"):
        load(None, cwd=tmp_path, environ={variable: ""})


# ---- files


def test_the_file_gives_the_target_when_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "safedb.toml").write_text('url = "sqlite:///app.db?timeout=3"')
    found = load(None, cwd=tmp_path)
    assert found.target.path == str(tmp_path / "app.db")
    assert found.retry.timeout == 3
    assert load(None, cwd=tmp_path, environ={"DATABASE_URL": "sqlite:////x.db"}).target.path == "/x.db"


def test_one_file_is_in_force_and_the_nearest_one_wins(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.safedb.retry]\ntimeout = 1\n[project]\nname = 'x'")
    assert load(cwd=tmp_path).retry == RetryPolicy(timeout=1)
    (tmp_path / "safedb.toml").write_text("[retry]\nattempts = 2")
    assert load(cwd=tmp_path).retry == RetryPolicy(attempts=2)
    (tmp_path / "other.toml").write_text("[pool]\nmax_size = 2")
    found = load(cwd=tmp_path, environ={"SAFEDB_CONFIG": "other.toml"})
    assert (found.retry, found.pool) == (RetryPolicy(), PoolConfig(max_size=2))


@pytest.mark.parametrize("content", ["", "[project]\nname = 'x'", "[tool.other]\nx = 1", "tool = 1"])
def test_a_project_that_says_nothing_about_safedb_sets_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(content)
    assert load(cwd=tmp_path).pragmas == Pragmas()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[pragmas]\nsynchronus = 'FULL'",
            r"safedb.toml has the unknown setting in \[pragmas\] 'synchronus'; did you mean",
        ),
        ("[pragmas]\nsynchronous = 2", r"^safedb.toml: pragmas.synchronous = 2 is a int"),
        ("[retry]\ntimeout = '3'", r"^safedb.toml: retry.timeout = '3' is a str"),
        ("[retry]\ntimeout = nan", r"^safedb.toml: retry.timeout = nan is out of range"),
        ("pool = 3", r"pool is a int; write a table, \[pool\]"),
        ("url = 3", r"url is a int; give a string"),
        ("uri = 'x'", r"unknown key 'uri'; did you mean 'url'"),
        ("retry", r"safedb.toml' is no valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "safedb.toml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(cwd=tmp_path)


def test_a_file_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "safedb.toml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read the settings in .*safedb.toml"):
        load(cwd=tmp_path)
    with pytest.raises(ConfigError, match=r"'missing\.toml', is not there"):
        load(cwd=tmp_path, environ={"SAFEDB_CONFIG": "missing.toml"})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "safedb.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is no valid TOML"):
        load(cwd=tmp_path)


def test_tool_safedb_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\nsafedb = 1")
    with pytest.raises(ConfigError, match=r"write \[tool.safedb\]"):
        load(cwd=tmp_path)


# ---- targets


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///rel.db", "/cwd/rel.db"),
        ("sqlite:///sub/rel.db", "/cwd/sub/rel.db"),
        ("sqlite:////abs.db", "/abs.db"),
        ("SQLite:////abs.db", "/abs.db"),
        ("sqlite:////a%20b%3F%23%25+.db", "/a b?#%+.db"),
        ("sqlite:////%C3%A9.db", "/é.db"),
        ("sqlite:////%FF.db", os.fsdecode(b"/\xff.db")),
        ("sqlite:////é.db", "/é.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        (":memory:", None),
        (Path("rel.db"), "/cwd/rel.db"),
        (Path("/abs/x.db"), "/abs/x.db"),
        (Path("a%20b?c#.db"), "/cwd/a%20b?c#.db"),
    ],
)
def test_every_form_of_a_sqlite_target_is_understood(url: str | Path, path: str | None) -> None:
    assert parse_target(url, {}, "/cwd") == Target("sqlite", path)


def test_a_relative_path_means_the_folder_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_target("sqlite:///a.db", {}) == Target("sqlite", str(tmp_path / "a.db"))


def test_a_relative_path_in_a_folder_that_is_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="relative to a folder that is gone; give an absolute path"):
        parse_target("sqlite:///a.db", {})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("app.db", r"has no scheme; write sqlite:///app.db or pathlib.Path\('app.db'\)"),
        ("", "has no scheme; give sqlite:///"),
        ("file:app.db?mode=memory", "has no scheme; give sqlite:///"),
        ("sqlite:app.db", "has no scheme; give sqlite:///"),
        ("C:\\app.db", "has no scheme; give sqlite:///"),
        ("sqlit:///app.db", "unknown scheme 'sqlit'; did you mean 'sqlite'"),
        ("mysql://host/x", "unknown scheme 'mysql'; give"),
        ("postgresql+psycopg://host/x", "unknown scheme.*did you mean 'postgresql'"),
        ("sqlite://app.db", "names a host, which SQLite has not; write sqlite:///"),
        ("sqlite:///", "names no file; for a database in memory write sqlite://"),
        ("sqlite:///a#b", "bare '#'; write it as %23"),
        ("sqlite:///a%zz", "bare '%'; write it as %25"),
        ("sqlite:///a%", "bare '%'; write it as %25"),
        ("sqlite:///a%00b", "NUL"),
        ("sqlite:///a\0b", "NUL"),
        ("sqlite:///a?synchronus=FULL", "unknown parameter 'synchronus'; did you mean 'synchronous'"),
        ("sqlite:///a?vfs=unix-none", "unknown parameter 'vfs'"),
        ("sqlite:///a?timeout=1&timeout=2", "gives 'timeout' twice"),
        ("sqlite:///a?timeout", "gives 'timeout' no value; write timeout="),
        (Path("a\0b"), "NUL"),
        (Path(":memory:"), "for a database in memory write sqlite://"),
        (b"app.db", "the target is a bytes"),
        (7, "the target is a int"),
    ],
)
def test_what_is_no_target_is_refused_with_the_form_that_was_meant(target: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_target(target, {}, "/cwd")


def test_a_query_value_may_be_percent_encoded() -> None:
    assert parse_target("sqlite://?synchronous=%46ULL&", {}).options == {"synchronous": "FULL"}


def test_a_postgresql_url_keeps_what_is_the_drivers_and_gives_what_is_ours() -> None:
    target = parse_target("postgres://u:p@h:5432/db?sslmode=require&timeout=3&max_size=4", {})
    assert target.dialect == "postgresql"
    assert target.dsn is not None
    assert target.dsn.reveal() == "postgres://u:p@h:5432/db?sslmode=require"
    assert target.options == {"timeout": "3", "max_size": "4"}
    plain = parse_target("postgresql://h/db?timeout=3", {}).dsn
    assert plain is not None
    assert plain.reveal() == "postgresql://h/db"


def test_a_setting_of_sqlite_in_a_postgresql_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="'page_size' is a setting of SQLite"):
        parse_target("postgresql://u:p@h/db?page_size=4096", {})


# ---- passwords


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:s3cr3t@host:5432/db?sslmode=require", "postgresql://user:***@host:5432/db?sslmode=require"),
        ("postgresql://user:s3@cr3t@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:s3cr3t", "postgresql://user:***"),
        ("postgresql://user@host:5432/db", "postgresql://user@host:5432/db"),
        ("postgresql://host:5432,other:5433/db", "postgresql://host:5432,other:5433/db"),
        ("postgresql://host/db?user=u&password=s3cr3t", "postgresql://host/db?user=u&***"),
        ("postgresql://host:1/db?password=s3@cr3t", "postgresql://host:***"),
        ("postgresql://host/db?password=s3@cr3t", "postgresql://host/db?***"),
        ("postgresql://host/db?password=s3&cr3t", "postgresql://host/db?***&***"),
        ("host=h password=s3cr3t", "***"),
        ("user:s3cr3t@host/db", "user:***@host/db"),
        ("sqlite:////app.db?synchronous=FULL", "sqlite:////app.db?synchronous=FULL"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert masked(url) == shown


SHAPES = (
    "postgresql://user:{}@host/db",
    "postgresql://user:{}@host/db?page_size=1",
    "postgresql://user:{}",
    "postgrsql://user:{}@host/db",
    "sqlite://user:{}@host/db?x=1",
    "user:{}@host/db",
    "postgresql://host/db?password={}",
    "postgresql://host/db?timeout=1&timeout=2&password={}",
    "host=h password={}",
)


@settings(deadline=None, max_examples=400)
@given(shape=st.sampled_from(SHAPES), around=st.tuples(*[st.text("ab1@:/?#&=% \0'", max_size=6)] * 2))
def test_a_password_is_in_no_error_and_no_repr(shape: str, around: tuple[str, str]) -> None:
    url = shape.format(f"{around[0]}s3cr3t{around[1]}")
    # Where the host was forgotten, nothing tells what follows '@' or '/' in the password from a host or a database.
    assume(shape != "postgresql://user:{}" or not {"@", "/"} & set(around[0]))
    for target in (url, None):
        try:
            shown = repr(parse_target(target, {"DATABASE_URL": url}, "/cwd"))
        except ConfigError as error:
            shown = f"{error} {error.__cause__!r}"
        assert "s3cr3t" not in shown


def test_a_dsn_shows_itself_masked_and_compares_whole() -> None:
    one, other = Dsn("postgresql://u:one@h/db"), Dsn("postgresql://u:other@h/db")
    assert repr(one) == "Dsn('postgresql://u:***@h/db')"
    assert str(one) == f"{one}" == "postgresql://u:***@h/db"
    assert one != other
    assert one != one.reveal()
    assert {one, Dsn(one.reveal())} == {one}
    assert pickle.loads(pickle.dumps(one)) == one


# ---- weight


def test_importing_the_settings_imports_nothing_heavy() -> None:
    code = "import sys, safedb.config; print(*sorted({'tomllib', 'tenacity', 'difflib'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == []


ROOT = Path(__file__).resolve().parents[2]
