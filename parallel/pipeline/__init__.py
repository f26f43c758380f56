"""Pipeline parallelism: cut a model into stages and run them by a schedule."""
