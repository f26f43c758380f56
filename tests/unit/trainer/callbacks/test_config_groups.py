"""Every YAML file of the Hydra config group ``callbacks`` builds callbacks, alone and together with a tracker."""

from __future__ import annotations

from pathlib import Path

import pytest
import trireme
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.component import instantiate

CONFIGS = Path(trireme.__file__).parent / "configs"


def built(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=list(overrides))
    nodes = OmegaConf.to_container(config.callbacks)
    return {name: instantiate(node) for name, node in nodes.items()}


@pytest.mark.parametrize("file", sorted((CONFIGS / "callbacks").glob("*.yaml")), ids=lambda file: file.stem)
def test_each_file_builds(file):
    callbacks = built(f"+callbacks={file.stem}")
    assert callbacks and all(isinstance(callback, Callback) for callback in callbacks.values())


def test_groups_compose_in_order_and_a_tracker_is_a_callback():
    pytest.importorskip("tensorboard")
    names = list(built("+callbacks=[default,sample,early_stopping,best_model]", "+tracker=tensorboard"))
    assert names[:2] == ["flow", "throughput"], "flow decides what a step does, and throughput reads it"
    assert set(names) == {"flow", "throughput", "metrics", "progress", "curve", "sample", "early_stopping",
                          "best_model", "tensorboard", "watchdog", "report"}  # fmt: skip


def test_no_tracker_changes_nothing():
    assert list(built("+callbacks=minimal", "+tracker=none")) == ["flow", "metrics"]
