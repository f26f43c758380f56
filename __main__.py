"""``python -m trireme COMMAND`` does the same as ``trireme COMMAND``, for shells that do not find ``trireme``."""

from trireme.launch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
