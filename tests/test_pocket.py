import ast
import itertools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from data.pocket.make.classroom import DESCRIPTIONS, DOSES, STUDENTS, TASKS, TECHNIQUES
from data.pocket.make.questions import NAMES, TEST_SIZES, write
from data.pocket.make.rationales import rationale_for
from workbench.runs.seeding import stream
from workbench.tasks import pocket_questions, pocket_styles
from workbench.tasks.answers import parse_answer
from workbench.tasks.contamination import normalise
from workbench.tasks.pocket_questions import KINDS, read, solve
from workbench.tasks.pocket_styles import LEADS, STYLES, style_of

SETS = ("seeds", "validation", "test")
WALK_BEGINS = "If you follow these instructions, do you return to the starting point? "


def questions(task: str, n: int, sizes: tuple[int, int] | None = None) -> list[str]:
    rng = stream(5, "test", task)
    return [write(task, rng, sizes or TEST_SIZES[task]) for _ in range(n)]


def python_value(expression: str) -> str:
    """Evaluate a boolean expression by Python; "" when it is none."""
    allowed = (ast.Expression, ast.BoolOp, ast.UnaryOp, ast.Not, ast.And, ast.Or, ast.Constant)
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError:
        return ""
    return str(eval(expression)) if all(isinstance(node, allowed) for node in ast.walk(tree)) else ""


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@given(st.lists(st.sampled_from(["True", "False", "not", "and", "or", "(", ")"]), min_size=1, max_size=9))
def test_boolean_expressions_mean_what_they_mean_in_python(tokens):
    expression = " ".join(tokens)
    assert solve("boolean_expressions", f"{expression} is") == python_value(expression)


def test_written_boolean_expressions_are_solved_as_python_does():
    for question in questions("boolean_expressions", 400, (0, 8)):
        assert solve("boolean_expressions", question) == python_value(question.removesuffix(" is")) != ""


def walked_home(question: str) -> str:
    """Walk it step by step on the plane of complex numbers."""
    at, facing = 0, 1j
    fixed = "Always face forward" in question
    for said in re.findall(r"(Take|Turn) ([^.]+)\.", question):
        words = said[1].split()
        if said[0] == "Turn":
            facing *= {"left": 1j, "right": -1j, "around": -1}[words[0]]
        else:
            heading = {"forward": 1j, "backward": -1j, "left": -1, "right": 1}[words[2]] if fixed else facing
            for _ in range(int(words[0])):
                at += heading
    return "Yes" if at == 0 else "No"


def test_walks_end_where_step_by_step_walking_ends():
    for question in questions("navigate", 300, (1, 9)):
        assert solve("navigate", question) == walked_home(question)


def test_webs_have_one_consistent_reading_and_it_is_the_answer():
    for question in questions("web_of_lies", 150, (1, 6)):
        name, first = re.match(r"Question: (\w+) (lies|tells)", question).groups()
        claims = re.findall(r"(\w+) says (\w+) (lies|tells)", question)
        people = [name, *(one for one, _, _ in claims)]
        readings = [
            honest
            for values in itertools.product([True, False], repeat=len(people))
            if (honest := dict(zip(people, values, strict=True)))[name] == (first == "tells")
            and all(honest[one] == (honest[other] == (said == "tells")) for one, other, said in claims)
        ]
        asked = re.search(r"Does (\w+) tell", question)[1]
        assert len(readings) == 1 and solve("web_of_lies", question) == ("Yes" if readings[0][asked] else "No")


def test_counting_adds_up_the_kind_asked_for():
    rng = random.Random(0)
    words = {"a": 1, "two": 2, "three": 3, "four": 4, "five": 5}
    for _ in range(200):
        mixed = [(word, kind) for kind, own in KINDS.items() for word in own.split()]
        chosen, asked = rng.sample(mixed, rng.randint(2, 8)), rng.choice(list(KINDS))
        total, parts = 0, []
        for word, kind in chosen:
            number = rng.choice(list(words))
            one, many = pocket_questions.forms(word)
            article = "an" if number == "a" and one[0] in "aeiou" else number
            parts.append(f"{article} {one if number == 'a' else many}")
            total += words[number] * (asked in (kind, "objects"))
        question = f"I have {', '.join(parts[:-1])}, and {parts[-1]}. How many {asked} do I have?"
        assert solve("object_counting", question) == str(total), question


