import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from clip_core.run.curve import LIMIT, Bucket, Curve

VALUES = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=50)


def test_one_bucket_per_measurement_while_there_are_few() -> None:
    curve = Curve()
    assert curve.buckets == []
    assert math.isnan(curve.latest)
    curve.add(1, 0.5)
    curve.add(2, 0.25)
    assert curve.buckets == [Bucket(1, 1, 0.5, 0.5), Bucket(2, 2, 0.25, 0.25)]
    assert curve.latest == 0.25


def test_memory_is_bounded_and_every_spike_is_kept() -> None:
    curve = Curve()
    count = 20 * LIMIT + 7
    for step in range(count):
        curve.add(step, 1e6 if step == 12_345 else -1e6 if step == 23_456 else float(step % 7))
    buckets = curve.buckets
    assert LIMIT / 2 <= len(buckets) <= LIMIT
    assert max(bucket.high for bucket in buckets) == 1e6
    assert min(bucket.low for bucket in buckets) == -1e6
    assert next(bucket for bucket in buckets if bucket.high == 1e6).first <= 12_345
    assert (buckets[0].first, buckets[-1].last) == (0, count - 1)
    assert all(a.last + 1 == b.first for a, b in itertools.pairwise(buckets))


@given(st.lists(VALUES, max_size=8), st.integers(0, 3 * LIMIT))
def test_columns_give_the_same_curve_as_single_measurements(parts: list[list[float]], before: int) -> None:
    columns, single = Curve(), Curve()
    columns.extend(range(before), [0.0] * before)
    for step in range(before):
        single.add(step, 0.0)
    step = before
    for part in parts:
        steps = range(step, step + len(part))
        columns.extend(steps, part)
        for at, value in zip(steps, part, strict=True):
            single.add(at, value)
        step += len(part)
    assert columns.buckets == single.buckets
    assert str(columns.latest) == str(single.latest)


def test_the_points_have_the_mean_of_every_bucket() -> None:
    curve = Curve()
    count = 3 * LIMIT + 1
    curve.extend(range(count), [float(step % 2) for step in range(count)])
    points = curve.points()
    assert [tuple(point) for point in points] == [tuple(bucket) for bucket in curve.buckets]
    assert set(points.mean[:-1].tolist()) == {0.5}
    assert points.mean[-1] in (0.0, 1.0, 0.5)
    assert curve.points() is points
    curve.add(count, 9.0)
    assert curve.points().high[-1] == 9.0
