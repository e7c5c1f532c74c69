"""Exported sets, models and cards: that they load for real, say what the run holds, and that text stays text."""

import json
import re
import shutil
from typing import NamedTuple

import pandas as pd
import pytest
from conftest import PROJECT, RECIPE
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard

from workbench.cli.main import DONE, FAILED, main
from workbench.loop.reviews import Reviews, apply_reviews, newer_than_alignment, reviews_of
from workbench.models import loading
from workbench.models.trl import model_folder
from workbench.report import cards, facts
from workbench.report.export import export
from workbench.report.facts import Facts
from workbench.runs import schemas
from workbench.runs.cache import record_test_access
from workbench.runs.errors import RunError
from workbench.runs.identity import file_sha256
from workbench.runs.recipe import Recipe, parse_yaml
from workbench.runs.run import Run, open_run
from workbench.verdict.verdict import verdict

EVIL = "```\n---\nlicense: evil\n---\n<script>alert(1)</script> ````` | [a](b) \u2028 \x1b[31m \u202e end"
ARMS = ("untailored", "random_pairs", "tailored")
STUDENTS = ("ada", "bo-b")
SPLITS = ["tailored", "untailored", "random_pairs", "tailored_for_bo-b"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of runs that holds one finished run and its export."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORKBENCH_RUNS", str(runs))
        export(_run(), students=True)
    return runs


