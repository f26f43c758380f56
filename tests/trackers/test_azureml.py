"""Test with the real Azure ML plugin and a local server: a resumed run inside an Azure ML job, and refusals where the
workspace's address or the login is missing.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from helpers.mlflow_server import mlflow_server
from helpers.tracked import same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.azureml import AzureML

WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"


def secure(folder: Path) -> ssl.SSLContext:
    """TLS with a certificate for the loopback address, which is written into ``folder``."""
    tool = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    tool += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(tool, cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def token() -> str:
    parts = ({"alg": "none"}, {"exp": int(time.time()) + 3600})
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), ""])


def test_a_run_within_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, known = tmp_path / "runs" / "oars", token()
    with mlflow_server(known, f"/mlflow/v2.0{WORKSPACE}", secure(tmp_path)) as server:
        job = {"run_name": "the job", "experiment_id": "1"}
        number = server._new(job)["info"]["run_id"]
        told = {
            "REQUESTS_CA_BUNDLE": str(tmp_path / "cert.pem"),
            "MLFLOW_TRACKING_URI": f"azureml://{server.url.removeprefix('https://')}/mlflow/v1.0{WORKSPACE}",
            "MLFLOW_TRACKING_TOKEN": known,
            "MLFLOW_RUN_ID": number,
            "MLFLOW_EXPERIMENT_NAME": "sea",
        }
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        assert train_twice(run_dir, "azureml", artifacts="") == number
        (run,) = server.runs.values()
    losses = [(m["key"], m["step"], m["value"]) for m in run["history"] if m["key"] in ("train/loss", "eval/loss")]
    same_losses(losses, run_dir)
    assert run["info"]["status"] == "FINISHED"
    assert {"key": "trainer.global_batch_size", "value": "8"} in run["data"]["params"]


def test_a_missing_login_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="uri=None is not the address of a workspace"):
        AzureML()
    with pytest.raises(UserError, match=r"Azure ML: there is no login of Azure\n  fix: az login"):
        AzureML(uri=f"azureml://eastus.api.azureml.ms/mlflow/v1.0{WORKSPACE}")
