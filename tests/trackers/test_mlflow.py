"""Test with a real MLflow server (``mlflow server``, from the full package): a resumed run with its artifacts."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from helpers.running import until
from helpers.tracked import same_losses, train_twice


@contextmanager
def own_server(folder: Path) -> Iterator[str]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tool = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port), "--host", "127.0.0.1"]
    tool += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "kept"),
    ]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(tool, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=1).status == 200
        except OSError:
            return False

    try:
        until(answers, 90)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def test_a_resumed_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run_dir = tmp_path / "runs" / "oars"
    with own_server(tmp_path) as url:
        known = train_twice(run_dir, "mlflow", f"callbacks.mlflow.uri={url}")
        client = MlflowClient(url)
        run = client.get_run(known)
        assert (run.info.run_name, run.info.status, run.data.tags["group"]) == ("oars", "FINISHED", "study")
        assert run.data.params["trainer.global_batch_size"] == "8"
        tags = ("train/loss", "eval/loss")
        same_losses(
            [(tag, each.step, each.value) for tag in tags for each in client.get_metric_history(known, tag)], run_dir
        )
        kept = {file.path for file in client.list_artifacts(known)}
        assert kept == {"checkpoints", "curve.png", "samples.txt", "log.txt"}
