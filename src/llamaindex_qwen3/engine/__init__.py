"""How vectors and scores are computed; knows nothing of LlamaIndex."""
