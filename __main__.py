"""``python -m trireme COMMAND`` does what ``trireme COMMAND`` does, for shells that do not find the script."""

from trireme.launch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
