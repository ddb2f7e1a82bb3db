import pytest

from musae_jax.bench.rows import bench_row, bench_table

FIELDS = {"name", "config", "device", "dtype", "ours", "peer", "peer_name", "unit", "ratio"}


def test_one_value_has_no_interval():
    row = bench_row("a/f1", {"k": 5}, 0.5, "share", 0.25, "them")
    assert row.keys() == FIELDS and row["ratio"] == 2 and row["ours"] == 0.5
    assert bench_row("a/fvu", {}, 0.5, "share", 0.25, "them", more_is_better=False)["ratio"] == 0.5
    alone = bench_row("a/l0", {}, 0.0, "share")
    assert alone["peer"] is None and alone["ratio"] is None


def test_several_have_students_interval_of_their_mean():
    row = bench_row("a", {}, [1.0, 2.0, 3.0], "x")
    assert row["ours"] == 2 and row["values"] == [1, 2, 3]
    assert row["interval"] == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], rel=1e-4)
    assert bench_table([row, bench_row("b", {}, 1.0, "y", 2.0, "them")]).splitlines()[0].split()[:4] == [
        "a",
        "2.000",
        "±",
        "2.484",
    ]
