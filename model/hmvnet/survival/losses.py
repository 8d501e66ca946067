"""Losses on right-censored outcomes, in torch.

Throughout, ``risk`` ``[b]`` is higher for earlier events, ``time`` ``[b]`` is the follow-up (any
unit) and ``event`` ``[b]`` is true (1) where it ended in an event. A batch from which nothing can
be learnt (no event, no comparable pair) gives a loss of 0 that still has a gradient, so that a
training step on a small batch never fails.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood of Cox's model per event, ties after Efron (1977).

    Args:
        risk: log relative hazards ``[b]``.
        time, event: ``[b]`` each.

    Computed in log space and at least float32: risks hundreds apart neither overflow nor vanish.
    """
    event = event.bool()
    if len(event) < 2 or not event.any():
        return _zero(risk)
    order = torch.argsort(time, descending=True, stable=True)
    risk, time, event = at_least_float32(risk)[order], time[order], event[order]

    # Log of the summed hazard of everyone still followed, at the last patient of each tied time.
    _, group, size = torch.unique_consecutive(time, return_inverse=True, return_counts=True)
    log_at_risk = torch.logcumsumexp(risk, dim=0)[size.cumsum(0) - 1][group]

    # Efron: of m events at one time, the r-th (r = 0, 1, ...) has r/m of their own hazard removed.
    group, risk, log_at_risk = group[event], risk[event], log_at_risk[event]
    events_then = torch.bincount(group, minlength=len(size))
    first = events_then.cumsum(0) - events_then
    rank = torch.arange(len(group), device=group.device) - first[group]
    removed = rank / events_then[group]
    share = torch.zeros(len(size), dtype=risk.dtype, device=risk.device)
    share = share.index_add(0, group, torch.exp(risk - log_at_risk))
    log_likelihood = risk - log_at_risk - torch.log1p(-removed * share[group])
    return -log_likelihood.mean()


def ranking_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Mean logistic loss over comparable pairs, in bits: an upper bound on 1 - Harrell's C.

    A pair costs log2(1 + exp(-(risk_i - risk_j))), patient i having had the event before j's
    follow-up ended (Steck et al., "On ranking in survival analysis: bounds on the concordance
    index", NIPS 2007).
    """
    pairs = comparable_pairs(time, event)
    if not pairs.any():
        return _zero(risk)
    risk = at_least_float32(risk)
    ahead = risk[:, None] - risk[None, :]
    return F.softplus(-ahead[pairs]).mean() / math.log(2.0)


def discrete_loss(logits: Tensor, interval: Tensor, elapsed: Tensor, event: Tensor) -> Tensor:
    """Mean negative log likelihood of a distribution over time intervals.

    Args:
        logits: ``[b, k]``; their softmax is the probability of an event in each of k consecutive
            intervals, the last one open.
        interval: index ``[b]`` of the interval in which follow-up ended.
        elapsed: the share ``[b]`` of that interval that was over by then, 0 in the open one.
        event: ``[b]``; a censored patient has the event in the rest of that interval or later.

    Counting the rest of the interval only, not all of it or none, leaves the curves unbiased where
    events are spread evenly within it.
    """
    log_p = F.log_softmax(at_least_float32(logits), dim=1)
    log_p_then = log_p.gather(1, interval[:, None])[:, 0]
    index = torch.arange(log_p.shape[1], device=log_p.device)
    to_come = (index > interval[:, None]) + (index == interval[:, None]) * (1 - elapsed[:, None])
    log_p_to_come = torch.logsumexp(log_p + to_come.to(log_p.dtype).log(), dim=1)
    return -torch.where(event.bool(), log_p_then, log_p_to_come).mean()


def deephit_ranking_loss(
    logits: Tensor, interval: Tensor, time: Tensor, event: Tensor, sigma: float = 0.1
) -> Tensor:
    """DeepHit's ranking term: mean of exp((F_j - F_i) / sigma) over comparable pairs (i before j).

    F is the predicted probability of an event up to the interval of i's event (Lee et al.,
    "DeepHit: a deep learning approach to survival analysis with competing risks", AAAI 2018, eq.
    5). Shapes as in ``discrete_loss``.
    """
    pairs = comparable_pairs(time, event)
    if not pairs.any():
        return _zero(logits)
    cumulative = F.softmax(at_least_float32(logits), dim=1).cumsum(dim=1)
    at_event = cumulative[:, interval].T  # [i, j]: F of patient j at i's interval
    ahead = at_event.diagonal()[:, None] - at_event
    return torch.exp(-ahead[pairs] / sigma).mean()


def comparable_pairs(time: Tensor, event: Tensor) -> Tensor:
    """Whether patient i had the event while j was known to outlast it: bool ``[i, j]``.

    Who is censored at the time of an event outlasts it; two events at one time do not compare.
    """
    event = event.bool()
    later = time[None, :] > time[:, None]
    censored_then = (time[None, :] == time[:, None]) & ~event[None, :]
    return event[:, None] & (later | censored_then)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision raised to float32, as log-sums need; float32 and float64 untouched."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _zero(values: Tensor) -> Tensor:
    return (at_least_float32(values) * 0.0).sum()
