import numpy as np
from scipy import stats

from mec.data.rng import uniforms


def test_uniform_and_independent_across_every_axis() -> None:
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


def test_a_images_numbers_do_not_depend_on_the_batch() -> None:
    whole = uniforms(3, 7, np.arange(100), 5)
    assert np.array_equal(whole[[40, 2]], uniforms(3, 7, np.array([40, 2]), 5))
    assert len(np.unique(whole)) == whole.size


def test_seeds_epochs_and_streams_do_not_stand_in_for_each_other() -> None:
    drawn = [
        tuple(uniforms(seed, epoch, np.array([0]), 2, stream)[0])
        for seed in range(4)
        for epoch in range(4)
        for stream in range(4)
    ]
    assert len(set(drawn)) == 64