@pytest.fixture
def made(whole, monkeypatch):
    """The exported run, to be read only."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(whole))
    return open_run("done")


@pytest.fixture
def work(whole, tmp_path, monkeypatch):
    """A copy of the run, not exported, that the test may spoil."""
    shutil.copytree(whole, tmp_path / "runs", ignore=shutil.ignore_patterns("export"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return open_run("done")


def _run() -> Run:
    """Return a finished run of two students, whose models are those of the project under other names."""
    recipe_values = parse_yaml(RECIPE)
    recipe_values["models"]["students"] = {"ada": "data/pocket/tally-strong", "bo-b": "some/student"}
    recipe_values["models"]["licences"] = {"bo-b": "Gemma Terms"}
    run = open_run("done", Recipe.model_validate(recipe_values))
    sha256 = file_sha256(PROJECT / "data" / "pocket" / "tasks" / "object_counting.json")
    record_test_access(sha256, "items", "of this run")
    models = Known("teacher-print"), {name: Known(f"{name}-print") for name in STUDENTS}
    for n, (step, frames) in enumerate(_frames().items()):
        run.step(step, made_of, *models, frames, n)
    settings = run.recipe.evaluation.model_dump()
    settings |= {"shots": [0]}
    test_set = {"name": "generated items", "sha256": "sha", "times_opened": 1}
    result = verdict(
        _evaluation()["predictions"],
        settings,
        recipe="small",
        run="done",
        models="pocket",
        student="ada",
        test_set=test_set,
        warnings=["Something to hold against it."],
    )
    (run.path / "verdict.json").write_text(json.dumps(result))
    for student in STUDENTS:
        _put_model("teacher", run.path / "teachers" / model_folder(student, "tailored"))
        for seed in run.recipe.seeds:
            _put_model("tally-strong", run.path / "students" / model_folder(student, "tailored", seed))
    return run


class Known(NamedTuple):
    """A model, as steps tell one from another."""

    key: str


def made_of(teacher, students, frames: dict[str, pd.DataFrame], n: int):
    """Stand for what made a step: return its frames, so many of what was made dropped."""
    for frame in frames.values():
        frame.attrs |= {"counts": {"made": 10, "made, dropped": n}, "tokens": 1000 // len(frames)}
    return frames if len(frames) > 1 else next(iter(frames.values()))


def _frames() -> dict[str, dict[str, pd.DataFrame]]:
    aligned, listed = _alignment(), pd.DataFrame({"student": STUDENTS, "arm": "tailored", "model": "x"})
    pairs, reviews = aligned["pairs"], schemas.build([], "reviews")
    used = {"teachers": listed, "curve": aligned["curve"], "pairs_used": pairs.assign(arm="tailored")}
    return {
        "questions": {"questions": schemas.build([], "questions")},
        "pairs": {"pairs": pairs},
        "teachers": used,
        "reviewed": {"reviewed": pairs, "reviews": reviews},
        "examples": {"examples": aligned["examples"]},
        "rows": _training(),
        "students": {"students": listed.assign(seed=0), "curve": aligned["curve"]},
        "predictions": _evaluation(),
    }


def _put_model(name: str, folder) -> None:
    shutil.copytree(PROJECT / "data" / "pocket" / name, folder)
    (folder / "tuned.json").write_text('{"key": "ours"}')
    (folder / "training_args.bin").write_bytes(b"a pickle")


def _examples() -> pd.DataFrame:
    rows = []
    for arm, student in [("untailored", ""), *((arm, one) for arm in ARMS[1:] for one in STUDENTS)]:
        for seed in (0, 1):
            for n in range(5):
                text = EVIL if n == 0 else f"There are {n}."
                row = {"example_id": f"{arm}{student}{seed}{n}", "arm": arm, "student": student, "seed": seed}
                row |= {"task": "object_counting", "question_id": f"q{n}", "question": text, "rationale": f" {text}"}
                row |= {"answer": str(n), "gold": "" if n == 1 else "2", "correct": n == 2, "style": "", "n_tokens": 5}
                rows.append(row | {"kept": n != 4, "drop_reason": "" if n != 4 else "written before"})
    return schemas.build(rows, "examples")


def _alignment() -> dict[str, pd.DataFrame]:
    pair = {name: "x" for name in "pair_id task prompt chosen rejected chosen_id rejected_id".split()}
    pair |= {
        "kind": "rationale",
        "score_chosen": 0.9,
        "score_rejected": 0.4,
        "score_gap": 0.5,
        "p_chosen": 0.8,
        "flipped": False,
    }
    point = {"stage": "alignment", "arm": "tailored", "seed": 0, "step": 1, "metric": "loss", "value": 0.693}
    return {
        "pairs": schemas.build([pair | {"student": student} for student in STUDENTS], "pairs"),
        "curve": schemas.build([point | {"student": student} for student in STUDENTS], "curve"),
        "examples": _examples(),
    }


def _training() -> dict[str, pd.DataFrame]:
    rows, kept = [], _examples().query("kept")
    for student in STUDENTS:
        own = kept[kept["student"].isin(["", student])]
        if student == "ada":
            other = kept[(kept["student"] == "bo-b") & (kept["arm"] == "tailored")]
            own = pd.concat([own, other.assign(arm="tailored_for_bo-b")])
        for one in own.itertuples():
            row = {"row_id": f"{student}{one.arm}{one.example_id}", "arm": one.arm, "seed": one.seed}
            row |= {"student": student, "task": one.task, "example_id": one.example_id}
            row |= {"prompt": f"Question: {one.question}"}
            rows.append(row | {"completion": one.rationale, "n_tokens": 6})
    return {"rows": schemas.build(rows, "rows")}


def _evaluation() -> dict[str, pd.DataFrame]:
    """Tailored answers 6 of 8 items right under every seed, the base 5, the controls 2."""
    rows, right = [], {"base": 5, "untailored": 2, "random_pairs": 2, "tailored": 6}
    for student in STUDENTS:
        for arm, n_right in right.items():
            for seed in (-1,) if arm == "base" else (0, 1):
                for item in range(8):
                    row = {"student": student, "arm": arm, "seed": seed, "shots": 0, "task": "object_counting"}
                    ok = item < n_right
                    rows.append(
                        row | {"item_id": f"i{item}", "answer": "2", "style": "", "parsed": True, "correct": ok}
                    )
    return {"predictions": schemas.build(rows, "predictions")}


def test_both_kinds_of_file_load_and_hold_the_rows_trained_on(made, tmp_path):
    folder = made.path / "export" / "tailored" / "ada"
    trained = made.read("rows").query("student == 'ada'")
    for builder, kind in (("parquet", "parquet"), ("json", "jsonl")):
        files = {arm.replace("-", "_"): str(folder / f"{arm}.{kind}") for arm in SPLITS}
        loaded = load_dataset(builder, data_files=files, cache_dir=str(tmp_path / "cache"))
        for arm, rows in zip(SPLITS, loaded.values(), strict=True):
            own = trained[trained["arm"] == arm]
            assert rows["seed"] == own["seed"].tolist() and set(rows["task"]) == {"object_counting"}
            assert all([turn["role"] for turn in turns] == ["user", "assistant"] for turns in rows["messages"])
            # Messages leave out the blank before an answer.
            texts = [(user["content"], f" {assistant['content']}") for user, assistant in rows["messages"]]
            assert texts == [tuple(pair) for pair in own[["prompt", "completion"]].to_numpy()]
        assert loaded["tailored"]["correct"][:4] == [False, None, True, False]
    # By the front matter of the card, as from a hub.
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == [*SPLITS[:3], "tailored_for_bo_b"]


def test_trl_makes_of_it_what_the_run_trained_on_as_the_card_says(made, tmp_path):
    from trl.data_utils import apply_chat_template, is_conversational

    folder = made.path / "export" / "tailored" / "ada"
    tokenizer = loading.load_tokenizer("data/pocket/tally-strong")
    trained = made.read("rows").query("student == 'ada' and arm == 'tailored'")
    rows = load_dataset("json", data_files=str(folder / "tailored.jsonl"), cache_dir=str(tmp_path))["train"]
    assert is_conversational(rows[0])
    (line,) = re.findall(r"```python\n(.+)\n```", (folder / "README.md").read_text(encoding="utf-8"))
    rows = eval(line.removeprefix("rows = "), {"rows": rows})
    assert len(rows) == len(trained)
    for example, row in zip(rows, trained.itertuples(), strict=True):
        example = apply_chat_template({key: example[key] for key in ("prompt", "completion")}, tokenizer)
        assert example["prompt"] == loading.render(tokenizer, row.prompt)
        assert example["completion"] == row.completion + tokenizer.eos_token


def test_llamafactory_finds_every_file_by_its_description(made):
    folder = made.path / "export" / "tailored" / "ada"
    described = json.loads((folder / "dataset_info.json").read_text())
    assert list(described) == [f"ada_{arm}" for arm in SPLITS]
    for entry in described.values():
        row = json.loads((folder / entry["file_name"]).read_text(encoding="utf-8").partition("\n")[0])
        user, assistant = row[entry["columns"]["messages"]]
        tags = entry["tags"]
        assert (user[tags["role_tag"]], assistant[tags["role_tag"]]) == (tags["user_tag"], tags["assistant_tag"])
        assert tags["content_tag"] in user and entry["formatting"] == "sharegpt"


def test_models_load_by_transformers_alone_and_hold_nothing_of_ours(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [made.path / "export" / place for place in ("teacher/ada", "student/ada/seed-0")]
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
        turns = [{"role": "user", "content": "How many?"}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 2
        assert not {"tuned.json", "training_args.bin"} & {path.name for path in folder.iterdir()}
    assert loading.fingerprint_model(folders[0]) == loading.fingerprint_model("data/pocket/teacher")


def test_front_matter_is_what_a_hub_reads_and_no_text_of_a_model_is_in_it(made):
    card = DatasetCard.load(made.path / "export" / "tailored" / "ada" / "README.md")
    assert card.data.license == "apache-2.0" and "evil" not in str(card.data.to_dict())
    assert [split["split"] for split in card.data.to_dict()["configs"][0]["data_files"]][:3] == SPLITS[:3]
    tailored, student = (made.path / "export" / name / "README.md" for name in ("tailored/ada", "student/ada/seed-1"))
    assert "| arm | written by | written |" in tailored.read_text(encoding="utf-8")
    assert "shots | right answers |" in student.read_text(encoding="utf-8")
    assert not any("| spoken" in path.read_text(encoding="utf-8") for path in (tailored, student))
    for folder, method in (("teacher/ada", "dpo"), ("student/ada/seed-1", "sft")):
        card = ModelCard.load(made.path / "export" / folder / "README.md")
        assert card.data.library_name == "transformers" and method in card.data.tags
        assert card.data.base_model is None and card.data.license == "apache-2.0"


def test_only_a_hub_id_is_named_as_base_and_licences_are_as_stated(work):
    card = ModelCard.load(export(work, students=True)[6] / "README.md")
    assert card.data.base_model == "some/student" and card.data.license == "other"
    assert "| student bo-b | Gemma Terms |" in card.text and "| teacher | apache-2.0 |" in card.text
    stated = work.recipe.models.model_copy(update={"licences": {}})
    work.recipe = work.recipe.model_copy(update={"models": stated})
    card = DatasetCard.load(export(work)[2] / "README.md")
    assert card.data.license == "unknown" and "| student bo-b | not stated |" in card.text


def test_texts_of_models_stay_in_their_fences(made):
    text = DatasetCard.load(made.path / "export" / "tailored" / "ada" / "README.md").text
    outside, inside, fence = [], [], ""
    for line in text.split("\n"):
        mark = line[: len(line) - len(line.lstrip("`"))]
        if fence:
            fence = "" if line == fence else fence
            inside.append(line)
        else:
            fence = mark if len(mark) >= 3 else ""
            outside.append(line)
    assert not fence and "<script>" not in "\n".join(outside) and "evil" not in "\n".join(outside)
    assert "<script>alert(1)</script>" in "\n".join(inside)
    assert not {"\x1b", "\u202e", "\u2028"} & set(text)


def test_escaped_lines_are_shown_as_they_are():
    assert cards.plain("a|b\n<i>*x*</i> `c` [d](e)") == r"a\|b &lt;i&gt;\*x\*&lt;/i&gt; \`c\` \[d\](e)"
    shown = cards.TEMPLATES.from_string("{{ n }} {{ text }} {{ fenced(text) }}").render(n=1234, text="a|b")
    assert shown == "1,234 a\\|b ```\na|b\n```"
    assert cards.fenced("a ```` b", "yaml") == "`````yaml\na ```` b\n`````"


def test_a_card_says_what_the_run_holds(work):
    record_test_access(
        file_sha256(PROJECT / "data" / "pocket" / "tasks" / "object_counting.json"), "items", "of a later run"
    )
    text = DatasetCard.load(export(work)[0] / "README.md").text
    assert "On pocket models, made for trying the method." in text
    assert "| Does the student answer better? | better | +50 points (" in text and "sign-flip" not in text
    assert "The test set was opened once, by this run" in text
    assert "By the day of this card it has been opened 2 times." in text
    # Under each seed, of four kept three can be checked by rule, and one of these is right.
    assert "| tailored | the teacher aligned to the student | 10 | 8 | 2 written before | 33 % (95 % interval" in text
    assert "| tailored | the teacher aligned to the student | 8 | 4 (seed 0), 4 (seed 1) | 48 |" in text
    assert "| tailored\\_for\\_bo-b | the teacher aligned to student bo-b | 8 |" in text
    assert "| tailored | 75 % (" in text and "| tailored - untailored | 0 | +50 points (" in text
    assert re.search(r"\| all \| \d+ \| [\d,]+ \|", text) and "teacher-print" in text and "ada-print" in text
    assert "torch " in text and "object\\_counting" in text and str(PROJECT) not in text
    # Splits are typed to load them, and the recipe is a file; everywhere else names are for people.
    told = re.sub(r"(?s)## Splits and files.*?## Examples|```.*?```", "", text)
    assert "| random pairs |" in told and "| tailored - random pairs | 0 |" in told
    assert not re.findall(r"random.?_pairs|preference.?_set", told)


def test_a_card_says_what_people_made_of_the_pairs(work):
    (unreviewed, *_) = export(work)
    assert "No person reviewed the pairs" in DatasetCard.load(unreviewed / "README.md").text
    pairs = work.read("pairs")
    own = pairs[pairs["student"] == "ada"]
    reviews = Reviews.of_run(work, "Somebody")
    reviews.add(own.iloc[0], "review", "keep")
    assert newer_than_alignment(work) == ""
    reviews.add(own.iloc[0], "review", "flip")
    text = DatasetCard.load(export(work)[0] / "README.md").text
    assert "Of 1 pair people say something else now than when the teachers were aligned" in text
    work.step("reviewed", apply_reviews, pairs, reviews_of(work, pairs))
    text = DatasetCard.load(export(work)[0] / "README.md").text
    assert "People reviewed 1 of the pairs: 0 kept, 1 flipped, 0 dropped." in text
    assert newer_than_alignment(work) == "" and "people say something else" not in text and "Somebody" not in text


def test_a_card_says_what_did_not_work(made):
    said = "\n".join(Facts(made, "bo-b").troubles())
    assert "Trained on untailored, the student is right less often than untrained: 25 % (" in said
    assert "against 62 %." in said and "Trained on tailored" not in said
    assert "Counted in teachers, all students together: 2 made, dropped." in said
    assert "Something to hold against it." in said and "2 seeds" in said
    own = Facts(made, "ada")
    own.block["comparisons"][0] |= {"decision": "worse", "difference": -0.1, "low": -0.2, "high": -0.05}
    own.block["comparisons"][0]["decision_adjusted"] = "worse"
    own.block["per_task"][0]["decision"] = "worse"
    own.examples = own.examples.assign(correct=own.examples["arm"] == "untailored")
    said = "\n".join(own.troubles())
    assert "On object counting, tailored is worse than untailored." in said
    assert "right less often than before: 0 % of its examples, 100 %" in said


def test_places_on_this_machine_are_not_told():
    assert facts.shown_ref("/home/somebody/models/teacher") == "teacher"
    assert facts.shown_ref("data/pocket/teacher") == "data/pocket/teacher"


def test_an_unfinished_run_is_refused_naming_stage_and_command(work, capsys):
    (work.path / "predictions" / "manifest.json").unlink()
    assert main(["export", "done"]) == FAILED
    said = capsys.readouterr().err
    assert "no finished step 'predictions'" in said and "05_evaluation" in said and said.count("\n") == 1
    assert not (work.path / "export").exists()


def test_a_lost_verdict_or_teacher_is_named_and_leaves_nothing_half_done(work):
    weights = work.path / "teachers" / model_folder("bo-b", "tailored") / "model.safetensors"
    weights.unlink()
    with pytest.raises(RunError, match=r"bo-b-tailored holds no weights; .*--from alignment"):
        export(work)
    (work.path / "verdict.json").unlink()
    with pytest.raises(RunError, match=r"no verdict, which its card needs; .*--to evaluation"):
        export(work)
    assert not list(work.path.glob("*export*"))


def test_an_earlier_export_is_replaced_and_nothing_else_is(work, tmp_path, capsys):
    to = tmp_path / "out"
    assert main(["export", "done", "--to", str(to), "--students"]) == DONE
    assert [line.split("/out/")[1] for line in capsys.readouterr().out.splitlines()][:4] == [
        *("tailored/ada", "teacher/ada", "student/ada/seed-0", "student/ada/seed-1")
    ]
    export(work, to)
    assert (to / "tailored").is_dir() and not (to / "student").exists()
    (to / "tailored" / "mine.txt").write_text("keep me")
    with pytest.raises(RunError, match=r"holds what no export wrote \(tailored/mine.txt\); .*--to"):
        export(work, to)
    assert (to / "tailored" / "mine.txt").read_text() == "keep me"
