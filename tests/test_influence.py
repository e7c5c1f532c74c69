import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_loading import WORDS, tiny_folder, tiny_tokenizer
from test_warm_up import SETTINGS, adapter_folder
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.models.loading import fingerprint_model, load
from workbench.models.packed_losses import single
from workbench.runs import schemas
from workbench.runs.errors import ModelError
from workbench.signals import influence
from workbench.signals.difficulty import CheckingJudge
from workbench.signals.influence import JudgedAnswers, SnapshotStudent, measure
from workbench.signals.warm_up import KINDS, OptimizerSnapshot, load_warmed, save_warmed, texts_of, trainable, warm_up
from workbench.tasks.answers import Answers
from workbench.tasks.contamination import Guard
from workbench.tasks.task import Task

NOTHING = Guard({})
RATE = 0.1


def rows(texts: list[tuple[str, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(texts, columns=["prompt", "completion"])
    return frame.assign(draft_id=[f"d{n}" for n in range(len(frame))], item_kind="rationale", question=frame["prompt"])


def draw(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)

    def words(low, high):
        return " ".join(rng.choice(WORDS[6:], rng.integers(low, high)))

    return rows([(words(2, 8), words(1, 6)) for _ in range(n)])


REFERENCE, CANDIDATES = draw(6, 1), draw(10, 2)


# A student small enough for paper: no layers, so a token's logits depend on that token alone, and every hidden state
# is (1, 1). Logits start at 0, and only the rows of the output matrix can move: the other weights' second moments are
# so large that AdamW leaves them where they are.


@pytest.fixture(params=[0])
def paper(tmp_path, runs, request):
    """Return a function that writes a warmed state with the given moments and weight decay, and the model's folder."""
    folder = tmp_path / "paper"
    shape = dict(hidden_size=2, intermediate_size=2, num_attention_heads=1, vocab_size=len(WORDS))
    shape["num_hidden_layers"] = request.param
    model = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-14, pad_token_id=0, eos_token_id=2))
    torch.nn.init.ones_(model.model.embed_tokens.weight)
    torch.nn.init.zeros_(model.lm_head.weight)
    for layer in model.model.layers:  # which then adds nothing
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight), torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)

    def warmed(steps=0, exp_avg=(0.0, 0.0), exp_avg_sq=0.0, weight_decay=0.0, eos_weight=0.0):
        weights = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
        first = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        second = {name: torch.full_like(tensor, 1e30) for name, tensor in weights.items()}
        weights["lm_head.weight"][2] = eos_weight
        second["lm_head.weight"][:] = exp_avg_sq
        first["lm_head.weight"][2], first["lm_head.weight"][6] = exp_avg
        adamw = {"learning_rate": RATE, "beta1": 0.9, "beta2": 0.999, "eps": 1e-12, "weight_decay": weight_decay}
        tensors = dict(zip(KINDS, (weights, first, second), strict=True))
        save_warmed(OptimizerSnapshot(fingerprint_model(folder), steps, adamw, tensors), tmp_path / "warmed")
        return tmp_path / "warmed"

    return str(folder), warmed


def one(student, warmed, candidate, reference) -> pd.Series:
    return measure(student, warmed, rows([candidate]), rows(reference), NOTHING, device="cpu").iloc[0]


def loss_of_end(logits: dict[str, float]) -> float:
    """Return -log p of the end token when the words named have these logits and the others of the 32 have 0."""
    rest = len(WORDS) - len(logits)
    return math.log(rest + sum(math.exp(value) for value in logits.values())) - logits["<eos>"]


def test_the_definition_by_hand(paper):
    student, warmed = paper
    # Without moments AdamW's first step is the learning rate times the gradient's sign. The candidate is the end token
    # after w1: the gradient pulls its row up and each of the other 31 down. Both entries of a row count: 2 x 0.1.
    found = one(student, warmed(), ("w1", ""), [("w1", "")])
    logits = {"<eos>": 0.2} | {f"other{n}": -0.2 for n in range(31)}
    assert found["value"] == pytest.approx(math.log(32) - loss_of_end(logits), abs=1e-6)
    assert found["value"] > 0 and found["zero_step"] == pytest.approx(0, abs=1e-6)
    assert found["raw"] == pytest.approx(found["value"], abs=1e-6)
    # Two reference tokens, w0 and the end: one loses 0.4 to the other, and the mean is over both.
    found = one(student, warmed(), ("w1", ""), [("w1", "w0")])
    end = loss_of_end(logits)
    assert found["value"] == pytest.approx(math.log(32) - (end + (end + 0.4)) / 2, abs=1e-6)


