import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from workbench.loop.item_response import fit_2pl


def simulated(a, b, n_responders: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=n_responders)
    chance = expit(a * (theta[:, None] - b))
    return (rng.random(chance.shape) < chance).astype(float), theta


def test_recovers_the_order_from_many_responders():
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(0, 0.7, 30)), rng.normal(0, 1, 30)
    fitted_a, fitted_b = fit_2pl(simulated(a, b, 1500, 1)[0])
    assert stats.spearmanr(fitted_a, a).statistic > 0.95 and stats.spearmanr(fitted_b, b).statistic > 0.98
    assert np.abs(np.log(fitted_a) - np.log(a)).mean() < 0.15 and np.abs(fitted_b - b).mean() < 0.15


def test_twenty_responders_still_tell_sharp_questions_from_dull_ones():
    a = np.repeat([3.0, 0.2], 20)
    b = np.tile(np.linspace(-1, 1, 20), 2)
    shares = []
    for seed in range(10):
        fitted, _ = fit_2pl(simulated(a, b, 20, seed)[0])
        shares.append((np.argsort(-fitted)[:20] < 20).mean())
    assert np.mean(shares) > 0.8


def test_discrimination_is_positive_and_highest_where_the_able_are_right():
    able = np.repeat([1.0, 0.0], 10)
    right = np.column_stack([able] * 4 + [1 - able, np.tile([1.0, 0.0], 10)])
    a, b = fit_2pl(right)
    assert (a > 0).all() and a[:4].min() > 2 * a[4:].max()
    assert np.abs(b[:4]).max() < 0.2


def test_difficulty_rises_with_the_share_of_wrong_answers():
    right = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=float)
    assert (np.diff(fit_2pl(right)[1]) > 0).all()


def test_the_priors_keep_what_no_data_can_settle_finite():
    everyone_right = np.ones((8, 3))
    a, b = fit_2pl(everyone_right)
    assert np.isfinite(a).all() and np.isfinite(b).all() and (b < 0).all() and (np.abs(b) < 5).all()
    # One answer says next to nothing, so the fit stays at the priors' mode, 1 and 0.
    a, b = fit_2pl(np.array([[1.0]]))
    assert a[0] == pytest.approx(1, abs=0.4) and b[0] == pytest.approx(0, abs=0.6)


def test_the_order_of_responders_and_questions_changes_nothing():
    right, _ = simulated(np.linspace(0.3, 3, 12), np.linspace(-1, 1, 12), 40, 2)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(40), rng.permutation(12)
    a, b = fit_2pl(right)
    shuffled_a, shuffled_b = fit_2pl(right[rows][:, columns])
    np.testing.assert_allclose(shuffled_a, a[columns], rtol=5e-3)
    np.testing.assert_allclose(shuffled_b, b[columns], atol=5e-3)
    np.testing.assert_array_equal(fit_2pl(right)[0], a)


def test_right_and_wrong_turned_round_turn_the_difficulty_round():
    right, _ = simulated(np.linspace(0.5, 2, 8), np.linspace(-1, 1, 8), 60, 3)
    a, b = fit_2pl(right)
    turned_a, turned_b = fit_2pl(1 - right)
    np.testing.assert_allclose(turned_a, a, rtol=1e-2)
    np.testing.assert_allclose(turned_b, -b, atol=1e-2)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((0, 3)), np.zeros((3, 0)), np.array([1.0, 0.0]), np.array([[0.5, 1.0]]), np.array([[np.nan, 1.0]])],
)
def test_anything_but_a_table_of_0_and_1_is_refused(wrong):
    with pytest.raises(ValueError, match=r"right must be a table of 0 and 1 \(responders x questions\), got shape"):
        fit_2pl(wrong)