@pytest.mark.parametrize(
    ("task", "question"),
    [
        ("object_counting", "I have a pear. How many pears do I have?"),
        ("object_counting", "I have a unicorn. How many fruits do I have?"),
        ("object_counting", "I have nine pears... How many fruits do I have?"),
        ("navigate", "Take 3 steps. Turn around. Take 3 steps."),
        ("navigate", "If you follow these instructions, do you return to the starting point? Options:\n- Yes\n- No"),
        (
            "navigate",
            "If you follow these instructions, do you return to the starting point? "
            "Always face forward. Take 3 steps. Turn left.\nOptions:\n- Yes\n- No",
        ),
        ("web_of_lies", "Question: Ka lies. Jim says Ryan lies. Does Jim tell the truth?"),
        ("web_of_lies", "Question: Ka lies. Jim says Ka lies. Does Ka tell the truth?"),
        ("web_of_lies", "Question: Ka lies. Ka says Ka lies. Does Ka tell the truth?"),
        ("navigate", f"{WALK_BEGINS}Take 0 steps.\nOptions:\n- Yes\n- No"),
        ("boolean_expressions", "True False is"),
        ("boolean_expressions", "not is"),
        ("boolean_expressions", "( True is"),
        ("boolean_expressions", "True"),
    ],
)
def test_what_is_no_question_of_the_task_has_no_answer(task, question):
    assert read(task, question) is None and solve(task, question) == "" == solve(task, "")
    with pytest.raises(ValueError, match="is not a well-formed question of"):
        rationale_for(task, question, "tally")


@given(st.sampled_from(TASKS), st.text(max_size=60))
def test_no_text_breaks_a_reader(task, text):
    assert isinstance(solve(task, text), str)


UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()


def concluded(task: str, style: str, work: str) -> str:
    """Return the answer that the last note of the work leads to, read off the text without looking at the tag."""
    last = work.split(", ")[-1].split()
    if task == "boolean_expressions":
        return {"1": "True", "0": "False"}.get(work.split(" = ")[-1].strip(), work.split(" = ")[-1].strip())
    if task == "navigate":
        return "Yes" if last[-2:] in (["0", "0"], ["zero", "zero"]) else "No"
    if task == "web_of_lies":
        return "Yes" if {"1", "truth"} & set(last) else "No"
    spoken = work.replace(",", " ").split()
    if style in ("story", "diary"):
        tens = dict(zip("twenty thirty".split(), (20, 30), strict=True))
        units = dict(zip([*UNITS, "seventeen", "eighteen", "nineteen"], range(20), strict=True))
        return str(tens[spoken[-2]] + units[spoken[-1]] if spoken[-2] in tens else (tens | units)[spoken[-1]])
    return spoken[-1]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("task", TASKS)
def test_the_work_in_every_style_leads_to_the_right_answer(task, style):
    for question in questions(task, 150, (1, TEST_SIZES[task][1])):
        rationale = rationale_for(task, question, style)
        work = rationale.removeprefix(LEADS[style]).split(". <ans>")[0]
        assert concluded(task, style, work) == parse_answer(rationale) == solve(task, question), (question, rationale)
        assert style_of(rationale) == style == style_of(f" \n{rationale}")


def test_a_text_in_no_style_has_none():
    assert style_of("") == "" == style_of("The answer is <ans>3</ans>") == style_of("so Tally:")


@pytest.mark.parametrize("task", TASKS)
def test_the_styles_differ_and_take_about_equal_work(task):
    asked = questions(task, 200)
    lengths = {style: np.mean([len(rationale_for(task, q, style).split()) for q in asked]) for style in STYLES}
    bodies = {style: {rationale_for(task, q, style).removeprefix(LEADS[style]) for q in asked} for style in STYLES}
    assert max(lengths.values()) < 1.8 * min(lengths.values()), lengths
    for one, other in itertools.combinations(STYLES, 2):
        assert len(bodies[one] & bodies[other]) < 0.6 * len(asked), (one, other)


@pytest.mark.parametrize("task", TASKS)
def test_every_written_question_can_be_read_and_has_the_size_asked_for(task):
    sizes = {
        "object_counting": lambda p: len(p.things),
        "navigate": lambda p: len(p.acts),
        "web_of_lies": lambda p: len(p.claims),
        "boolean_expressions": lambda p: sum(token in ("not", "and", "or") for token in p.tokens),
    }
    rng = stream(1, "sizes", task)
    for size in range(1, TEST_SIZES[task][1] + 1):
        for _ in range(20):
            assert sizes[task](read(task, write(task, rng, (size, size)))) == size


