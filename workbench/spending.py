"""What a server has been paid for a recipe, in tokens and money, and the cap on it; kept with the finished items."""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.generation import EngineError
from workbench.items import SPENDING
from workbench.store import fingerprint

if TYPE_CHECKING:
    from workbench.store import Items


class BudgetSpent(EngineError):
    """The cap leaves no room for another request; what was answered is kept."""


@dataclass(frozen=True)
class Budget:
    """A cap, 0 for none, on all that is spent in an account, whatever the run; prices are for a million tokens.

    Args:
        account: Who spends, such as "my-recipe/teacher".
        max_tokens: Tokens read and written together.
        max_money: In the currency of the prices.
        price_in: Of a million tokens read.
        price_out: Of a million tokens written.
    """

    account: str = ""
    max_tokens: int = 0
    max_money: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0


class Spending:
    """The running total of an account, safe for several threads.

    A request is reserved at the most it can take before it is sent, and settled at what it took; one whose answer never
    came stays at the most. So the cap is never passed, even after a crash.
    """

    def __init__(self, budget: Budget, items: "Items | None") -> None:
        self.budget, self.items = budget, items
        self._key, self._lock = fingerprint([budget.account]), threading.Lock()
        kept = items.get_many(SPENDING, [self._key]).get(self._key, {}) if items else {}
        self.n_in, self.n_out = kept.get("n_in", 0), kept.get("n_out", 0)

    @property
    def money(self) -> float:
        """What has been spent, in the currency of the prices."""
        return self._cost(self.n_in, self.n_out)

    def reserve(self, n_in: int, n_out: int) -> bool:
        """Count a request at the most it can take, unless that would pass the cap; say whether it may be sent."""
        with self._lock:
            after_in, after_out = self.n_in + n_in, self.n_out + n_out
            budget = self.budget
            if 0 < budget.max_tokens < after_in + after_out or 0 < budget.max_money < self._cost(after_in, after_out):
                return False
            self.n_in, self.n_out = after_in, after_out
            return True

    def settle(self, reserved: tuple[int, int], took: tuple[int, int]) -> None:
        """Put what a request took in the place of what was reserved for it; both are (read, written)."""
        with self._lock:
            self.n_in += took[0] - reserved[0]
            self.n_out += took[1] - reserved[1]

    def save(self) -> None:
        """Store the total, open reservations included."""
        if self.items:
            with self._lock:
                kept = {"account": self.budget.account, "n_in": self.n_in, "n_out": self.n_out}
            self.items.put_many(SPENDING, {self._key: kept})

    def stop(self, n_left: int) -> BudgetSpent:
        """Return the error that ends the work with so many requests unanswered."""
        budget = self.budget
        cap = f"{budget.max_tokens} tokens" if budget.max_tokens else f"{budget.max_money:g} in money"
        said = f" ({self.money:.4g} in money)" if budget.price_in or budget.price_out else ""
        return BudgetSpent(
            f"The budget of {cap} leaves no room for another request: {self.n_in + self.n_out} tokens are spent{said} "
            f"by {budget.account or 'this account'} and {n_left} requests are not answered yet; all answers are kept, "
            "so raise budget_tokens or budget_money in the recipe and run the same command again."
        )

    def _cost(self, n_in: int, n_out: int) -> float:
        return (n_in * self.budget.price_in + n_out * self.budget.price_out) / 1e6
