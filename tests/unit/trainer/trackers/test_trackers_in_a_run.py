"""Tests that TensorBoard, W&B and MLflow each show every metric once for a run that is interrupted and resumed.

The recipe, the group, the files and the status of the run are checked too. W&B runs offline; ``wandb sync`` then
uploads its files to a local server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tracked import ARTIFACTS, known_as, same_losses, train_tracked
from helpers.wandb_server import KEY, wandb_server

pytest.importorskip("wandb")
pytest.importorskip("mlflow")
OF_EACH = ("tensorboard", "wandb", "mlflow")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps, stopped after three and resumed by the same command."""
    folder = tmp_path_factory.mktemp("runs") / "oars"
    choices = [f"tracker=[{','.join(OF_EACH)}]", "callbacks.wandb.mode=offline", "trainer.max_steps=6"]
    for name in OF_EACH:
        choices += [f"callbacks.{name}.group=study", f"callbacks.{name}.tags=[long]", f"callbacks.{name}.project=sea"]
        choices += [f"callbacks.{name}.artifacts={'[curve,samples]' if name == 'tensorboard' else ARTIFACTS}"]
    train_tracked(folder, *choices, "trainer.stop_at=3")
    first = [known_as(folder, name) for name in OF_EACH]
    train_tracked(folder, *choices)
    assert [known_as(folder, name) for name in OF_EACH] == first, "the resume began another run"
    assert not (folder / ".tracked").exists(), "links to checkpoints are left"
    return folder


def test_tensorboard(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    found = [(tag, e.step, e.value) for tag in ("train/loss", "eval/loss") for e in events.Scalars(tag)]
    same_losses(found, run_dir)
    assert events.Scalars("system/process_memory_mib")[0].value > 10
    assert events.Images("curve")[-1].width > 100
    tags = [tag for tag in events.Tags()["tensors"] if tag.endswith("text_summary")]
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags}
    assert '"group": "study"' in texts["recipe/text_summary"] and '"max_steps": 6' in texts["recipe/text_summary"]
    assert "--- step 6" in texts["samples/text_summary"]
    assert texts["status/text_summary"] == "finished: all 6 steps are done"
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_mlflow(run_dir: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sea")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["status"]) == (
        "oars", "FINISHED", "finished: all 6 steps are done")  # fmt: skip
    assert (run.data.tags["group"], run.data.tags["long"]) == ("study", "true")
    assert run.data.params["trainer.global_batch_size"] == "8" and run.data.params["about.ranks"] == "1"
    assert run.data.tags["resumed.trainer.stop_at"] == "null", "parameters cannot change, so the change is a tag"
    found = [
        (tag, each.step, each.value)
        for tag in ("train/loss", "eval/loss")
        for each in client.get_metric_history(run.info.run_id, tag)
    ]
    same_losses(found, run_dir)
    assert client.get_metric_history(run.info.run_id, "system/cpu_percent")
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert kept == {"checkpoints", "curve.png", "samples.txt", "log.txt"}
    names = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "checkpoints")]
    assert names == ["step_00000002", "step_00000003", "step_00000004", "step_00000006"]
    where = Path(run.info.artifact_uri.removeprefix("file://")) / "checkpoints"
    kept_weights = sorted(path.name for path in (where / "step_00000006").rglob("*") if path.is_file())
    assert kept_weights and kept_weights == sorted(
        path.name for path in (run_dir / "checkpoints" / "step_00000006").rglob("*") if path.is_file()
    )


def test_wandb(run_dir: Path) -> None:
    """Two offline parts, which the server joins by the id of the run."""
    parts = sorted((run_dir / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and len({part.name.rpartition("-")[2] for part in parts}) == 1
    with wandb_server() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        for part in parts:
            tool = [sys.executable, "-m", "wandb", "sync", str(part)]
            done = subprocess.run(tool, env=environment, cwd=run_dir, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert (run["displayName"], run["groupName"], run["tags"]) == ("oars", "study", ["long"])
    assert run["config"]["trainer"]["value"]["global_batch_size"] == 8
    found = [
        (tag, line["step"], line[tag]) for line in run["history"] for tag in ("train/loss", "eval/loss") if tag in line
    ]
    same_losses(found, run_dir)
    assert any("system/cpu_percent" in line for line in run["history"])
    assert any("curve" in line for line in run["history"])
    assert {each["artifactCollectionName"] for each in run["artifacts"]} == {f"{known_as(run_dir, 'wandb')}-checkpoint"}
    assert run["summary"]["status"] == "finished" and run["exit"] == 0
