"""The row of jaxnm.tensor_train.spectra: cores are arguments, modes have different sizes."""

from typing import Any

import jax

from jaxnm.tensor_train import TT, from_cores
from jaxnm.tensor_train.spectra import singular_values
from tests.contracts.row import Row, law, matrix, of


def _train(cores: list[jax.Array]) -> TT:
    return from_cores(cores, max_rank=3)


def _cores(dtype: Any) -> list[jax.Array]:
    return [matrix(dtype, *size, seed=seed) for seed, size in enumerate(((1, 3, 2), (2, 4, 2), (2, 2, 1)))]


TENSOR_TRAIN_SPECTRA_ROWS = [
    Row(
        "tensor_train.singular_values",
        of(lambda cores: singular_values(_train(cores)), _cores),
        "a singular value that repeats, or is zero, has no derivative; that of round is finite",
        order=0,
        scaling=law(1, result=0),
    ),
]