def test_an_example_against_the_reference_has_a_negative_influence(paper):
    student, warmed = paper
    # The candidate raises w0 and the end token after w1; the reference wants w5, twenty times.
    found = one(student, warmed(), ("w1", "w0"), [("w2", " ".join(["w5"] * 20))])
    end = loss_of_end({"<eos>": 0.2, "w0": 0.2} | {f"other{n}": -0.2 for n in range(30)})
    assert found["value"] == pytest.approx(math.log(32) - (20 * (end + 0.4) + end) / 21, abs=1e-6)
    assert found["value"] < -0.01 and found["raw"] < -0.01


def test_momentum_and_weight_decay_by_hand(paper):
    student, warmed = paper

    def moved(weight: float, exp_avg: float, gradient: float) -> float:
        first, second = 0.9 * exp_avg + 0.1 * gradient, 0.999 * 1.0 + 0.001 * gradient**2
        up = -first / (1 - 0.9**10) / math.sqrt(second / (1 - 0.999**10))
        return weight * (1 - RATE * 0.5) + RATE * up

    # Nine steps were taken; the end token's row stands at 0.3 with momentum -1, all second moments at 1.
    state = warmed(steps=9, exp_avg=(-1.0, 0.0), exp_avg_sq=1.0, weight_decay=0.5, eos_weight=0.3)
    found = one(student, state, ("w1", ""), [("w1", "")])
    before = loss_of_end({"<eos>": 2 * 0.3})
    # The norm before the output decays too, from 1 to 0.95, so the hidden state is (0.95, 0.95) after a step.
    zero = loss_of_end({"<eos>": 1.9 * moved(0.3, -1, 0)})
    assert found["zero_step"] == pytest.approx(before - zero, abs=1e-6) and abs(found["zero_step"]) > 1e-3
    # The gradient of the end token's row is p - 1 in both entries, that of each of the 31 others their share of 1 - p.
    p = math.exp(-before)
    others = {f"other{n}": 1.9 * moved(0, 0, (1 - p) / 31) for n in range(31)}
    after = loss_of_end({"<eos>": 1.9 * moved(0.3, -1, p - 1)} | others)
    assert found["raw"] == pytest.approx(before - after, abs=1e-6)
    assert found["value"] == pytest.approx(zero - after, abs=1e-6) and found["value"] > 1e-3


def test_the_mean_is_over_tokens(paper):
    student, warmed = paper
    reference = [("w1", "w0 w0 w0"), ("w1", ""), ("w1", "")]
    end = loss_of_end({"<eos>": 0.2} | {f"other{n}": -0.2 for n in range(31)})
    helped, harmed = math.log(32) - end, math.log(32) - (end + 0.4)
    found = one(student, warmed(), ("w1", ""), reference)
    assert found["value"] == pytest.approx((3 * harmed + 3 * helped) / 6, abs=1e-6)
    # Per text the sum of differences is 3 harmed + helped, helped, helped; it is a ratio to 4, 1 and 1 tokens.
    off = np.array([3 * harmed + helped, helped, helped]) - found["value"] * np.array([4, 1, 1])
    assert found["stderr"] == pytest.approx(np.sqrt((off**2).sum() * 3 / 2) / 6, rel=1e-4)
    assert (found["n"], found["tokens"]) == (3, 2 + 5 + 2 + 2)


@dataclass(frozen=True)
class PartialJudge:
    """Judges as a checking judge does, but not the question after w2, and counts how often it is asked."""

    judge: CheckingJudge
    times: list = field(default_factory=list)

    def __call__(self, asked: pd.DataFrame) -> pd.DataFrame:
        self.times.append(len(asked))
        scores = self.judge(asked)
        return scores.mask(asked["question"] == "w2")


def judged_step(student, warmed, candidates, judge=None) -> pd.DataFrame:
    reference = rows([("w1", "w0"), ("w2", "w0"), ("w3", "w0"), ("w4", "w5")])
    asked = reference.assign(task="t", target=reference["completion"])
    nothing = rows([])[["question"]].assign(target="")
    task = Task("t", "", {}, nothing, nothing, nothing, "", answers=Answers("regex", r"w\d+"))
    judged = JudgedAnswers(judge or CheckingJudge({"t": task}), asked, 1)
    given = (rows(candidates), reference, NOTHING, "s", "cpu")
    return schemas.check(measure(student, warmed, *given, judged=judged), "influences")


