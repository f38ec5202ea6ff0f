"""Compare safedb with its peers on this machine: ``python3 -m benchmarks [--long] …``, in a clone, with Python alone.

Makes an environment of its own in ``.benchmarks/env`` (and again when what belongs into it has changed), and runs
`benchmarks.compare` there with the same arguments.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".benchmarks" / "env"
LISTS = (ROOT / "pyproject.toml", ROOT / "benchmarks" / "peers.txt")
OLDEST = (3, 11)


def stamp() -> str:
    """Tell what the environment is made of: the Python, and the lists of what is installed."""
    parts = [sys.version, sys.prefix, *(path.read_text(encoding="utf-8") for path in LISTS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def prepare(environment: Path = ENVIRONMENT) -> Path:
    """Make the environment where it is not there as it has to be; give its Python."""
    python = environment / "bin" / "python"
    made, wanted = environment / "made-of", stamp()
    if not (made.exists() and made.read_text(encoding="utf-8") == wanted):
        if environment.is_symlink():
            sys.exit(f"{environment} is a symbolic link, and what it leads to would be cleared: remove the link.")
        print(f"Installing the peers into {environment} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-e", f"{ROOT}[postgres,cli]", "-r", str(LISTS[1])], check=True)
        made.write_text(wanted, encoding="utf-8")
    return python


def main() -> None:
    """Be replaced by the comparison, in its environment."""
    if sys.version_info < OLDEST:
        sys.exit(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed.")
    try:
        python = prepare()
    except subprocess.CalledProcessError as error:
        sys.exit(f"The environment could not be made (it takes pip, venv and the network): {error}")
    except OSError as error:
        sys.exit(f"The environment could not be made: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    # The folder of the clone comes first: `benchmarks` is not installed.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.execve(python, [str(python), "-m", "benchmarks.compare", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path})


if __name__ == "__main__":
    main()