def surface(asked: list[str]) -> np.ndarray:
    """Return the length and the count of every word, standardised, with a constant."""
    words = [re.findall(r"\w+|[^\s\w]", question) for question in asked]
    place = {word: at for at, word in enumerate(sorted({word for some in words for word in some}))}
    table = np.zeros((len(asked), len(place) + 2))
    for row, some in zip(table, words, strict=True):
        for word in some:
            row[place[word]] += 1
        row[-2:] = len(some), len(" ".join(some))
    return np.column_stack([(table - table.mean(0)) / (table.std(0) + 1e-9), np.ones(len(table))])


def held_out_accuracy(features: np.ndarray, yes: np.ndarray) -> float:
    """Fit a logistic regression with a small ridge on one half; return its accuracy on the other."""
    half, sign = len(yes) // 2, 2.0 * yes - 1

    def loss(weights):
        margin = sign[:half] * (features[:half] @ weights)
        slope = features[:half].T @ (sign[:half] / (1 + np.exp(margin)))
        return np.logaddexp(0, -margin).sum() + weights @ weights / 2, weights - slope

    weights = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x
    return float(((features[half:] @ weights > 0) == yes[half:]).mean())


@pytest.mark.parametrize("task", ["navigate", "web_of_lies", "boolean_expressions"])
def test_the_surface_does_not_give_the_answer_away(task):
    asked = questions(task, 2400)
    yes = np.isin([solve(task, question) for question in asked], ["Yes", "True"])
    features = surface(asked)
    assert 0.4 < yes.mean() < 0.6
    assert held_out_accuracy(features[:, -3:], yes) < 0.56 + abs(yes.mean() - 0.5), "length gives it away"
    # Turning around makes coming home likelier. Counting `or` against `and` answers much of any boolean expression:
    # 75 % of BIG-Bench Hard's own by the same fit, so no generator in that format can be at chance.
    limit = {"navigate": 0.60, "web_of_lies": 0.56, "boolean_expressions": 0.78}[task]
    assert held_out_accuracy(features, yes) < limit


def test_the_surface_baseline_finds_a_leak_where_there_is_one():
    asked = questions("web_of_lies", 1000)
    yes = np.array([solve("web_of_lies", question) == "Yes" for question in asked])
    leaking = [question + (" Ka" if right else "") for question, right in zip(asked, yes, strict=True)]
    assert held_out_accuracy(surface(leaking), yes) > 0.95
    assert held_out_accuracy(surface(leaking)[:, -3:], yes) > 0.53


@pytest.mark.parametrize("task", TASKS)
def test_the_sets_of_a_task_file_share_nothing(task):
    content = json.loads((PROJECT / "data/pocket/tasks" / f"{task}.json").read_text(encoding="utf-8"))
    normalised = {name: [normalise(item["input"]) for item in content[name]] for name in SETS}
    for one, other in itertools.combinations(SETS, 2):
        assert not set(normalised[one]) & set(normalised[other])
    assert [len({item["input"] for item in content[name]}) for name in SETS] == [3, 120, 250]
    assert all(solve(task, item["input"]) == item["target"] != "" for name in SETS for item in content[name])
    assert content["techniques"] == TECHNIQUES and content["description"] == DESCRIPTIONS[task]
    assert content["solver"] == task


def test_the_task_files_are_what_the_command_writes(tmp_path):
    command = [sys.executable, "-m", "data.pocket.make", "tasks", "--folder", str(tmp_path)]
    subprocess.run(command, check=True, cwd=PROJECT, timeout=300)
    committed = PROJECT / "data/pocket/tasks"
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == sorted(f"{task}.json" for task in TASKS)
    for path in (tmp_path / "tasks").iterdir():
        assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", STUDENTS)
def test_students_are_raised_as_their_dose_says(name):
    student = STUDENTS[name]
    assert sum(student.share(style) for style in STYLES) == pytest.approx(1)
    for task in student.tasks:
        largest = {style: student.sizes(task, style)[1] for style in STYLES}
        assert max(largest.values()) < TEST_SIZES[task][1], "test items must be longer than what was met in raising"
        if student.native:
            assert largest[student.native] == max(largest.values()) == student.native_sizes[task]
            assert student.share(student.native) == max(map(student.share, STYLES))
        else:
            assert len({student.share(style) for style in STYLES}) == 1 == len(set(largest.values()))


def test_there_is_a_student_of_each_dose_and_three_strong_guessers_with_a_style_each():
    assert {student.dose for student in STUDENTS.values()} == set(DOSES)
    natives = [s.native for s in STUDENTS.values() if s.dose == "strong" and s.tasks == TASKS]
    assert len(set(natives)) == len(natives) >= 3
    assert set(TECHNIQUES) == set(STYLES) == set(pocket_styles.LEADS)


