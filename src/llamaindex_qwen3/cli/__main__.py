"""Run the command line as ``python -m llamaindex_qwen3.cli``."""

from . import main

main()
