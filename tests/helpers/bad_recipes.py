"""Lists of recipes for tests of ``check`` and ``train``: invalid ones, each with the keys that the error must name, and
valid ones whose values are just within the limits.

Add a row for every mistake in a recipe that can be found without training. The overrides are applied to
``tests/recipes/tiny.yaml``. ``{tmp}`` is the temporary folder of the test, which contains a file ``file.txt``.
"""

from __future__ import annotations

RADAM = ["optimizer._target_=torch.optim.RAdam"]
STREAM = [
    "data.streaming=true",
    "data.deduplicate=false",
    "data.tokenizer.sample_documents=10",
    "trainer.eval_samples=4",
]

BAD: list[tuple[list[str], list[str]]] = [
    # optimizers
    (["optimizer.lr=-1"], ["optimizer.lr"]),
    (["optimizer.betas=[1.5,0.9]"], ["optimizer.betas"]),
    (["optimizer.betas=[0.9]"], ["optimizer.betas"]),
    (["optimizer.betas=[]"], ["optimizer.betas"]),
    (["optimizer.lr=-1", "optimizer.eps=-1", "optimizer.weight_decay=-1"],
     ["optimizer.lr", "optimizer.eps", "optimizer.weight_decay"]),
    (["optimizer=sgd", "optimizer.momentum=1.5"], ["optimizer.momentum"]),
    (["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"], ["optimizer.nesterov"]),
    (["optimizer=lion", "optimizer.lr=-0.1"], ["optimizer.lr"]),
    (["optimizer=adafactor", "optimizer.clip_threshold=0.5"], ["optimizer.clip_threshold"]),
    ([*RADAM, "optimizer.lr=-1.0"], ["optimizer.lr"]),
    ([*RADAM, "optimizer.betas=[0.9,2.0]", "optimizer.eps=-1.0"], ["optimizer.betas", "optimizer.eps"]),
    (["+parameter_groups.rules=[{names: [nowhere.*], lr: 0.1}]"], ["parameter_groups.rules.0.names"]),
    (["+parameter_groups.rules=[]"], ["parameter_groups.rules"]),
    # compiled blocks, the best checkpoint
    (["plan.compile_mode=max-autotune"], ["plan.compile_mode"]),
    (["plan.compile=true", "plan.compile_backend=inducktor"], ["plan.compile_backend"]),
    (["plan.compile=true", "plan.compile_backend=eager", "plan.compile_mode=default"], ["plan.compile_mode"]),
    (["checkpoint.load_best=true"], ["checkpoint.load_best"]),
    (["checkpoint.load_best=true", "checkpoint.keep_best=1"], ["checkpoint.keep_best"]),
    # losses of tokens
    (["model.loss=liger"], ["model.loss"]),
    (["model.loss=pieces"], ["model.loss"]),
    (["task.z_loss=-1"], ["task.z_loss"]),
    # a byte-level BPE has no mask token
    (["model=bert_tiny", "task=masked_lm"], ["data.tokenizer.kind"]),
    # schedules
    (["scheduler=cosine", "scheduler.num_cycles=0"], ["scheduler.num_cycles"]),
    (["scheduler=cosine", "scheduler.num_cycles=-2"], ["scheduler.num_cycles"]),
    (["scheduler=cosine", "scheduler.num_cycles=1e308"], ["scheduler.num_cycles"]),
    (["scheduler=cosine_with_restarts", "scheduler.num_cycles=1.5"], ["scheduler.num_cycles"]),
    (["scheduler=polynomial", "scheduler.power=0"], ["scheduler.power"]),
    (["scheduler=cosine", "scheduler.min_lr_ratio=-0.1", "scheduler.warmup_ratio=2"],
     ["scheduler.min_lr_ratio", "scheduler.warmup_ratio"]),
    (["scheduler=linear", "scheduler.warmup_ratio=null", "scheduler.warmup_steps=11"], ["scheduler.warmup_steps"]),
    (["scheduler=warmup_stable_decay", "scheduler.warmup_ratio=0.7", "scheduler.decay_ratio=0.7"],
     ["scheduler.warmup_ratio"]),
    (["scheduler=warmup_stable_decay", "scheduler.warmup_ratio=null", "scheduler.warmup_steps=9",
      "scheduler.decay_ratio=0.9"], ["scheduler"]),
    # numbers
    (["seed=99999999999999999999999"], ["seed"]),
    (["trainer.max_grad_norm=inf"], ["trainer.max_grad_norm"]),
    (["trainer.timeout_minutes=-1"], ["trainer.timeout_minutes"]),
    (["trainer.timeout_minutes=1e18"], ["trainer.timeout_minutes"]),
    (["trainer.eval_every=0"], ["trainer.eval_every"]),
    (["optimizer=lion", "optimizer.lr=0"], ["optimizer.lr"]),
    (["trainer.eval_every=passes"], ["trainer.eval_every"]),
    (["trainer.eval_delay=5", "trainer.eval_every=null"], ["trainer.eval_delay"]),
    (["trainer.eval_delay=-1", "trainer.eval_every=2"], ["trainer.eval_delay"]),
    (["data.held_out=0", "trainer.eval_on_start=true"], ["trainer.eval_on_start"]),
    ([*STREAM, "checkpoint.every=epoch"], ["checkpoint.every"]),
    (["checkpoint.keep_last=0"], ["checkpoint.keep_last"]),
    (["checkpoint.every=-1"], ["checkpoint.every"]),
    (["+ema.decay=1.5"], ["ema.decay"]),
    (["data.held_out=1"], ["data.held_out"]),
    (["launch.gpus_per_node=-1"], ["launch.gpus_per_node"]),
    (["optimizer.lr=nan"], ["optimizer.lr"]),
    (["callbacks=[minimal,early_stopping]", "trainer.eval_every=2", "callbacks.early_stopping.min_delta=inf"],
     ["callbacks.early_stopping.min_delta"]),
    (["data.num_proc=100000", "data.num_workers=100000"], ["data.num_proc", "data.num_workers"]),
    (["trainer.global_batch_size=4611686018427387904", "data.block_size=4611686018427387904"],
     ["trainer.global_batch_size", "data.block_size"]),
    (["trainer.max_steps=4611686018427387904", "trainer.micro_batch_size=1000000000",
      "data.tokenizer.vocab_size=99999999999"],
     ["trainer.max_steps", "trainer.micro_batch_size", "data.tokenizer.vocab_size"]),
    (["trainer.max_steps=null", "trainer.epochs=1e18"], ["trainer.epochs"]),
    # fields of a model
    (["model.config.num_hidden_layers=4611686018427387904"], ["model.config.num_hidden_layers"]),
    (["model.config.hidden_size=4611686018427387904"], ["model.config.hidden_size"]),
    (["model.config.hidden_size=wide", "model.config.intermediate_size=[]"],
     ["model.config.hidden_size", "model.config.intermediate_size"]),
    (["model.config.num_attention_heads=0"], ["model.config.num_attention_heads"]),
    (["+model.config.rope_scaling={rope_type: yarnn}"], ["model.config.rope_scaling.rope_type"]),
    (["model.config.partial_rotary_factor=1e-300"], ["model.config.partial_rotary_factor"]),
    (["model.config.partial_rotary_factor=[1]"], ["model.config.partial_rotary_factor"]),
    (["model.config.intermediate_size=" + "9" * 30], ["model.config.intermediate_size"]),
    # metrics
    (["checkpoint.keep_best=1"], ["checkpoint.keep_best"]),
    (["checkpoint.keep_best=1", "checkpoint.every=5", "trainer.eval_every=3"], ["checkpoint.keep_best"]),
    (["checkpoint.keep_best=1", "checkpoint.every=5", "trainer.eval_every=5", "checkpoint.metric=eval_f1"],
     ["checkpoint.metric"]),
    (["callbacks=[minimal,early_stopping]"], ["callbacks.early_stopping"]),
    (["callbacks=[minimal,early_stopping]", "trainer.eval_every=20"], ["callbacks.early_stopping"]),
    (["callbacks=[minimal,early_stopping]", "trainer.eval_every=2", "callbacks.early_stopping.metric=eval_los"],
     ["callbacks.early_stopping.metric"]),
    (["callbacks=[minimal,best_model]"], ["callbacks.best_model"]),
    # callbacks, collator
    (["callbacks=[minimal,export]", "callbacks.export.ema=true"], ["callbacks.export.ema"]),
    (["callbacks=[minimal,push]", "callbacks.push.hub_id=own/mine", "callbacks.push.ema=true"], ["callbacks.push.ema"]),
    (["callbacks=[minimal,early_stopping]", "trainer.eval_every=2", "callbacks.early_stopping.patience=0"],
     ["callbacks.early_stopping.patience"]),
    (["callbacks=[default]", "callbacks.progress.plain_every=-1", "callbacks.watchdog.timeout=0"],
     ["callbacks.progress.plain_every", "callbacks.watchdog.timeout"]),
    (["callbacks=[minimal,nonfinite]", "callbacks.nonfinite.action=jump"], ["callbacks.nonfinite.action"]),
    (["callbacks=[minimal,sample]", "callbacks.sample.prompts=[]"], ["callbacks.sample.prompts"]),
    (["callbacks=[minimal,export]", "callbacks.export.max_shard_size=big"], ["callbacks.export.max_shard_size"]),
    (["+collator=causal_lm", "collator.pad_to_multiple_of=0"], ["collator.pad_to_multiple_of"]),
    # frozen parameters
    (["model.frozen=[typo.*]"], ["model.frozen"]),
    (["model.frozen=['*']"], ["model.frozen"]),
    # folders and names
    (["run.dir={tmp}/file.txt"], ["run.dir"]),
    (["run.dir={tmp}/file.txt/below"], ["run.dir"]),
    (["run.dir=/proc/nowhere"], ["run.dir"]),
    (["run.dir="], ["run.dir"]),
    (["run.dir='{tmp}/two\nlines'"], ["run.dir"]),
    (["run.dir={tmp}/" + "x" * 300], ["run.dir"]),
    (["data.cache_dir={tmp}/file.txt"], ["data.cache_dir"]),
    (["run.dir='~nobody_here/run'"], ["run.dir"]),
    (["data.cache_dir='~nobody_here/cache'"], ["data.cache_dir"]),
    (["data.tokenizer.path='~nobody_here/tokenizer'"], ["data.tokenizer.path"]),
    (["data.tokenizer.path=" + "x" * 300], ["data.tokenizer.path"]),
    (["model.weights={tmp}/" + "x" * 300], ["model.weights"]),
    (["plan=" + "x" * 300], ["plan"]),
]  # fmt: skip

