"""Classical survival models, their losses, and how well survival models do (scikit-survival)."""