# Writing needs a layer.
@pytest.mark.parametrize("paper", [1], indirect=True)
def test_what_a_judge_sees_of_a_step_by_hand(paper):
    student, warmed = paper
    # Momentum alone raises w0 a little, so the step at zero gradient makes the student say w0: three of four are right.
    # A step on w5 raises that by ten times as much: the student says w5, and one of four is right. Before any step all
    # words are alike and the first of the vocabulary, a sign that is not shown, comes: none is right.
    state = warmed(steps=9, exp_avg=(0.0, -0.01), exp_avg_sq=1.0, eos_weight=-0.5)
    found = judged_step(student, state, [("w1", "w5"), ("w1", "w0")])
    assert found["zero_step"].tolist() == [0.75, 0.75]
    assert found["value"].tolist() == [-0.5, 0.0] and found["raw"].tolist() == [0.25, 0.75]
    assert set(found["how"]) == {"judge"} and set(found["n"]) == {4}
    # Changes -1, -1, -1, +1: each off its mean -0.5 by 0.5, 0.5, 0.5 and 1.5.
    assert found["stderr"][0] == pytest.approx(math.sqrt((3 * 0.25 + 2.25) / 3 / 4)) and found["stderr"][1] == 0


@pytest.mark.parametrize("paper", [1], indirect=True)
def test_a_step_that_lets_the_student_say_what_is_right_is_helpful_and_what_is_not_judged_changes_nothing(paper):
    student, warmed = paper
    state = warmed(eos_weight=-0.5)
    found = judged_step(student, state, [("w1", "w0"), ("w1", "w5")])
    assert found["value"].tolist() == [0.75, 0.25] and found["zero_step"].tolist() == [0.0, 0.0]
    nothing = rows([])[["question"]].assign(target="")
    task = Task("t", "", {}, nothing, nothing, nothing, "", answers=Answers("regex", r"w\d+"))
    judge = PartialJudge(CheckingJudge({"t": task}))
    partly = judged_step(student, state, [("w1", "w0")], judge)
    assert partly["value"].tolist() == [0.5] and judge.times == [4, 4, 4]  # before, at zero gradient, and after
    again = judged_step(student, state, [("w1", "w0")], PartialJudge(CheckingJudge({"t": task})))
    assert again.equals(partly)
    # Losses are stored apart from scores.
    assert one(student, state, ("w1", "w0"), [("w1", "w0")])["value"] not in (0.75, 0.5)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "student", initializer_range=0.1))


