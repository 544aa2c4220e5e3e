"""Clouds of weighted particles between observations, and what a filter tells of them."""

from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float, Int32


@flax.struct.dataclass
class FilterState:
    """The cloud between two observations."""

    particles: Any
    """Leaves [N, ...]."""
    log_weights: Float[Array, "particles"]
    """Normalized."""
    log_evidence: Float[Array, ""]
    """Of all observations so far."""
    time: Int32[Array, ""]
    """That of the last observation."""
    status: Int32[Array, ""]
    """The first that was not OK."""


@flax.struct.dataclass
class FilterStep:
    """What one observation told."""

    mean: Any
    """Of the weighted cloud; leaves without the axis of particles."""
    effective_sample_size: Float[Array, ""]
    """After the observation was weighed."""
    resampled: Bool[Array, ""]
    """Whether the cloud was resampled before it moved."""
    log_evidence_increment: Float[Array, ""]
    """Log-density of the observation given those before: 0 where it is missing, -inf where no particle explains it."""
    ancestors: Int32[Array, "particles"] | None
    """Which particle of the step before each one descends from; its own index where the cloud was not resampled."""


@flax.struct.dataclass
class FilterHistory:
    """The clouds themselves, as far as `history` asked for them."""

    ancestors: Int32[Array, "time particles"] | None
    """With "ancestors" and "full"."""
    particles: Any
    """With "full": leaves [T, N, ...]."""
    log_weights: Float[Array, "time particles"] | None
    """With "full"."""


@flax.struct.dataclass
class FilterResult:
    """The last cloud, and what every step told."""

    particles: Any
    log_weights: Float[Array, "particles"]
    """Normalized."""
    log_evidence: Float[Array, ""]
    """Log-density of all observations; its exponential is unbiased, itself it is low by about half its variance."""
    log_evidence_increments: Float[Array, "time"]
    effective_sample_size: Float[Array, "time"]
    resampled: Bool[Array, "time"]
    mean: Any
    """Leaves [T, ...]."""
    covariance: Any
    """Leaves [T, *shape, *shape]; None where `history` is "none"."""
    history: FilterHistory | None
    """None where `history` is "none" or "moments"."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, NONFINITE_RESULT, DEGENERATE: the first that happened."""
