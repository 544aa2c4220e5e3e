"""Trains as NumPy sees them: random cores, the arrays that they stand for, and what must be zero in padded cores."""

import numpy as np

SHAPES = {"unequal": (3, 4, 2, 5), "one mode": (4,)}
DTYPES = ("float32", "float64", "complex64", "complex128")


def random_cores(shape, rank, dtype="float64", seed=0):
    """Normal cores [r, n, r'] of ranks 1, rank, ..., rank, 1, but for one rank that is smaller."""
    rng = np.random.default_rng(seed)
    ranks = [1, *(rank - (k == 1 and rank > 1) for k in range(len(shape) - 1)), 1]
    cores = []
    for k, n in enumerate(shape):
        size = (ranks[k], n, ranks[k + 1])
        core = rng.normal(size=size) + (1j * rng.normal(size=size) if np.dtype(dtype).kind == "c" else 0)
        cores.append(core.astype(dtype))
    return cores


def full(cores):
    """The array of cores [r, n, r'], in double precision."""
    double = np.complex128 if np.iscomplexobj(cores[0]) else np.float64
    array = np.ones((1, 1), double)
    for core in cores:
        array = np.tensordot(array, np.asarray(core, double), 1)
    return array[0, ..., 0]


def full_of(tt):
    """The array of a train with everything read off its fields, by the definition alone."""
    cores, ranks = np.asarray(tt.cores), np.asarray(tt.ranks)
    true = [cores[k, : ranks[k], :n, : ranks[k + 1]] for k, n in enumerate(tt.shape)]
    return full(true) * np.exp(np.float64(tt.log_scale))


def assert_well_formed(tt, dtype=None):
    """Zeros beyond ranks and modes, ranks one at both ends, int32 and the right dtypes."""
    cores, ranks = np.asarray(tt.cores), np.asarray(tt.ranks)
    assert cores.shape == (len(tt.shape), tt.max_rank, max(tt.shape), tt.max_rank)
    assert ranks.dtype == np.int32
    assert ranks.shape == (len(tt.shape) + 1,)
    assert (ranks[0], ranks[-1]) == (1, 1)
    assert 1 <= ranks.min() <= ranks.max() <= tt.max_rank
    beyond = np.ones(cores.shape, bool)
    for k, n in enumerate(tt.shape):
        beyond[k, : ranks[k], :n, : ranks[k + 1]] = False
    assert not cores[beyond].any()
    assert np.asarray(tt.log_scale).dtype == np.finfo(cores.dtype).dtype
    assert dtype is None or cores.dtype == dtype


def tolerance(dtype, factor=100):
    """That many roundings."""
    return factor * float(np.finfo(dtype).eps)


def tt_svd(array, max_rank, eps=0.0):
    """(array, ranks) of the truncated train, by algorithm 1 of Oseledets (2011) with `numpy.linalg.svd`."""
    d, cores, rank, rest = array.ndim, [], 1, array
    limit = eps * np.linalg.norm(array.ravel()) / np.sqrt(max(d - 1, 1))
    for n in array.shape[:-1]:
        left, values, right = np.linalg.svd(rest.reshape(rank * n, -1), full_matrices=False)
        tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1])
        count = min(max(int(np.sum(tails > limit)), 1), max_rank)
        cores.append(left[:, :count].reshape(rank, n, count))
        rest, rank = values[:count, None] * right[:count], count
    cores.append(rest.reshape(rank, array.shape[-1], 1))
    return full(cores), [1, *(core.shape[2] for core in cores)]
