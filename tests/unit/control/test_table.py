"""The persistent mapping under every snapshot."""

from __future__ import annotations

from cloister.control.table import Table


def test_an_update_leaves_the_old_table_alone() -> None:
    empty: Table[int] = Table()
    one = empty.put("a", 1)
    two = one.put("a", 2).put("b", 3)
    assert (dict(empty), dict(one), dict(two)) == ({}, {"a": 1}, {"a": 2, "b": 3})
    assert dict(two.drop("a")) == {"b": 3}
    assert two.drop("nobody") is two
    assert len(two) == 2
    assert "b" in two
    assert two.get("nobody") is None


def test_iteration_does_not_depend_on_how_names_hash() -> None:
    table: Table[int] = Table()
    for n in range(500):
        table = table.put(f"m{n:03d}", n)
    assert list(table) == [f"m{n:03d}" for n in range(500)]
