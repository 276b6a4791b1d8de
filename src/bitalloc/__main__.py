"""``python -m bitalloc`` is the ``bitalloc`` command."""

from bitalloc.cli import main

main()
