import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.runs.seeding import stream, stream_seed

names = st.lists(st.text(max_size=5), max_size=3).map(tuple)
seeds = st.integers(0, 2**40)


@given(seeds, names)
def test_a_name_is_a_stream(seed, name):
    assert np.array_equal(stream(seed, *name).random(4), stream(seed, *name).random(4))
    assert 0 <= stream_seed(seed, *name) == stream_seed(seed, *name) < 2**63


@given(seeds, names, seeds, names)
def test_different_names_are_different_streams(seed, name, other_seed, other_name):
    same = (seed, name) == (other_seed, other_name)
    assert (stream_seed(seed, *name) == stream_seed(other_seed, *other_name)) is same
    assert np.array_equal(stream(seed, *name).random(2), stream(other_seed, *other_name).random(2)) is same


def test_where_one_name_ends_matters():
    assert stream_seed(0, "a", "bc") != stream_seed(0, "ab", "c")


def test_numbers_may_come_from_numpy():
    assert stream_seed(np.int64(3), "draft", np.int64(1)) == stream_seed(3, "draft", 1)


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    stream(0, "probe").random(10)
    assert np.array_equal(np.random.get_state()[1], before)


def test_first_draws_of_many_streams_are_uniform_and_unrelated():
    first = np.array([stream(0, "item", index).random() for index in range(2000)])
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1
