"""Every signal by hand, and on the shipped students: alone or together, in any order, what fails is never the best."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from probed_run import recipe_of, write_run
from test_influence import draw, paper  # noqa: F401 (a fixture)
from test_loading import tiny_folder
from torch.nn.functional import cosine_similarity

from workbench.models import loading
from workbench.models.packed_losses import Text
from workbench.models.start import students_of, teacher_of
from workbench.runs import schemas
from workbench.runs.errors import ModelError
from workbench.runs.recipe import SIGNALS
from workbench.signals import likelihood, measured_gain
from workbench.signals.by_name import PASSES, measure_signals
from workbench.signals.likelihood import Reading, answer_reward, learning_cost, rank_surprisal, read
from workbench.signals.measured_gain import Questions, gains_along
from workbench.signals.scores import self_consistency
from workbench.signals.warm_up import WarmUp, texts_of, trainable
from workbench.tasks.answers import Answers
from workbench.tasks.task import load_tasks

CHEAP = [name for name in SIGNALS if name != "measured_gain"]


def reading(surprisal, rank, n_prompt=2, states=None, plain=None) -> Reading:
    n = len(surprisal) + 1
    states = torch.ones(n, 1) if states is None else torch.tensor(states, dtype=torch.float64)
    plain = np.ones(n, bool) if plain is None else np.array(plain)
    return Reading(n_prompt, np.array(surprisal, float), np.array(rank), states, plain, 1000)


def test_likelihood_and_rank_surprisal_by_hand():
    # The prompt's token (surprisal 9) does not count; of the completion's three, ranks are 1, 4 and 250.
    one = reading([9.0, 0.5, 1.5, 4.0], [7, 1, 4, 250])
    assert likelihood.likelihood(one) == pytest.approx(-2.0)
    assert rank_surprisal(one) == pytest.approx(-(1 + 4 + 100) / 6.0)
    # A tenth of a small vocabulary.
    assert rank_surprisal(replace(one, vocabulary=104)) == pytest.approx(-(1 + 4 + 10) / 6.0)
    assert math.isfinite(rank_surprisal(reading([1.0, 0.0], [1, 1])))


def test_learning_cost_by_hand_and_pair_by_pair():
    # Prompt: two tokens; completion: two tokens and a special one, which is left out.
    states = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    one = reading([2.0, 1.0, 3.0, 50.0], [1] * 4, states=states, plain=[True, True, True, True, False])
    # a = 2, q = 2; cosines of the completion's tokens: 1, 0, 0, 1; with the prompt's: 1, 0, 0, 1.
    assert learning_cost(one) == pytest.approx(-(0.5 * 4 * 0.5 + 0.5 * 4 * 0.5))
    vectors = torch.nn.functional.normalize(
        torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double(), dim=1
    )
    surprisal = np.linspace(0.2, 3.0, 6)
    a, q = surprisal[2:].mean(), surprisal[:2].mean()

    def pairs(ones, others):
        return np.mean([float(cosine_similarity(vectors[i], vectors[j], 0)) for i in ones for j in others])

    within, across = pairs(range(3, 7), range(3, 7)), pairs(range(3, 7), range(3))
    expected = -(0.5 * a * a * within + 0.5 * a * q * across)
    assert learning_cost(reading(surprisal, [1] * 6, 3, vectors.tolist())) == pytest.approx(expected)


def test_what_learning_cost_cannot_score_is_not_the_best():
    nothing_left = reading([2.0, 1.0, 3.0], [1] * 3, plain=[True, True, False, False])
    assert math.isnan(learning_cost(nothing_left)) and learning_cost(reading([2.0, 1.0, 3.0], [1] * 3)) < 0


def test_answer_reward_by_hand():
    answer, student, teacher = np.array([-0.2, -1.0]), np.array([-1.0, -2.0]), np.array([-0.5, -0.4])
    alone = -0.6 + 0.01 * -1.0
    assert answer_reward(answer, student, None) == pytest.approx(alone)
    # d is 0.5 and 1.6: an explanation that only one who knows the answer would write is punished.
    assert answer_reward(answer, student, teacher) == pytest.approx(alone - 3 * (1.05 + 0.01 * 1.6))
    assert answer_reward(answer, student, student) == pytest.approx(alone)
    assert answer_reward(answer, student[:0], teacher[:0]) == pytest.approx(alone)


def test_a_pass_by_hand(paper):  # noqa: F811
    folder, _ = paper
    loaded = loading.load(folder, device="cpu")
    with torch.no_grad():
        loaded.model.lm_head.weight[6] = 0.5  # hidden states are (1, 1), so this token's logit is 1 and the others' 0
    one = read(loaded, Text([7], [6, 8]))
    rest = math.log(31 + math.e)
    assert one.surprisal == pytest.approx([rest - 1, rest]) and one.rank.tolist() == [1, 2]
    warm = read(loaded, Text([7], [6, 8]), temperature=0.5)
    assert warm.surprisal == pytest.approx([math.log(31 + math.e**2) - 2, math.log(31 + math.e**2)])


def test_the_states_are_those_of_the_last_layer(tmp_path):
    loaded = loading.load(tiny_folder(tmp_path / "student"), device="cpu")
    kept, last = [], loaded.model.model.layers[-1].mlp.up_proj
    hook = last.register_forward_hook(lambda _, __, output: kept.append(output[0]))
    one = read(loaded, Text([5, 6, 7], [8, 2]), states=True)
    hook.remove()
    assert one.states.norm(dim=1).tolist() == pytest.approx([1.0] * 5) and not last._forward_hooks
    assert torch.allclose(one.states, torch.nn.functional.normalize(kept[0].double(), dim=1))
    assert one.plain.tolist() == [True] * 4 + [False]
    del loaded.model.model.layers
    with pytest.raises(ModelError, match=r"mlp.up_proj, and .* has none; take another signal"):
        read(loaded, Text([5], [6]), states=True)


def test_self_consistency_by_hand():
    """After a and b item i is answered alike, after c otherwise, d says nothing; on j all four say nothing."""
    drafts = pd.DataFrame({"draft_id": list("abcd"), "question_id": ["q", "q", "r", "r"], "task": "t"})
    answers = {"a": "3", "b": "3", "c": "4", "d": ""}
    rows = [(draft, item, answers[draft] if item == "i" else "") for draft in "abcd" for item in "ij"]
    probes = pd.DataFrame(rows, columns=["draft_id", "item_id", "answer"])
    probes = probes.assign(student="s", correct=False, parsed=probes["answer"] != "", n_tokens=5)
    found = self_consistency(probes, drafts, {"s": SimpleNamespace(fingerprint="fp")})
    values = schemas.check(found, "signals").set_index("draft_id")["value"]
    assert values[list("abcd")].tolist() == pytest.approx([1 / 6, 1 / 6, 0, 0]) and set(found["signal"]) == {
        "self_consistency"
    }
    assert values["q"] == pytest.approx(1 / 6) and values["r"] == 0.0


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Two questions with four drafts each, and what measures signals of them on a shipped student."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORKBENCH_RUNS", str(tmp_path_factory.mktemp("signals")))
        run = write_run("signals", recipe_of(2, 4, ("ada",)))
        students, teacher, tasks = students_of(run.recipe), teacher_of(run.recipe), load_tasks(run.recipe)
        items = run.read("preference_set")

        def measure(names, drafts=None):
            drafts = run.read("drafts") if drafts is None else drafts
            found = measure_signals(run.read("probes"), drafts, students, names, teacher, tasks, items, 1)
            together = pd.concat(found.values(), ignore_index=True)
            together.attrs |= found["signals"].attrs
            assert set(found["signals"]["signal"]) == {names[0]}
            return together

        yield run, measure


def values_of(table: pd.DataFrame) -> pd.Series:
    return table.set_index(["signal", "item_kind", "draft_id"])["value"].sort_index()


def test_signals_do_not_depend_on_order_or_on_each_other(asked):
    run, measure = asked
    drafts = run.read("drafts")
    table = measure(CHEAP)
    assert set(table["signal"]) == set(CHEAP) and table["value"].notna().all() and set(SIGNALS) < set(PASSES)
    # Eight drafts and two questions.
    assert (table.groupby("signal").size() == 10).all()
    turned = measure(list(reversed(CHEAP)), drafts.iloc[::-1].reset_index(drop=True))
    assert values_of(turned).to_numpy() == pytest.approx(values_of(table).to_numpy(), abs=1e-9)
    alone = measure(["learning_cost"], drafts.iloc[[3]])
    rationale = alone[alone["item_kind"] == "rationale"].iloc[0]
    key = ("learning_cost", "rationale", drafts["draft_id"][3])
    assert rationale["value"] == pytest.approx(values_of(table)[key], abs=1e-9)
    # The student was raised on tallies, and finds them likeliest.
    own = table[(table["signal"] == "surprisal") & (table["item_kind"] == "rationale")].merge(drafts, on="draft_id")
    assert own.loc[own.groupby("question_id")["value"].idxmax(), "technique"].tolist() == ["tally", "tally"]


def test_what_cannot_be_scored_forms_no_value_and_is_counted(asked):
    run, measure = asked
    drafts = run.read("drafts")
    drafts.loc[0, "rationale"] = " one two" * 600 + " <ans>3</ans>"
    names = [name for name in CHEAP if name not in ("one_shot", "self_consistency")]
    table = measure(names, drafts)
    own = table[table["draft_id"] == drafts["draft_id"][0]]
    assert len(own) == len(names) and own["value"].isna().all()
    assert table.attrs["counts"]["drafts not scored by learning_cost"] == 1
    others = table[table["draft_id"] != drafts["draft_id"][0]]
    assert others["value"].notna().all()


def test_gradient_norm_is_that_of_the_mean_loss(asked):
    run, _ = asked
    student, tasks, drafts = students_of(run.recipe)["ada"], load_tasks(run.recipe), run.read("drafts").head(1)
    found = likelihood.measure_likelihoods(["gradient_norm"], student, None, tasks, drafts).iloc[0]
    loaded = loading.load(student.ref, "float32", "cpu")
    rows = likelihood.texts_to_learn(tasks, drafts)
    (text,) = texts_of(loaded.tokenizer, rows)
    labels = torch.tensor([[-100] * len(text.prompt) + text.completion])
    trainable(loaded.model)
    loaded.model(input_ids=torch.tensor([text.prompt + text.completion]), labels=labels).loss.backward()
    parts = [parameter.grad.norm() for parameter in loaded.model.parameters() if parameter.grad is not None]
    assert found["value"] == pytest.approx(float(torch.stack(parts).norm()), rel=1e-4)
    assert found["n"] == len(text.completion) and found["tokens"] == len(text)


def test_tokens_that_are_not_shared_are_not_compared(asked, tmp_path):
    run, _ = asked
    other = students_of(run.recipe)["ada"].trained(tiny_folder(tmp_path / "teacher"))
    given = (students_of(run.recipe)["ada"], other, load_tasks(run.recipe), run.read("drafts").head(1))
    with pytest.raises(ModelError, match="into others; take answer_likelihood_alone"):
        likelihood.measure_likelihoods(["answer_likelihood"], *given)


def test_a_student_is_put_back_after_its_gain_was_measured(tmp_path):
    loaded = loading.load(tiny_folder(tmp_path / "student"), device="cpu", merged=False)
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    texts = texts_of(loaded.tokenizer, draw(4, 1))
    questions = Questions(["w1 w2"], [Answers("exact")], ["w3"], 4)
    found = gains_along(loaded, texts, questions, WarmUp(0, 2, 0.01), [0, 2, 3], seed=1)
    assert [len(one) for one in found] == [1, 1, 1]
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.state_dict().items())
    with pytest.raises(ModelError, match="not finite"):
        gains_along(loaded, texts, questions, WarmUp(0, 2, 1e30), [4], seed=1)
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.state_dict().items())


def test_a_short_training_is_measured_once(asked, monkeypatch):
    run, measure = asked
    drafts = run.read("drafts").head(2)
    table = measure(["measured_gain"], drafts)
    assert table["value"].between(-1, 1).all() and (table["n"] > 0).all()
    monkeypatch.setattr(measured_gain, "gains_along", None)
    assert values_of(measure(["measured_gain"], drafts)).tolist() == values_of(table).tolist()
