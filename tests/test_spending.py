from concurrent.futures import ThreadPoolExecutor

import pytest

from workbench.models.openai_engine import Budget, Spending
from workbench.runs.cache import Cache


@pytest.fixture
def items(tmp_path):
    return Cache(tmp_path / "items.sqlite")


def test_a_cap_in_tokens_counts_what_is_reserved_and_what_was_taken():
    spending = Spending(Budget(max_tokens=100), None)
    assert spending.reserve(30, 30) and not spending.reserve(30, 30)
    spending.settle((30, 30), (30, 10))
    assert spending.reserve(30, 30) and not spending.reserve(1, 0)


def test_a_cap_in_money_goes_by_the_prices():
    spending = Spending(Budget(max_money=3.0, price_in=1.0, price_out=2.0), None)
    assert spending.reserve(1_000_000, 1_000_000) and spending.money == 3.0
    assert not spending.reserve(1, 0)
    assert "3 in money" in str(spending.stop(7)) and "7 requests" in str(spending.stop(7))


def test_without_a_cap_nothing_is_refused():
    assert Spending(Budget(), None).reserve(10**12, 10**12)


def test_each_account_goes_on_where_it_was_open_reservations_included(items):
    first = Spending(Budget("a"), items)
    first.reserve(5, 7)
    first.save()
    Spending(Budget("b"), items).save()
    again, other = Spending(Budget("a"), items), Spending(Budget("b"), items)
    assert (again.n_in, again.n_out, other.n_in, other.n_out) == (5, 7, 0, 0)


def test_threads_together_do_not_pass_the_cap():
    spending = Spending(Budget(max_tokens=1000), None)
    with ThreadPoolExecutor(16) as pool:
        granted = sum(pool.map(lambda _: spending.reserve(2, 1), range(2000)))
    assert granted == 333 and spending.n_in + spending.n_out == 999
