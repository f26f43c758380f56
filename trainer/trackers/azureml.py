"""Tracker for Azure ML: report to the MLflow server of a workspace, through the plugin ``azureml-mlflow``.

In a job on Azure ML the address (``MLFLOW_TRACKING_URI``) and the login are given. Elsewhere ``uri`` is the address of
the workspace (``az ml workspace show --query mlflow_tracking_uri``), and the login is that of ``azure-identity``: ``az
login``, or ``AZURE_CLIENT_ID``, ``AZURE_TENANT_ID`` and ``AZURE_CLIENT_SECRET``. A run without a login is refused: the
plugin would open a browser, which is not possible on a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from .about_run import AboutRun
from .mlflow_protocol import MlflowAddress
from .tracker import NoLogin

SCOPE = "https://management.azure.com/.default"


@dataclass(eq=False)
class AzureML(MlflowAddress):
    """Reports to Azure ML, at the address of the workspace."""

    TITLE: ClassVar = "Azure ML"
    LIBRARY: ClassVar = "azureml.mlflow"
    PACKAGE: ClassVar = "azureml-mlflow"
    KEY: ClassVar = "azureml"

    def flaws(self) -> Iterator[str]:
        yield from super().flaws()
        if not (self.server or "").startswith("azureml://"):
            yield f"uri={self.server} is not the address of a workspace; write azureml://... or set MLFLOW_TRACKING_URI"

    def start(self, run: AboutRun) -> str:
        """Begin a run, or go on with that of the job on Azure ML in which this one is started."""
        return super().start(replace(run, id=run.id or os.environ.get("MLFLOW_RUN_ID")))

    def login(self) -> None:
        fix = "az login, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"
        if not os.environ.get("MLFLOW_TRACKING_TOKEN"):  # a job on Azure ML has one
            errors = self.module("azure.core.exceptions")
            try:
                self.module("azure.identity").DefaultAzureCredential(process_timeout=5).get_token(SCOPE)
            except errors.ClientAuthenticationError:
                raise NoLogin("there is no login of Azure", fix) from None
        self.ask(fix)
