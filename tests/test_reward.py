"""Rewards: from a model, a judge and a known answer; which models are refused; and what an update learns and keeps."""

import numpy as np
import pandas as pd
import pytest
import torch
from reward_models import write_reward_model
from small_classroom import recipe_of

from workbench.models.trl import encode
from workbench.runs.errors import ModelError
from workbench.runs.recipe_parts import Lora, Tuning
from workbench.signals import reward
from workbench.signals.reward import CheckingReward, JudgeReward, RewardModel, agreement, scored
from workbench.signals.reward_models import hinge, load_reward, rewards_of, update_reward
from workbench.tasks.task import load_tasks


@pytest.fixture(scope="module")
def folder(small_models, tmp_path_factory):
    return write_reward_model(tmp_path_factory.mktemp("reward") / "model", small_models / "teacher")


@pytest.fixture
def recipe(small_models, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return recipe_of(small_models)


def asked(texts: list[str], question: str = "A?") -> pd.DataFrame:
    known = {"task": "web_of_lies", "question_id": question, "question": question, "gold": "Yes"}
    return pd.DataFrame([known | {"prompt": f"Question: {question}", "text": text} for text in texts])


TEXTS = ["<ans>Yes</ans>", "No", "because it is so, and for long <ans>No</ans>", "Yes Yes"]


def test_rewards_are_those_of_the_model_whatever_stands_beside_them_and_are_kept(recipe, folder, monkeypatch):
    scorer = RewardModel(recipe, str(folder))
    whole = scorer(asked([*TEXTS, TEXTS[0]]))
    assert whole[0] == whole[-1] and len(set(whole)) == len(TEXTS)
    model, tokenizer = load_reward(str(folder), recipe)
    for text, value in zip(TEXTS, whole, strict=False):
        ((start, end),) = encode(tokenizer, ["Question: A?"], [text])
        assert rewards_of(model, [start + end]).item() == pytest.approx(value, abs=1e-5)
    monkeypatch.setattr(reward, "load_reward", None)  # nothing is computed again
    assert (scorer(asked(TEXTS)) == whole[:-1]).all()
    assert [list(one) for one in scored([(scorer, asked(TEXTS[:2]))], 1)] == [whole[:2].tolist()]


def test_what_is_no_reward_model_is_refused_with_the_way_on(recipe, folder, small_models, tmp_path):
    two = write_reward_model(tmp_path / "two", small_models / "teacher", labels=2)
    with pytest.raises(ModelError, match=r"has 2 labels, and a reward is one number; name a sequence-classification"):
        load_reward(str(two), recipe)
    whole, tokenizer = load_reward(str(folder), recipe)
    del whole.score
    bare = tmp_path / "bare"
    for part in (whole, tokenizer):
        part.save_pretrained(bare)
    with pytest.raises(ModelError, match=r"lacks 1 of its weights \(first: score.weight\)"):
        load_reward(str(bare), recipe)
    (folder.parent / "pickled").mkdir(exist_ok=True)
    (folder.parent / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickle"):
        load_reward(str(folder.parent / "pickled"), recipe)
    with pytest.raises(ModelError, match="A text of 600 tokens is longer than the 512"):
        rewards_of(load_reward(str(folder), recipe)[0], [[5] * 600])


def test_a_checked_answer_has_one_or_nothing(small_models):
    check = CheckingReward(load_tasks(recipe_of(small_models)))
    assert check(asked(["<ans>Yes</ans>", "<ans>No</ans>", ""])).tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(check(asked(["<ans>Yes</ans>"]).assign(gold=""))).all()


def test_a_judge_is_asked_for_each_answer_against_the_first_of_its_question():
    shown = []

    def judge(frame):
        shown.extend(frame[["teacher", "student"]].to_numpy().tolist())
        points = {"good": 9.0, "fair": 6.0, "bad": 2.0}
        return pd.DataFrame({f"score_{side}": frame[side].map(points) for side in ("teacher", "student")})

    both = pd.concat([asked(["fair", "good", "bad"]), asked(["bad", "good"], "B?")])
    assert JudgeReward(judge)(both).tolist() == [0.0, 3.0, -4.0, 0.0, 7.0]
    assert shown == [["good", "fair"], ["bad", "fair"], ["good", "bad"]]


@pytest.mark.parametrize(
    ("own", "others", "share"),
    [([1, -2], [3, -1], 1.0), ([1, -2], [-3, 1], 0.0), ([0, 1], [1, 1], 0.75), ([1, 1, 1], [np.nan, 0, 2], 1.0)],
)
def test_agreement_is_the_share_of_pairs_in_one_order(own, others, share):
    assert agreement(own, others) == share
    assert agreement(-np.array(own), -np.array(others)) == share
    assert np.isnan(agreement([1.0], [0.0]))


def test_the_hinge_asks_for_the_margin_and_no_more():
    loss = hinge(torch.tensor([2.0, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0]), 1.0)
    assert loss.item() == pytest.approx((0 + 0.5 + 2) / 3)


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8.0), Lora()])
def test_an_update_learns_the_order_and_leaves_what_it_began_from(recipe, folder, tmp_path, lora):
    pairs = pd.DataFrame([{"prompt": f"Question: {n}", "chosen": "No", "rejected": "Yes Yes"} for n in range(12)])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = Tuning(lora=lora, learning_rate=1e-2, n_epochs=4, batch_size=4, max_length=512)
    made = update_reward(recipe, str(folder), settings, 1.0, pairs, tmp_path / "new", 5)
    assert made["steps"] == 12 and made["n_tokens"] > 0 and made["curve"][-1]["value"] < made["curve"][0]["value"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    fresh = asked(["No", "Yes Yes"], "another")
    old, new = (RewardModel(recipe, str(at))(fresh) for at in (folder, tmp_path / "new"))
    assert new[0] - new[1] > old[0] - old[1] and new[0] > new[1]
    again = update_reward(recipe, str(folder), settings, 1.0, pairs, tmp_path / "again", 5)
    assert again["curve"] == made["curve"]
    assert RewardModel(recipe, str(tmp_path / "new")).key == RewardModel(recipe, str(tmp_path / "again")).key
