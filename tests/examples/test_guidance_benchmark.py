"""The benchmark of guidance on disk runs, small, and its figures make sense."""

from examples.benchmarks.guidance import compare_bits, compare_speed, measure_memory


def test_bits_speed_and_memory() -> None:
    bits = compare_bits(4, 0.05)
    speed = compare_speed(0.05, 2, 1)
    memory = measure_memory(2, 0.05, "client")

    assert {row["bits"] for row in bits} == {8, 16}
    assert all(row["equal"] > 0.9 for row in bits if row["bits"] == 16)
    assert [row["normalization"] for row in speed] == ["layer", "client"]
    assert all(row["speed"] > 0 for row in speed)
    assert memory["nodes"] == 2
    assert 0 < memory["before_mb"] <= memory["planned_mb"]
