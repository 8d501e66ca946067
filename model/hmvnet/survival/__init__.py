"""Survival models on vectors: ICARE, baselines, losses, evaluation (`baselines` and `evaluation`
need scikit-survival, which inference does not)."""
