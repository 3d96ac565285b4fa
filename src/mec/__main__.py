"""``python -m mec`` is the ``mec`` command."""

from mec.cli.main import entry

if __name__ == "__main__":
    entry()