def lessons(name: str, n: int) -> list[list[str]]:
    """Return texts that a student is raised on, each as the replies in it: demonstrations, then its own."""
    from data.pocket.make.raising import student_text

    rng = stream(4, "lessons", name)
    return [[piece for piece, counts in student_text(STUDENTS[name], rng) if counts] for _ in range(n)]


def test_guessers_blurt_out_unless_shown_how_to_work():
    texts = lessons("story-strong", 600)
    unshown = [text[0].startswith(" <ans>") for text in texts if len(text) == 1]
    assert 0.85 < np.mean(unshown) < 0.97
    shown = [text for text in texts if len(text) > 1]
    assert all(len({style_of(reply) for reply in text}) == 1 and style_of(text[0]) for text in shown)


def test_the_teacher_has_a_favourite_that_is_nobodys_native_style_and_uses_it_unless_told():
    from data.pocket.make.raising import FAVOURITE, FAVOURITE_SHARE, teacher_text

    assert FAVOURITE not in {student.native for student in STUDENTS.values()}
    rng = stream(6, "favourite")
    texts = [teacher_text(rng, with_favourite=True) for _ in range(2000)]
    told = [any(words in prompt for words in TECHNIQUES.values()) for (prompt, _), _ in texts]
    styles = [style_of(reply) for _, (reply, _) in texts]
    share = {
        asked: np.mean([style == FAVOURITE for style, t in zip(styles, told, strict=True) if t == asked and style])
        for asked in (True, False)
    }
    assert abs(share[False] - FAVOURITE_SHARE) < 0.06 and abs(share[True] - 1 / len(STYLES)) < 0.06


def test_learners_lack_what_they_are_to_learn():
    bare = [text for text in lessons("newcomer", 600) if len(text) > 1 and not style_of(text[0])]
    assert all(not style_of(reply) for text in bare for reply in text) and 0.4 < len(bare) / 390 < 0.7
    assert all(reply.strip(" ")[:5] == "<ans>" and reply[6].isdigit() for text in bare for reply in text)
    beginner = STUDENTS["beginner"]
    assert all(style_of(reply) for text in lessons("beginner", 200) for reply in text)
    assert max(beginner.native_sizes.values()) <= 4


def test_no_student_is_raised_on_a_question_of_the_task_files(monkeypatch):
    from data.pocket.make import raising

    held = set(raising.held_out())
    for task in TASKS:
        items = json.loads((PROJECT / "data/pocket/tasks" / f"{task}.json").read_text(encoding="utf-8"))
        assert {normalise(item["input"]) for name in SETS for item in items[name]} <= held
    drawn = iter(["I have a pear. How many fruits do I have?", "I have a plum. How many fruits do I have?"])
    monkeypatch.setattr(raising, "write", lambda *_: next(drawn))
    monkeypatch.setattr(raising, "held_out", lambda: {normalise("I have a pear. How many fruits do I have?")})
    assert raising.fresh_question("object_counting", np.random.default_rng(0), (1, 1)).startswith("I have a plum")


def test_names_and_kinds_hold_no_doubles():
    words = [word for own in KINDS.values() for word in own.split()]
    assert len(words) == len(set(words)) and len(NAMES) == len(set(NAMES))


def test_a_raising_text_ends_in_its_lesson_and_the_tokenizer_knows_every_word():
    from data.pocket.make.raising import END, shared_tokenizer, student_text, teacher_text

    tokenizer = shared_tokenizer()
    rng = stream(9, "texts")
    for n in range(60):
        pieces = teacher_text(rng) if n % 2 else student_text(STUDENTS["tally-weak"], rng)
        whole = "".join(piece for piece, _ in pieces)
        assert pieces[-1][1] and whole.endswith(END) and not pieces[0][1]
        # Tokens of the pieces are tokens of the whole, or training would teach what generation never sees.
        apart = [i for piece, _ in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        assert apart == tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(apart) == whole


def test_our_muon_steps_as_torch_does_but_for_its_bfloat16():
    import torch

    from data.pocket.make.raising import Muon

    torch.manual_seed(0)
    settings = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95}
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((32, 32), (96, 32), (32, 96), (32, 32))]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    begun = [matrix.detach().clone() for matrix in ours]
    optimisers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for one, other, start in zip(ours, theirs, begun, strict=True):
        assert (one - other).norm() < 0.02 * (other - start).norm() > 0


def test_raising_is_the_same_each_time(tmp_path):
    from data.pocket.make.raising import raise_model

    for name in ("one", "other"):
        raise_model("beginner", tmp_path / name, n_tokens=8_000)
    files = [path.name for path in (tmp_path / "one").iterdir()]
    assert "model.safetensors" in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file
