"""What the engine is measured against, and by: `python -m benchmarks --help`."""
