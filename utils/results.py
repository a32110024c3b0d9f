"""What an evaluation leaves behind: `results.json`, `results.md` and figures as PNG.

Each of them carries the command, commit, data, seeds, machine and versions.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ResultsError(Exception):
    """A folder of results that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Results:
    """One evaluation.

    title: one line.
    data: one sentence that says what was measured on, and what it cannot be compared with.
    seeds: the seeds of the runs; empty where nothing is random.
    values: plain values for programs; numbers that are not finite are written as null.
    text: the tables for people, in Markdown.
    figures: Matplotlib figures by the name of their file, without a suffix.
    """

    title: str
    data: str
    seeds: Sequence[int]
    values: Mapping[str, Any]
    text: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


def write_results(folder: Path, results: Results, provenance: Mapping[str, Any]) -> None:
    """Write the files into `folder`; each appears complete or not at all, `results.json` last.

    `provenance`: what `utils.provenance.provenance` returns.
    """
    facts = _facts(results, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in results.figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Title": results.title, **facts})
        _replace(folder / f"{name}.png", buffer.getvalue())
    images = [f"![{name}]({name}.png)" for name in results.figures]
    listing = "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if name != "Data")
    blocks = [f"# {results.title}", results.data, results.text.strip(), *images, listing]
    _replace(folder / "results.md", ("\n\n".join(blocks) + "\n").encode())
    record = {
        "title": results.title,
        "data": results.data,
        "seeds": list(results.seeds),
        "results": results.values,
        "provenance": provenance,
    }
    write_json(folder / "results.json", record)


def write_json(path: Path, value: Any) -> None:
    """Write plain values, complete or not at all; numbers that are not finite become null."""
    text = json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, (text + "\n").encode())


def hold_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings.json` into a new folder of results; in one that has it, compare.

    `settings`: what must stay the same for results in one folder to be comparable; plain values.
    Raises `ResultsError` where one differs from what the folder holds.
    """
    file = folder / "settings.json"
    wanted = json.loads(json.dumps(_finite(settings)))
    if not file.exists():
        write_json(file, wanted)
        return
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        pairs = [(name, held[name], wanted[name]) for name in wanted]
    except (ValueError, TypeError, KeyError):
        raise ResultsError(
            f"{file}: not the settings of such results; name another folder with --name"
        ) from None
    for name, before, now in pairs:
        while before != now and isinstance(before, dict) and isinstance(now, dict):
            key = next(k for k in {**before, **now} if before.get(k) != now.get(k))
            name, before, now = f"{name}.{key}", before.get(key), now.get(key)
        if before != now:
            raise ResultsError(
                f"{folder}: made with {name} {before}, not {now}; "
                "use the same settings, or another folder with --name"
            )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; numbers are to be formatted by the caller."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def _facts(results: Results, provenance: Mapping[str, Any]) -> dict[str, str]:
    """The provenance in words, by heading."""
    machine = provenance["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    versions = provenance["versions"].items()
    return {
        "Command": f"`{provenance['command']}`",
        "Commit": provenance["commit"],
        "Date": provenance["date"],
        "Data": results.data,
        "Seeds": ", ".join(map(str, results.seeds)) or "none, nothing is random",
        "Machine": f"{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {gpus}; {provenance['system']}",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions),
    }


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has no word for, by None; copies what it holds."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
