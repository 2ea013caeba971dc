"""Messages about recipes with ``seeds`` and ``sweep`` that cannot work."""

from pathlib import Path

import pytest
from recipe_files import GATED, STUDENT, SWEEP, TEACH, TOP, faults


@pytest.mark.parametrize(
    ("top", "sets", "expected"),
    [
        ("seeds: 1\n", [], "./r.yaml:1: seeds: should be greater than or equal to 2, not 1, or "),
        ("seeds: [3]\n", [], "./r.yaml:1: seeds: "),
        ("seeds: [3, 3]\n", [], "./r.yaml:1: seeds: "),
        ("", ["distill.seeds=0"], "--set distill.seeds=0: distill.seeds: "),
        (
            "seeds: 2\n",
            ["distill.seeds=2"],
            "--set distill.seeds=2: distill.seeds: the recipe has seeds too; set them in one place",
        ),
        (
            "",
            ["teach.seeds=2", "distill.seeds=3"],
            "--set distill.seeds=3: distill.seeds: all steps are repeated with the same seeds, and "
            "'teach' has others",
        ),
        (
            "",
            ["baselines.seeds=2"],
            "--set baselines.seeds=2: baselines.seeds: baselines trains nothing, so it has no "
            "seeds to repeat",
        ),
        (
            "seeds: 2\n",
            ["distill.seed=3"],
            "--set distill.seed=3: distill.seed: has no effect, since seeds repeat this step; "
            "leave it out",
        ),
        (
            "",
            ["distill.seed=3", "distill.seeds=[1, 2]"],
            "--set distill.seed=3: distill.seed: leave it out: seeds lists the seeds of this step",
        ),
        (
            "sweep: 3\n",
            [],
            "./r.yaml:1: sweep: should be a mapping, not 3, or should be a list, not 3",
        ),
        ("sweep: {}\n", [], "./r.yaml:1: sweep: is empty; leave it out"),
        (
            "sweep: {distill.layers: 2}\n",
            [],
            "./r.yaml:1: sweep.distill.layers: should be a list of values, such as [1, 2]",
        ),
        (
            "sweep: {distill.layrs: [2, 3]}\n",
            [],
            "./r.yaml:1: distill.layrs: there is no key 'layrs'. Did you mean 'layers'?",
        ),
        (
            "sweep: {distil.layers: [2, 3]}\n",
            [],
            "./r.yaml:1: sweep.distil.layers: there is no step 'distil'. Did you mean 'distill'?",
        ),
        (
            "sweep:\n  distill.layers: [2,\n   -3]\n",
            [],
            "./r.yaml:3: distill.layers: should be greater than or equal to 1, not -3",
        ),
        (
            "sweep:\n  distill.layers: [2,\n   9]\n",
            [],
            "./r.yaml:3: distill.layers: 9 layers are more than the 4 of 'teach'",
        ),
        (
            "sweep: {distill.layers: [2, 2]}\n",
            [],
            "./r.yaml:1: sweep.distill.layers: a value is listed twice",
        ),
        (
            "sweep: {distill.layers: [2, 3], distill: {layers: [1, 2]}}\n",
            [],
            "./r.yaml:1: sweep.distill.layers: distill.layers is swept twice",
        ),
        (
            "sweep: {distill.seed: [2, 3]}\n",
            [],
            "./r.yaml:1: sweep.distill.seed: a seed cannot be swept; set seeds, such as "
            "`seeds: [17, 18, 19]`",
        ),
        (
            "sweep: {data.history: [10, 20]}\n",
            [],
            "./r.yaml:1: sweep.data.history: data must be the same for all points, so that they "
            "can be compared; run the recipe once for each value and compare the runs with "
            "`slmc diff`",
        ),
        (
            "sweep: {distill: [1, 2]}\n",
            [],
            "./r.yaml:1: sweep.distill: name a setting of the step, such as distill.lr",
        ),
        (
            "sweep:\n  - {distill.layers: 2}\n  - 3\n",
            [],
            "./r.yaml:3: sweep.1: a point is a mapping of settings to values, such as "
            "{distill.layers: 1}",
        ),
        (
            "sweep:\n  - {distill.layers: 2}\n  - {distill.layers: 2}\n",
            [],
            "./r.yaml:3: sweep.1: is the same point as sweep.0",
        ),
        (
            f"sweep: {{distill.lr: {[1 / n for n in range(1, 41)]}, distill.epochs: "
            f"{list(range(1, 11))}}}\n",
            [],
            "./r.yaml:1: sweep: is a grid of 400 points; at most 200 steps are allowed",
        ),
        (
            "",
            ["distill.seeds=300"],
            "--set distill.seeds=300: seeds: makes 305 steps (300 copies of 'distill'); at most "
            "200 are allowed. Sweep fewer values, or repeat fewer steps with `seeds`",
        ),
        (
            "",
            ["distill.teacher=teach@best", "export.model=distill@18"],
            "--set export.model=distill@18: export.model: 'distill' is not repeated, so there is "
            "no 'distill@18'",
        ),
        (
            "seeds: 2\n",
            ["export.model=distill@19"],
            "--set export.model=distill@19: export.model: there is no 'distill@19'. Did you mean "
            "'distill@18'?",
        ),
    ],
)
def test_messages(top: str, sets: list[str], expected: str, file: Path) -> None:
    text = top + TOP + TEACH + STUDENT + "  - export:\n"
    found = faults(file, text, *sets)
    assert any(one.startswith(expected) for one in found), found
    if not expected.endswith((": ", "or ")):
        assert expected in found


@pytest.mark.parametrize(
    ("top", "on", "rest", "expected"),
    [
        (
            SWEEP,
            "distill",
            "min: 0.1",
            "on: 'distill' has 4 points; name one, such as distill@layers=2,logits=0.5, or "
            "distill@best",
        ),
        (
            SWEEP,
            "distill@layers=2",
            "min: 0.1",
            "on: there is no 'distill@layers=2'. Did you mean 'distill@layers=2,logits=1'?",
        ),
        (
            SWEEP,
            "teach",
            "max_drop: 1%, baseline: distill",
            "baseline: 'distill' has 4 points; name one, such as distill@layers=2,logits=0.5, or "
            "distill@best",
        ),
        (
            "",
            "distill@17",
            "min: 0.1",
            "on: 'distill' is not repeated, so there is no 'distill@17'",
        ),
        (
            SWEEP,
            "distil@best",
            "min: 0.1",
            "on: there is no step 'distil@best'. Did you mean 'distill'?",
        ),
    ],
)
def test_messages_of_gates(top: str, on: str, rest: str, expected: str, file: Path) -> None:
    text = top + TOP + TEACH + STUDENT + GATED % (f"'{on}'", rest)
    (fault,) = faults(file, text)
    assert fault.partition("gates.0.")[2] == expected