@pytest.fixture(scope="module")
def warm(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("warmed") / "state"
    warm_up(student, draw(12, 0), SETTINGS, 0, folder, "cpu")
    return folder


def measured(student, warm, candidates=CANDIDATES, reference=REFERENCE, workers=1) -> pd.DataFrame:
    return measure(student, warm, candidates, reference, NOTHING, "s", "cpu", workers)


def first_order(ref, warm) -> pd.Series:
    """Return influence as the movement beyond that at zero gradient times the reference gradient where that leads."""
    state = load_warmed(warm)
    student = SnapshotStudent(ref, state, "cpu", state.adamw["learning_rate"])
    asked, texts = (texts_of(student.loaded.tokenizer, frame) for frame in (REFERENCE, CANDIDATES))

    def gradient_of(text):
        return student.gradient_of(single(text, student.model.device)).clone()

    def sums():
        return sum(gradient_of(text) * len(text.completion) for text in asked)

    gradient = student.after_update(student.zero_gradient_update, sums) / sum(len(text.completion) for text in asked)
    movements = [student.adamw_update(gradient_of(text)) - student.zero_gradient_update for text in texts]
    return pd.Series([float(one @ gradient) * -student.learning_rate for one in movements])


def at_rate(warm, rate: float, folder):
    """Return the folder of the same warmed state, with another learning rate of the next step."""
    state, target = load_warmed(warm), folder / f"at {rate:g}"
    save_warmed(replace(state, adamw=state.adamw | {"learning_rate": rate}), target)
    return target


def test_exact_is_what_torch_and_a_plain_loop_give(student, warm, runs):
    found = schemas.check(measured(student, warm), "influences").set_index("draft_id")
    for row in CANDIDATES.itertuples():
        before, after = plain_loop(student, load_warmed(warm), row.prompt, row.completion)
        assert found.loc[row.draft_id, "raw"] == pytest.approx(before - after, abs=2e-6)
    before, after = plain_loop(student, load_warmed(warm), None, None)
    assert found["zero_step"].unique() == [pytest.approx(before - after, abs=2e-6)]
    assert found["value"].std() > 1e-3  # else nothing was compared


def plain_loop(student, warmed, prompt, completion) -> tuple[float, float]:
    """Return the reference loss before and after one step of torch's AdamW, no example meaning zero gradient."""
    loaded = load(student, device="cpu")
    parameters = dict(loaded.model.named_parameters())
    settings = warmed.adamw
    adamw = torch.optim.AdamW(
        parameters.values(),
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    for name, parameter in parameters.items():
        parameter.data.copy_(warmed.tensors["weights"][name])
        moments = {kind: warmed.tensors[kind][name].clone() for kind in KINDS[1:]}
        adamw.state[parameter] = {"step": torch.tensor(float(warmed.steps)), **moments}

    def loss(prompt, completion):
        start, end = (loaded.tokenizer(text)["input_ids"] for text in (prompt, completion))
        labels = torch.tensor([[-100] * len(start) + end + [2]])
        return loaded.model(torch.tensor([start + end + [2]]), labels=labels).loss, len(end) + 1

    def reference_loss():
        with torch.no_grad():
            found = [loss(row.prompt, row.completion) for row in REFERENCE.itertuples()]
        return sum(mean.item() * n for mean, n in found) / sum(n for _, n in found)

    before = reference_loss()
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    if prompt is not None:
        loss(prompt, completion)[0].backward()
    adamw.step()
    return before, reference_loss()


def test_weights_and_optimiser_state_are_restored_to_the_bit(student, warm):
    state = load_warmed(warm)
    warmed = SnapshotStudent(student, state, "cpu", 1e-2)
    kept = [tensor.clone() for tensor in (warmed.weights, warmed.exp_avg, warmed.exp_avg_sq)]
    parameters = dict(warmed.model.named_parameters())
    movement = warmed.adamw_update(torch.ones_like(warmed.weights))

    def moved():
        assert all((parameter != state.tensors["weights"][name]).any() for name, parameter in parameters.items())
        return torch.zeros(())

    warmed.after_update(movement, moved)

    def failing():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warmed.after_update(movement, failing)
    for before, after in zip(kept, (warmed.weights, warmed.exp_avg, warmed.exp_avg_sq), strict=True):
        assert torch.equal(before, after)
    assert all(torch.equal(parameter, state.tensors["weights"][name]) for name, parameter in parameters.items())


def test_order_and_duplicates_change_nothing(student, warm, runs, monkeypatch):
    found = measured(student, warm)
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs / "other"))
    twice = pd.concat([CANDIDATES.assign(draft_id="again " + CANDIDATES["draft_id"]), CANDIDATES[::-1]])
    other = measured(student, warm, twice).set_index("draft_id")
    for prefix in ("", "again "):
        same = other.loc[prefix + found["draft_id"]].reset_index()
        pd.testing.assert_frame_equal(same.drop(columns="draft_id"), found.drop(columns="draft_id"))


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(student, warm, runs, monkeypatch):
    found = measured(student, warm)
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs / "other"))
    pd.testing.assert_frame_equal(measured(student, warm, workers=2), found)


def count_steps(monkeypatch) -> list[str]:
    stepped, movement_on = [], influence._movement_on

    def counted(student, candidate):
        stepped.append(candidate.name)
        return movement_on(student, candidate)

    monkeypatch.setattr(influence, "_movement_on", counted)
    return stepped


def test_a_killed_call_goes_on_and_scores_no_candidate_twice(student, warm, runs, tmp_path, monkeypatch):
    log = tmp_path / "stepped"
    code = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_influence import *
movement_on = influence._movement_on
def deadly(student, candidate):
    with open({str(log)!r}, "a+") as file:
        file.seek(0)
        if len(file.readlines()) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(candidate.name + "\\n")
    return movement_on(student, candidate)
