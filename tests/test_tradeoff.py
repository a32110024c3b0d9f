"""`evaluate.py tradeoff` and `evaluate.py examples`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import example_evaluation
from tests.evaluation_tree import flat_generator, recorded, run

PROVENANCE = {"commit": "abc", "date": "2026-01-01"}


def artifact_record(valid: bool = True) -> dict[str, Any]:
    kept = {"clean": [1.0, None], "gaussian": [0.1, None], "dartblur": [0.75, None]}
    summary = {variant: {"kept": values} for variant, values in kept.items()}
    return {
        "data": "300 photos.",
        "seeds": [0, 1],
        "results": {
            "valid": valid,
            "summary": {name: summary for name in ("easy", "medium", "hard")},
        },
        "provenance": PROVENANCE,
    }


def privacy_record() -> dict[str, Any]:
    rates = {
        "clean": [("naive", 0.98)],
        "gaussian": [("naive", 0.04), ("restored", 0.24), ("same tool", 0.14)],
        "mosaic": [("naive", 0.01)],
        "dartblur": [("naive", 0.25), ("restored", 0.05)],
    }
    rows = [
        {"variant": variant, "attack": attack, "rank1": [rate, rate - 0.01, rate + 0.01]}
        for variant, attacks in rates.items()
        for attack, rate in attacks
    ]
    record = {"data": "100 people.", "seeds": [0], "results": {"rows": rows}}
    return {**record, "provenance": PROVENANCE}


def laid(root: Path, artifacts: dict[str, Any], privacy: dict[str, Any]) -> list[object]:
    for name, record in (("artifacts", artifacts), ("privacy", privacy)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "results.json").write_text(json.dumps(record), encoding="utf-8")
    folders = ["--artifacts", root / "artifacts", "--privacy", root / "privacy"]
    return ["tradeoff", *folders, "--output", root]


def test_the_worst_attack_stands_beside_what_is_kept(tmp_path: Path) -> None:
    assert run(*laid(tmp_path, artifact_record(), privacy_record())) == 0
    values = recorded(tmp_path / "tradeoff")["results"]
    assert values["variants"] == ["clean", "gaussian", "dartblur"]
    assert values["attacks"]["gaussian"] == {"attack": "restored", "rank1": 0.24}
    assert values["attacks"]["dartblur"] == {"attack": "naive", "rank1": 0.25}
    text = (tmp_path / "tradeoff" / "results.md").read_text(encoding="utf-8")
    assert "| gaussian | 10.0% | 10.0% | 10.0% | 24.0% | restored |" in text
    assert "left out: mosaic." in text
    assert "INVALID" not in text
    assert (tmp_path / "tradeoff" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_invalid_results_stay_invalid(tmp_path: Path) -> None:
    assert run(*laid(tmp_path, artifact_record(valid=False), privacy_record())) == 0
    assert "INVALID" in (tmp_path / "tradeoff" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "privacy" / "results.json").unlink(), "no such file"),
        (lambda root: (root / "artifacts" / "results.json").write_text("{"), "not the results"),
        (
            lambda root: (root / "artifacts" / "results.json").write_text(
                json.dumps(privacy_record())
            ),
            "not the results",
        ),
    ],
)
def test_faults_take_one_line(
    spoil: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = laid(tmp_path, artifact_record(), privacy_record())
    spoil(tmp_path)
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "tradeoff").exists()


def test_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    privacy = privacy_record()
    privacy["results"]["rows"] = [{"variant": "mosaic", "attack": "naive", "rank1": [0.1, 0, 1]}]
    assert run(*laid(tmp_path, artifact_record(), privacy)) == 1
    assert "no variant in common" in capsys.readouterr().err


def test_examples_show_every_variant_of_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[np.ndarray]] = []
    real = example_evaluation.pictures_figure

    def spy(columns: Any, rows: Any) -> Any:
        drawn.extend(rows)
        return real(columns, rows)

    monkeypatch.setattr(example_evaluation, "pictures_figure", spy)
    black = flat_generator(tmp_path / "black.safetensors", -1)
    assert run("examples", "--output", tmp_path, "--generator", black) == 0
    faces = recorded(tmp_path / "examples")["results"]["faces"]
    assert list(faces) == ["eileen_collins.jpg", "grace_hopper.jpg"]
    assert min(faces.values()) >= 1  # a low score may add what is no face
    assert len(drawn) == 2
    for row in drawn:
        assert len(row) == len(example_evaluation.VARIANTS)
        for one in range(1, len(row)):
            assert not np.array_equal(row[0], row[one])
    assert (tmp_path / "examples" / "examples.png").read_bytes().startswith(b"\x89PNG")
