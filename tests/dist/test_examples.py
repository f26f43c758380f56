"""The notebooks in ``examples/`` run from the first cell to the last in a Jupyter kernel and show their results."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def execute(name: str, folder: Path) -> list[Any]:
    """Code cells of a notebook after it has run in ``folder``; nbclient raises when a cell does."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> str:
    """Everything a cell shows as text or HTML."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(parts)


@pytest.mark.slow
def test_first_run(tmp_path: Path) -> None:
    train, table, plot, two, text = execute("first_run", tmp_path)
    assert '<progress value="30" max="30"' in shown(train), "progress of this process"
    assert '<progress value="30" max="30"' in shown(two), "progress of ranks that are other processes"
    assert "tokens_per_second" in shown(table)
    assert any("image/png" in output.get("data", {}) for output in plot.outputs)
    assert float(shown(two).rsplit("(", 1)[-1].rstrip(")\n ") or "inf") < 1e-5, "the losses are those of one process"
    (result,) = [output["data"]["text/plain"] for output in text.outputs if output["output_type"] == "execute_result"]
    _, prompt, written = ast.literal_eval(result).partition("def ")
    assert prompt and written, "the model goes on from its prompt"


@pytest.mark.long
def test_change_the_plan(tmp_path: Path) -> None:
    begun, moved, plot, refused, exported, dtype = execute("change_the_plan", tmp_path)
    assert shown(begun).rstrip().endswith("12") and shown(moved).rstrip().endswith("24")
    assert any("image/png" in output.get("data", {}) for output in plot.outputs)
    assert "optimizer.learning_rate" in shown(refused)
    assert "model.safetensors" in shown(exported) and "bfloat16" in shown(dtype)


@pytest.mark.slow
def test_fine_tune_a_chat(tmp_path: Path) -> None:
    _, rows, masks, before, train, after = execute("fine_tune_a_chat", tmp_path)
    assert "chats.jsonl" in rows.source and "IFrame" in shown(masks)
    page = (tmp_path / "masks.html").read_text()
    assert '<span class="learnt">' in page and "trireme" in page
    assert any("image/png" in output.get("data", {}) for output in train.outputs)
    said, wanted = (ast.literal_eval(_result(cell)) for cell in (before, after))
    told = [line for line in rows.source.splitlines() if line.startswith('    "') and '": "' in line]
    answers = dict(ast.literal_eval(f"({line.strip().rstrip(',').replace(': ', ', ', 1)})") for line in told)
    assert len(answers) == 6 and not any(said[question] == answer for question, answer in answers.items())
    assert sum(wanted[question] == answer for question, answer in answers.items()) >= 5
    lines = (tmp_path / "runs" / "ship" / "metrics.jsonl").read_text().splitlines()
    evaluated = [json.loads(line)["eval_loss"] for line in lines if "eval_loss" in line]
    assert evaluated[-1] < 0.5 * evaluated[0]


def _result(cell: Any) -> str:
    """The value of the last expression in a cell, as text."""
    return next(o["data"]["text/plain"] for o in cell.outputs if o["output_type"] == "execute_result")
