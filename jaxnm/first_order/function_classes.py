"""Inequalities that hold between the points of a function of a class: what a convergence proof may use.

A class is a table: for every ordered pair (i, j) of points with positions y, gradients g and values f, a quadratic form
in the (y, g) and a linear form in the f whose sum is nonnegative on every function of the class, and only on those.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Inequalities(NamedTuple):
    """`e^T quadratic[k] e + values[k] f >= 0` in the coordinates e and the function values f."""

    quadratic: Float[np.ndarray, "k d d"]
    """Symmetric."""
    values: Float[np.ndarray, "k points"]
    """Integers -1, 0, 1."""


def pairs_of(num_points: int) -> np.ndarray:
    """[k, 2]: all ordered pairs of different points, by the second, then by the first."""
    return np.array([(i, j) for j in range(num_points) for i in range(num_points) if i != j])


def smooth_convex(positions: Float[np.ndarray, "points d"], gradients: Float[np.ndarray, "points d"]) -> Inequalities:
    """Convex functions with a 1-Lipschitz gradient: f_i - f_j - g_j (y_i - y_j) - |g_i - g_j|^2 / 2 >= 0.

    Positions and gradients are rows: linear forms in d coordinates. L-smooth mu-strongly convex functions come down to
    this class: (f - mu |y|^2 / 2) / (L - mu) is in it.

    Source: Taylor, Hendrickx, Glineur, Math. Program. 161 (2017), 307-345, theorem 4.
    """
    first, second = pairs_of(positions.shape[0]).T
    between = positions[first] - positions[second]
    jump = gradients[first] - gradients[second]
    product = np.einsum("ka,kb->kab", gradients[second], between)
    quadratic = -(product + product.swapaxes(1, 2)) / 2 - np.einsum("ka,kb->kab", jump, jump) / 2
    values = np.zeros((len(first), positions.shape[0]))
    values[np.arange(len(first)), first] += 1
    values[np.arange(len(first)), second] -= 1
    return Inequalities(quadratic, values)
