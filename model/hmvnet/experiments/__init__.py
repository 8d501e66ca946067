"""Scoring, tuning, comparing and measuring: what uses the whole house."""