NEEDS_DATA: list[tuple[list[str], list[str]]] = [
    (["trainer.max_steps=null", "trainer.epochs=1", "scheduler=linear", "scheduler.warmup_ratio=null",
      "scheduler.warmup_steps=5000"], ["scheduler.warmup_steps"]),
    (["trainer.max_steps=null", "trainer.epochs=1", "trainer.stop_at=5000"], ["trainer.stop_at"]),
]  # fmt: skip
"""Recipes whose mistake shows only when the size of the data is known: ``train`` refuses them before the first step."""

GOOD: list[list[str]] = [
    ["optimizer.lr=0", "optimizer.weight_decay=0"],
    ["optimizer=sgd", "optimizer.momentum=0"],
    ["optimizer=lion"],
    ["optimizer=adafactor"],
    RADAM,
    ["scheduler=polynomial", "scheduler.min_lr_ratio=0", "scheduler.power=0.5"],
    ["scheduler=cosine_with_restarts", "scheduler.num_cycles=3"],
    ["scheduler=warmup_stable_decay", "scheduler.decay_ratio=0", "scheduler.min_lr_ratio=1"],
    ["checkpoint.keep_best=1", "checkpoint.every=1", "trainer.eval_every=1", "callbacks=[minimal,best_model]"],
    ["model.frozen=['model.layers.0.*']"],
    ["+parameter_groups.rules=[{names: ['*.bias', '*.weight'], lr_ratio: 0.5, weight_decay: 0}]"],
    ["collator=causal_lm", "collator.pad_to_multiple_of=4"],
]
"""Recipes with values at the limits of what is valid: ``check`` and ``train`` must accept them."""
