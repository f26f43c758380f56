"""Test with the real Aim library: its repository holds every loss of a run that was interrupted and resumed."""

from __future__ import annotations

from pathlib import Path

from helpers.tracked import same_losses, train_twice


def test_a_resumed_run(tmp_path: Path) -> None:
    import aim
    from aim.sdk.index_manager import RepoIndexManager
    from aim.storage.context import Context

    run_dir = tmp_path / "runs" / "oars"
    known = train_twice(run_dir, "aim", artifacts="[curve,samples]")
    repo = aim.Repo.from_path(str(tmp_path / "runs"))
    RepoIndexManager(repo).index(known)  # as `aim up` does
    (run,) = list(repo.iter_runs())
    assert (run.hash, run.name, run.experiment, run.tags) == (known, "oars", "sea", ["long"])
    assert (run["group"], run["status"]) == ("study", "finished")
    assert run["recipe"]["trainer"]["global_batch_size"] == 8
    losses, names = [], set()
    for metric in run.metrics():
        subset = metric.context.to_dict()["subset"]
        names.add(f"{subset}/{metric.name}")
        if metric.name == "loss":
            steps, (values, *_) = metric.data.numpy()
            losses += [(f"{subset}/loss", int(step), float(value)) for step, value in zip(steps, values, strict=True)]
    same_losses(losses, run_dir)
    assert {"system/cpu_percent", "train/lr"} <= names
    curve, samples = run.get_image_sequence("curve", Context({})), run.get_text_sequence("samples", Context({}))
    assert curve is not None and samples is not None and len(curve) >= 1 and len(samples) >= 1
