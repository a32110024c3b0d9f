from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch

from utils.provenance import git_commit, provenance

Git = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_other_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep git to the folder it is called in, also where a hook runs these tests."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git in a repository of its own, with one commit of one file."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    settings = "user.name=A user.email=a@example.org commit.gpgsign=false core.hooksPath=none"
    options = [word for setting in settings.split() for word in ("-c", setting)]

    def call(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    call("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    call("add", "code.py")
    call("commit", "-m", "first")
    return call


def test_the_commit_of_a_clean_checkout(git: Git, tmp_path: Path) -> None:
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    assert git_commit(tmp_path) == commit
    (tmp_path / "notes.txt").write_text("not part of the code")
    assert git_commit(tmp_path) == commit


@pytest.mark.parametrize("staged", [False, True])
def test_a_changed_checkout_is_marked(git: Git, tmp_path: Path, staged: bool) -> None:
    (tmp_path / "code.py").write_text("a = 2\n")
    if staged:
        git("add", "code.py")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_a_hook_does_not_mislead(git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_commit(tmp_path) == commit


def test_code_that_lies_in_another_repository_has_no_commit(git: Git, tmp_path: Path) -> None:
    (tmp_path / "vendored").mkdir()
    assert git_commit(tmp_path / "vendored") == "unknown"


def test_without_a_repository_or_git_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init"], cwd=tmp_path, check=True, capture_output=True)
    assert git_commit(tmp_path) == "unknown"


def test_a_run_is_described_in_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/evaluate.py", "detection", "--data", "a b"])
    facts = provenance(packages=["pytest"])
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["command"] == "python evaluate.py detection --data 'a b'"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(facts["date"])
    assert 0 <= age.total_seconds() < 60
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert facts["machine"]["cpu"]
    assert len(facts["machine"]["gpus"]) == torch.cuda.device_count()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["pytest"] == pytest.__version__
    assert set(facts["versions"]) == {
        *("python", "torch", "torchvision", "numpy", "opencv", "pytest"),
    }
    if platform.node():
        assert platform.node() not in json.dumps(facts)
