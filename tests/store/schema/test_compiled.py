"""The generated statements against their source."""

from typing import cast

import pytest

from greycheck.store.base import DIGEST as LEAN_DIGEST
from greycheck.store.schema import generate, migrate, statements
from greycheck.store.schema.tables import DIGEST


@pytest.mark.parametrize("dialect", statements.COMPILERS)
def test_the_generated_module_is_what_its_source_compiles_to(dialect: str) -> None:
    assert generate.path(dialect).read_text() == generate.module(dialect)


def test_generating_writes_every_module(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    generate.main()
    for dialect in statements.COMPILERS:
        assert generate.path(dialect).read_text() == generate.module(dialect)


@pytest.mark.parametrize("dialect", statements.COMPILERS)
def test_every_parameter_has_its_name(dialect: str) -> None:
    module: dict[str, object] = {}
    exec(generate.module(dialect), module)
    mark = "?" if dialect == "sqlite" else "%s"
    for name in statements.for_dialect(dialect):
        sql, names = cast(tuple[str, tuple[str, ...]], module[name])
        assert sql.count(mark) + sql.count("__[POSTCOMPILE_") == len(names)
        # What was not given a name has one that SQLAlchemy made, of a column and a number.
        numbered = {parameter for parameter in names if parameter[-1].isdigit()}
        assert all(parameter.startswith(("key_", "low_", "high_")) for parameter in numbered)


def test_the_child_and_the_tables_mean_the_same_digest_and_revision() -> None:
    from greycheck.store import compiled_mysql, compiled_postgresql, compiled_sqlite

    assert DIGEST == LEAN_DIGEST
    assert {
        module.REVISION for module in (compiled_mysql, compiled_postgresql, compiled_sqlite)
    } == {migrate.head()}
