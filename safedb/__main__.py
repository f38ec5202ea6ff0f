"""Let ``python -m safedb`` be the command line."""

from safedb.cli import main

if __name__ == "__main__":  # processes started by "spawn" import this module again, under another name
    raise SystemExit(main())
