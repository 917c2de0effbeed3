"""How evaluation works inside; `llamaindex_qwen3.evaluate` is its public surface."""
