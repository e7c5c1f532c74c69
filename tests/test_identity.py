"""What a step takes for the same argument, for another one, and for one of which it cannot tell."""

import functools
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.loop.writing import OnePrompt
from workbench.runs import identity
from workbench.runs.errors import RunError
from workbench.runs.identity import content_of, fingerprint, function_of, identify
from workbench.runs.recipe import Pairs, canonical_json

FRAME = pd.DataFrame({"id": ["a", "b", "c"], "n": [1, 2, 3], "value": [0.5, np.nan, 1.5], "kept": [True, False, True]})


def test_a_frame_is_the_same_by_content_whatever_its_index_and_attributes():
    shown = FRAME.set_axis([7, 8, 9])
    shown.attrs["counts"] = {"rows": 3}
    assert content_of(shown) == content_of(FRAME.copy()) == content_of(FRAME)
    assert identify(FRAME) == {"frame": content_of(FRAME)}


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.assign(n=[1, 2, 4]),
        lambda frame: frame.assign(value=[0.5, 0.0, 1.5]),
        lambda frame: frame.assign(n=frame["n"].astype("int32")),
        lambda frame: frame.rename(columns={"n": "m"}),
        lambda frame: frame[["n", "id", "value", "kept"]],
        lambda frame: frame[::-1],
        lambda frame: frame.head(2),
        lambda frame: frame.assign(more=1),
        lambda frame: frame.head(0),
    ],
)
def test_a_frame_with_other_rows_columns_types_or_order_is_another(change):
    assert content_of(change(FRAME)) != content_of(FRAME)


def test_a_frame_read_back_from_parquet_is_the_one_that_was_written(tmp_path):
    FRAME.to_parquet(tmp_path / "frame.parquet")
    again = pd.read_parquet(tmp_path / "frame.parquet")
    again.to_parquet(tmp_path / "again.parquet")
    assert content_of(pd.read_parquet(tmp_path / "again.parquet")) == content_of(again)


def test_a_section_is_the_same_by_its_values():
    assert identify(Pairs(min_gap=0.1)) == identify(Pairs(min_gap=0.1, quantile=Pairs().quantile))
    assert identify(Pairs(min_gap=0.1)) != identify(Pairs(min_gap=0.2))


@dataclass(frozen=True)
class Limits:
    low: int
    high: int = 9


@dataclass(frozen=True)
class OtherLimits:
    low: int
    high: int = 9


def test_a_dataclass_is_the_same_by_its_type_and_its_fields():
    assert identify(Limits(1)) == identify(Limits(1, 9)) != identify(Limits(2))
    assert identify(Limits(1)) != identify(OtherLimits(1))
    assert (
        identify(OnePrompt({"t": "p"}, 1)) == identify(OnePrompt({"t": "p"}, 1)) != identify(OnePrompt({"t": "q"}, 1))
    )


@dataclass(frozen=True)
class Keyed:
    key: str
    seen: list = field(default_factory=list)


def test_what_has_a_key_is_the_same_by_that_alone():
    assert identify(Keyed("k", [1])) == identify(Keyed("k")) == {"key": "k"} != identify(Keyed("other"))


class Colour(Enum):
    RED = 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
)
def test_plain_values_identify_themselves(value):
    assert identify(value) == value and fingerprint(identify(value)) == fingerprint(value)


def test_what_stands_for_a_plain_value_is_one():
    assert identify([np.int64(3), np.float64(0.5), np.bool_(True)]) == [3, 0.5, True]
    assert identify((1, 2)) == [1, 2] and identify(Colour.RED) == "RED"
    nested = {"frames": {"a": FRAME}, "numbers": [1, (2,)]}
    assert identify(nested) == {"frames": {"a": {"frame": content_of(FRAME)}}, "numbers": [1, [2]]}


def test_whatever_is_identified_can_be_written_into_a_manifest():
    values = [FRAME, Pairs(), Limits(1), Keyed("k"), Colour.RED, np.float32(1), functools.partial(share, at=1), share]
    assert all(canonical_json(identify(value)) for value in values)


def share(values, at=0):
    return values > at


def test_a_function_of_the_workbench_is_the_same_by_name_and_version(monkeypatch):
    named = function_of(content_of)
    assert named == "workbench.runs.identity.content_of 1" and identify(content_of) == named
    monkeypatch.setattr(identity, "VERSION", 2, raising=False)
    assert function_of(content_of) == "workbench.runs.identity.content_of 2"


def defined(folder: Path, text: str):
    """Return the function `mine` of a file with that text, as a cell or a module of one's own would define it."""
    file = folder / "mine.py"
    file.write_text(text)
    names = {"__name__": "mine"}
    exec(compile(text, str(file), "exec"), names)
    return names["mine"]


def test_a_function_of_ones_own_is_the_same_by_its_text(tmp_path):
    texts = ["def mine(x):\n    return x + 1\n", "def mine(x):\n    return x + 1\n", "def mine(x):\n    return x + 2\n"]
    found = []
    for n, text in enumerate(texts):
        folder = tmp_path / str(n)
        folder.mkdir()
        found.append(function_of(defined(folder, text)))
    assert found[0] == found[1] != found[2] and found[0].startswith("mine.mine ")


def test_a_partial_is_the_same_by_function_and_what_it_is_given():
    one = functools.partial(share, at=1)
    assert identify(one) == identify(functools.partial(share, at=1)) != identify(share)
    assert identify(one) != identify(functools.partial(share, at=2))
    assert identify(functools.partial(share, FRAME)) != identify(functools.partial(share, FRAME.head(1)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "settings is object, of which a step cannot tell when it is another"),
        ({"a": [1, {2, 3}]}, r"settings\['a'\]\[1\] is set"),
        (np.zeros(2), "settings is ndarray"),
        (Path("x"), "settings is .*Path"),
    ],
    ids=["object", "set in a list", "array", "path"],
)
def test_what_cannot_be_told_is_refused_by_name(value, said):
    with pytest.raises(RunError, match=said) as error:
        identify(value, "settings")
    assert "\n" not in str(error.value) and "give a frame" in str(error.value)


def test_a_function_whose_text_cannot_be_read_is_refused():
    names: dict = {"__name__": "nowhere"}
    exec("def mine(x):\n    return x\n", names)
    with pytest.raises(RunError, match=r"The text of nowhere\.mine cannot be read.*define it in a cell or a file"):
        identify(names["mine"])
