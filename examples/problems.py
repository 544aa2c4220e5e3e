"""Regularized logistic regression on two data sets that scikit-learn ships, minimized to rounding."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn import datasets

import jaxnm.first_order as fo
from jaxnm import raise_if_failed

REGULARIZATION = 0.01
"""Coefficient r of r |params|^2 / 2, over all parameters: no curvature is below it."""


class Problem(NamedTuple):
    """A loss with its minimizer and the eigenvalues and eigenvectors of its Hessian there."""

    data: str
    loss: Callable[[Array], Array]
    solution: Array
    gradient: float
    """Norm of the gradient at the solution."""
    spectrum: fo.Spectrum
    modes: Array
    """[d, d]: eigenvectors in the columns, in the order of the spectrum."""
    curvature_at_zero: float
    """Largest eigenvalue of the Hessian where the runs start."""
    num_steps: int
    """How many iterations each run takes."""


def breast_cancer() -> tuple[str, Callable[[Array], Array], Array]:
    """Description, logistic loss on standardized features and a constant, and where to start; the bias counts too."""
    features, classes = map(np.asarray, datasets.load_breast_cancer(return_X_y=True))
    data = f"breast cancer ({features.shape[0]} x {features.shape[1]}, 2 classes)"
    features = (features - features.mean(0)) / features.std(0)
    features = jnp.asarray(np.column_stack([features, np.ones(len(features))]))
    signs = jnp.asarray(2.0 * classes - 1.0)

    def loss(params: Array) -> Array:
        return jnp.mean(jax.nn.softplus(-signs * (features @ params))) + REGULARIZATION / 2 * jnp.sum(params**2)

    return data, loss, jnp.zeros(features.shape[1])


def handwritten_digits() -> tuple[str, Callable[[Array], Array], Array]:
    """Description, softmax loss on the pixels and a constant, and where to start."""
    pixels, classes = map(np.asarray, datasets.load_digits(return_X_y=True))
    data = f"handwritten digits ({pixels.shape[0]} x {pixels.shape[1]}, 10 classes)"
    features = jnp.asarray(np.column_stack([pixels / 16, np.ones(len(pixels))]))
    labels = jnp.asarray(classes)

    def loss(params: Array) -> Array:
        entropies = optax.softmax_cross_entropy_with_integer_labels(features @ params, labels)
        return jnp.mean(entropies) + REGULARIZATION / 2 * jnp.sum(params**2)

    return data, loss, jnp.zeros((features.shape[1], 10))


def minimize(data: str, loss: Callable[[Array], Array], start: Array, num_steps: int) -> Problem:
    """Newton's method until the gradient is rounding."""

    @jax.jit
    def derivatives(params: Array) -> tuple[Array, Array]:
        return jax.grad(loss)(params).ravel(), jax.hessian(loss)(params).reshape(params.size, params.size)

    params = start
    for _ in range(20):
        gradient, hessian = derivatives(params)
        if jnp.linalg.norm(gradient) < 1e-14:
            break
        params = params - jnp.linalg.solve(hessian, gradient).reshape(params.shape)
    return Problem(
        data=data,
        loss=loss,
        solution=params,
        gradient=float(jnp.linalg.norm(gradient)),
        spectrum=raise_if_failed(fo.hessian_spectrum(loss, params)),
        modes=jnp.linalg.eigh(hessian)[1],
        curvature_at_zero=float(jnp.linalg.eigvalsh(derivatives(start)[1])[-1]),
        num_steps=num_steps,
    )
