"""Segmentation: networks at work, a case to its label map, the challenge's metrics."""
