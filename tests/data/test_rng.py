import numpy as np
from scipy import stats

from mec.data.rng import Stream, uniforms, view_stream


def test_numbers_are_uniform_and_independent_on_every_axis() -> None:
    u = uniforms(0, 0, np.arange(5000), 8)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    others = [
        uniforms(1, 0, np.arange(5000), 8),
        uniforms(0, 1, np.arange(5000), 8),
        uniforms(0, 0, np.arange(5000) + 1, 8),
        uniforms(0, 0, np.arange(5000), 8, stream=1),
    ]
    for other in others:
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.02
    assert np.abs(np.corrcoef(u.T) - np.eye(8)).max() < 0.06


def test_numbers_of_an_image_do_not_depend_on_the_batch() -> None:
    all_images = uniforms(3, 7, np.arange(100), 5)
    assert np.array_equal(all_images[[40, 2]], uniforms(3, 7, np.array([40, 2]), 5))
    assert len(np.unique(all_images)) == all_images.size


def test_seed_epoch_and_stream_are_not_interchangeable() -> None:
    numbers = [
        tuple(uniforms(seed, epoch, np.array([0]), 2, stream)[0])
        for seed in range(4)
        for epoch in range(4)
        for stream in range(4)
    ]
    assert len(set(numbers)) == 64


def test_streams_are_distinct_for_any_number_of_views() -> None:
    streams = [*(stream for name, stream in Stream.__members__.items() if not name.startswith("VIEW_"))]
    streams += [view_stream(view) for view in range(64)]
    assert len(set(streams)) == len(streams)
    assert [view_stream(view) for view in range(3)] == [Stream.VIEW_1, Stream.VIEW_2, Stream.VIEW_3]


def test_stream_values_are_fixed() -> None:
    """A changed value would change the random numbers of all runs."""
    values = {name: int(stream) for name, stream in Stream.__members__.items()}
    assert values == {
        "VIEW_1": 0, "VIEW_2": 1, "VIEW_3": 2, "SAMPLE_ORDER": 3, "SHARD_ORDER": 5, "SHARD_BUFFER": 6,
        "TRAIN_TEST_SPLIT": 7, "VIEW_TRANSFORM": 8, "SUBSTITUTE": 9, "SHARD_SUBSTITUTE": 10, "SHARD_START": 11,
        "LABEL_SUBSET": 12, "NETWORK": 13, "OBJECTIVE": 14, "FURTHER_VIEWS": 1000,
    }  # fmt: skip
