"""What reads texts from outside, given whatever comes: an answer or one clear error, and never a believed falsehood.

100 inputs each at every commit; `python tests/fuzz.py 1000000` for as many as one likes.
"""

import json

import pytest
from fuzz import Readers, feed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.runs.errors import redact, visible
from workbench.runs.identity import CHECKSUM, seal, unseal
from workbench.runs.recipe import format_yaml, parse_yaml

often = settings(max_examples=100, suppress_health_check=list(HealthCheck))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
mappings = st.dictionaries(st.text(max_size=8).filter(lambda name: name != CHECKSUM), plain, max_size=5)


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> Readers:
    return Readers(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("name", [name for name in dir(Readers) if name.startswith("read_")])
def test_what_is_changed_at_random_is_read_or_refused_in_words(readers, name):
    feed(getattr(readers, name), 0, 100)


def test_a_reader_that_cannot_stand_an_input_is_found():
    with pytest.raises(AssertionError, match="seed 3: KeyError"):
        feed(_breaks, 3)


def _breaks(rng) -> None:
    raise KeyError(rng.random())


@often
@given(st.text() | st.text(alphabet="ab:{}[]&*-,?! \n\t'\"#|>", max_size=80))
def test_any_text_is_yaml_or_an_error_in_words(text):
    try:
        parse_yaml(text)
    except ValueError as error:
        assert str(error)


@often
@given(mappings)
def test_plain_values_survive_being_written_as_yaml_and_sealed(values):
    assert unseal(seal(values), required=True) == values
    # Not every letter can stand in YAML.
    if all(letter.isprintable() for letter in json.dumps(values, ensure_ascii=False)):
        assert parse_yaml(format_yaml(values)) == values


@often
@given(mappings, st.data())
def test_damage_to_a_sealed_file_is_noticed_or_changes_nothing(values, data):
    text = seal(values).encode()
    at = data.draw(st.integers(0, len(text) - 1))
    how = data.draw(st.sampled_from(["flipped", "cut", "zeroed", "twice"]))
    part = {"flipped": bytes([text[at] ^ (1 << data.draw(st.integers(0, 7)))]), "cut": b"", "zeroed": b"\0"}
    damaged = text[:at] + part.get(how, text[at : at + 1] * 2) + text[at + 1 :]
    try:
        found = unseal(damaged.decode("utf-8"))
    except ValueError:
        return
    # The name of the checksum itself may be hit: what it stood for is as it was.
    assert {name: found.get(name) for name in values} == values


@often
@given(st.text(), st.integers(1, 50))
def test_what_is_shown_on_a_terminal_is_one_printable_line(text, limit):
    assert visible(text, limit).isprintable() and len(visible(text, limit)) <= limit


@often
@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), plain)
def test_a_key_is_found_wherever_it_stands(key, value):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OPENAI_API_KEY", key)
        for said in (
            {"a": [value, key]},
            {f"x{key}y": repr(key)},
            {"a": json.dumps({"k": key})},
            [f"http://h/?k={key}"],
        ):
            assert key not in json.dumps(redact(said), ensure_ascii=False).replace("[key]", "")
