"""Predictions to files: the challenge's outputs, a patient's folder, the report, pictures."""
