"""Survival models on vectors, and how good they are.

``icare`` and ``linear`` are all that inference imports. ``losses``, ``metrics``, ``bootstrap``
(intervals, of Task 1 too), ``baselines`` and ``validation`` each need what comes before them at
most; ``metrics``, ``baselines`` and ``validation`` need scikit-survival, which the container lacks.
"""