influence._movement_on = deadly
measured({student!r}, {str(warm)!r})
"""
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | {"WORKBENCH_RUNS": str(runs)})
    assert ended.returncode == -signal.SIGKILL
    before = log.read_text().split()
    stepped = count_steps(monkeypatch)
    found = measured(student, warm)
    assert len(before) == 4 and sorted(before + stepped) == sorted(CANDIDATES["draft_id"])
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs / "other"))
    pd.testing.assert_frame_equal(measured(student, warm), found)


def test_a_change_of_anything_that_matters_steps_again(student, warm, runs, tmp_path, monkeypatch):
    stepped, candidate = count_steps(monkeypatch), CANDIDATES[:1]

    def steps_again(student=student, warm=warm, candidate=candidate, reference=REFERENCE):
        stepped.clear()
        measured(student, warm, candidate, reference)
        return bool(stepped)

    other = str(tiny_folder(tmp_path / "other", seed=3))
    warm_up(other, draw(12, 0), SETTINGS, 0, tmp_path / "of other", "cpu")
    warm_up(student, draw(12, 0), SETTINGS, 1, tmp_path / "seed 1", "cpu")
    assert steps_again() and not steps_again()
    changes = {
        "completion": lambda: steps_again(candidate=candidate.assign(completion="w3 w3")),
        "prompt": lambda: steps_again(candidate=candidate.assign(prompt="w3 w3")),
        "reference": lambda: steps_again(reference=REFERENCE[:5]),
        "warmed state": lambda: steps_again(warm=tmp_path / "seed 1"),
        "student": lambda: steps_again(other, tmp_path / "of other"),
        "learning rate": lambda: steps_again(warm=at_rate(warm, 1e-4, tmp_path)),
        "version": lambda: monkeypatch.setattr(influence, "VERSION", -1) or steps_again(),
    }
    for name, change in changes.items():
        assert change(), f"a change of {name} was answered from the items"
        assert not change(), f"the same {name} again was computed again"
    assert not steps_again(candidate=candidate.assign(draft_id="renamed"))


def test_exact_becomes_first_order_as_the_step_becomes_small(student, warm, runs, tmp_path):
    errors = []
    for rate in (3e-3, 3e-4, 3e-5):
        state = at_rate(warm, rate, tmp_path)
        exact, first = measured(student, state)["value"], first_order(student, state)
        errors.append((exact - first).abs().max() / exact.std())
    # What first order leaves out grows with the square of the rate, what it has with the rate.
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 0.01
    assert exact.rank().equals(first.rank())


def test_an_adapter_moves_alone(tmp_path, runs):
    adapter = str(adapter_folder(tmp_path))
    warm_up(adapter, draw(12, 0), SETTINGS, 0, tmp_path / "state", "cpu")
    state = at_rate(tmp_path / "state", 1e-4, tmp_path)
    exact = measured(adapter, state)["value"]
    assert exact.corr(first_order(adapter, state)) > 0.99 and exact.std() > 0
    warmed = SnapshotStudent(adapter, load_warmed(tmp_path / "state"), "cpu", 1e-2)
    n_adapter = sum(tensor.numel() for tensor in load_warmed(tmp_path / "state").tensors["weights"].values())
    assert warmed.weights.numel() == n_adapter


def test_one_candidate_or_none_is_fine(student, warm, runs):
    none, alone = (measured(student, warm, CANDIDATES[:n]) for n in (0, 1))
    assert len(none) == 0 and list(none.columns) == list(alone.columns)
    assert alone["draft_id"].tolist() == ["d0"]


def test_a_reference_set_is_needed_and_apart_from_the_test_set(student, warm, runs):
    with pytest.raises(ModelError, match=r"^There is no reference set; give at least one"):
        measured(student, warm, reference=REFERENCE[:0])
    guard = Guard({"test": [REFERENCE["question"][2].upper() + " !"]})
    message = r"^Reference question '.*' is the same as a test item but for case.*; take it out of the reference set\.$"
    with pytest.raises(ModelError, match=message):
        measure(student, warm, CANDIDATES, REFERENCE, guard, device="cpu")


def test_a_state_of_another_model_is_refused(warm, runs, tmp_path):
    other = str(tiny_folder(tmp_path / "other", seed=3))
    with pytest.raises(ModelError, match=r"^The warmed state was made from model"):
        measured(other, warm)


def test_a_loss_that_is_not_finite_names_the_candidate_and_keeps_the_rest(student, warm, runs, monkeypatch):
    stepped, movement_on = count_steps(monkeypatch), influence._movement_on

    def wild(student, candidate):
        movement = movement_on(student, candidate)
        return movement * math.nan if candidate.name == "d4" else movement

    monkeypatch.setattr(influence, "_movement_on", wild)
    with pytest.raises(ModelError, match=r"after a step on candidate d4 is not finite; lower the learning rate"):
        measured(student, warm)
    n_done = len(stepped) - 1
    monkeypatch.setattr(influence, "_movement_on", movement_on)
    stepped.clear()
    measured(student, warm)
    assert len(stepped) == len(CANDIDATES) - n_done


def test_a_reference_loss_that_is_not_finite_is_refused(paper):
    student, warmed = paper
    with pytest.raises(ModelError, match=r"^The reference loss before any step is not finite; warm the student up"):
        one(student, warmed(eos_weight=3e38), ("w1", ""), [("w1", "")])
