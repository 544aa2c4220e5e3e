"""Cases: tensor trains of functions and arrays, their rounding and inner products, and operators in 10 dimensions.

All contenders work in float64 unless a case says otherwise. For one thread:
`taskset -c 0 env OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks tensor_train`.
"""

import contextlib
import importlib.util
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.grid_search import CASES as GRID_SEARCH_CASES
from benchmarks.protocol import Case, Contender

_CHECKED = 10_000  # entries that an answer is held to


# ------------------------------------------------------------------------------------------------ answers


def _entries(cores: Sequence[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Entries [m] of a train of cores [r, n, r'] at indices [m, d]."""
    rows = np.ones((len(indices), 1), cores[0].dtype)
    for core, index in zip(cores, indices.T, strict=True):
        rows = np.matmul(rows[:, None], core.transpose(1, 0, 2)[index])[:, 0]
    return rows[:, 0]


def _cores(answer: Any) -> list[np.ndarray]:
    """The cores [r, n, r'] of an answer: of a train of ours, of a result with one, or of a peer's."""
    tt = getattr(answer, "tt", answer)
    if not hasattr(tt, "log_scale"):
        return [np.asarray(core) for core in (answer[0] if isinstance(answer, tuple) else answer)]
    first, *rest = [np.asarray(core)[:, :n] for core, n in zip(tt.cores, tt.shape, strict=True)]
    cores = [first[:1] * np.exp(np.asarray(tt.log_scale)).astype(first.dtype), *rest]
    return [*cores[:-1], cores[-1][:, :, :1]]


def _largest_rank(answer: Any) -> int:
    tt = getattr(answer, "tt", answer)
    return int(np.max(tt.ranks)) if hasattr(tt, "ranks") else max(core.shape[0] for core in _cores(answer))


def _cross_remark(answer: Any) -> str:
    evaluations = answer.num_evaluations if hasattr(answer, "num_evaluations") else answer[1]
    return f"rank {_largest_rank(answer)}, {int(evaluations):,} evaluations"


def _tried(
    ours: Contender, peers: Sequence[Contender], remark: Callable[[Any], str]
) -> tuple[tuple[Contender, ...], str]:
    """The peers that do not raise, and what each answer is like, or the exception."""
    kept, remarks = [], []
    for contender in (ours, *peers):
        if contender.module is None or importlib.util.find_spec(contender.module) is not None:
            function = jax.jit(contender.function) if contender.jitted else contender.function
            try:
                remarks.append(f"{contender.name} {remark(function(*contender.arguments))}")
            except Exception as error:
                if contender is ours:
                    raise
                first = (str(error).splitlines() or [""])[0]
                remarks.append(f"{contender.name} is left out, since it raises {type(error).__name__}: {first}")
                continue
        kept.append(contender)
    return tuple(kept[1:]), "; ".join(remarks)


# ------------------------------------------------------------------------------------------------ packages


def _torchtt() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that its C++ extension is not built
        import torchtt

    return torchtt


def _counting(f: Callable[..., Any]) -> tuple[Callable[[Any], np.ndarray], list[int]]:
    """A function of a matrix of indices, and how many rows it was asked for."""
    count = [0]

    def counted(indices: Any) -> np.ndarray:
        count[0] += len(indices)
        return f(np, np.asarray(indices, float))

    return counted, count


def _teneva_cross(f: Callable[..., Any], shape: tuple[int, ...], eps: float) -> tuple[list[np.ndarray], int]:
    import teneva

    counted, count = _counting(f)
    start = teneva.rand(list(shape), 1, seed=0)
    return teneva.cross(counted, start, e=eps, nswp=20, dr_min=1, dr_max=1), count[0]


def _torchtt_cross(f: Callable[..., Any], shape: tuple[int, ...], eps: float) -> tuple[list[np.ndarray], int]:
    import torch

    torch.manual_seed(0)
    counted, count = _counting(f)
    asked = lambda indices: torch.from_numpy(counted(indices.numpy()))
    tt = _torchtt().interpolate.dmrg_cross(asked, list(shape), eps=eps)
    return [core.numpy() for core in tt.cores], count[0]


def _tntorch_cross(f: Callable[..., Any], shape: tuple[int, ...], eps: float) -> tuple[list[np.ndarray], int]:
    import tntorch
    import torch

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002, from which it draws too
    counted, count = _counting(f)
    asked = lambda indices: torch.from_numpy(counted(indices.numpy()))
    domain = [torch.arange(n, dtype=torch.float64) for n in shape]
    with contextlib.redirect_stdout(io.StringIO()):  # it advertises a package at every call
        tt = tntorch.cross(
            asked, domain, function_arg="matrix", eps=eps, verbose=False, suppress_warnings=True
        )  # fmt: skip
    return [core.numpy() for core in tt.cores], count[0]


_CROSS = {"teneva": _teneva_cross, "torchTT": _torchtt_cross, "tntorch": _tntorch_cross}
_MODULES = {"teneva": "teneva", "torchTT": "torchtt", "tntorch": "tntorch", "TensorLy": "tensorly"}


# ------------------------------------------------------------------------------------------------ functions


@dataclass(frozen=True)
class _Function:
    """What a cross approximates, and the effort with which each contender reaches the tolerance."""

    text: str
    f: Callable[..., Any]
    """f(numpy or jax.numpy, indices [..., d] as floats) -> [...]."""
    shape: tuple[int, ...]
    tolerance: float
    max_rank: int
    tol: float
    eps: dict[str, float]
    rounds: int = 3
    more: str = ""


def _rosenbrock(xp: Any, i: Any) -> Any:
    x = i / 4 - 2
    before, after = x[..., :-1], x[..., 1:]
    return (100 * (after - before * before) ** 2 + (1 - before) ** 2).sum(-1)


def _eps(*tolerances: float) -> dict[str, float]:
    """The loosest of 1e-5, 1e-6, ... with which teneva, torchTT and tntorch were seen to reach the tolerance."""
    return dict(zip(_CROSS, tolerances, strict=False))


_FUNCTIONS = {
    "hilbert": _Function(
        "1 / (1 + sum i), 8^10", lambda xp, i: 1 / (1 + i.sum(-1)), (8,) * 10, 2e-8, 10, 1e-9, _eps(1e-6, 1e-8, 1e-7)
    ),
    "exp-norm": _Function(
        "exp(-|i| / 15), 16^8", lambda xp, i: xp.exp(-xp.sqrt((i * i).sum(-1)) / 15), (16,) * 8, 3e-7, 14, 1e-7,
        _eps(1e-6, 1e-7, 1e-8),
    ),
    "mean": _Function(
        "1 / (1 + mean i), 8^100", lambda xp, i: 1 / (1 + i.mean(-1)), (8,) * 100, 1e-7, 9, 1e-8, _eps(1e-5, 1e-8), 3,
        "; tntorch is left out, since it takes half a minute here",
    ),
    "sum": _Function("sum i, 8^20", lambda xp, i: i.sum(-1), (8,) * 20, 1e-11, 2, 1e-10, _eps(1e-8, 1e-8, 1e-8)),
    "sin-sum": _Function(
        "sin(sum i), 8^20", lambda xp, i: xp.sin(i.sum(-1)), (8,) * 20, 1e-11, 2, 1e-10, _eps(1e-8, 1e-8, 1e-8)
    ),
    "rosenbrock": _Function(
        "the Rosenbrock function of i / 4 - 2, 16^20", _rosenbrock, (16,) * 20, 1e-12, 3, 1e-10, _eps(1e-8, 1e-8, 1e-8)
    ),
    "corner-peak": _Function(
        "Genz' corner peak (1 + sum i / 30)^-11, 10^10", lambda xp, i: (1 + i.sum(-1) / 30) ** -11.0, (10,) * 10, 1e-7,
        8, 1e-9, _eps(1e-5, 1e-7, 1e-5),
    ),
}  # fmt: skip


def cross(name: str) -> Case:
    """A train from entries of a function."""
    from jaxnm.tensor_train import from_function

    what = _FUNCTIONS[name]
    sizes = np.array(what.shape)
    indices = np.random.default_rng(0).integers(0, sizes, (_CHECKED, len(sizes)))
    truth = what.f(np, indices.astype(float))

    def ours(seed: jax.Array) -> Any:
        f = lambda index: what.f(jnp, index.astype(float))
        return from_function(f, what.shape, max_rank=what.max_rank, tol=what.tol, key=jax.random.key(seed))

    def error(answer: Any) -> float:
        return float(np.abs(_entries(_cores(answer), indices) - truth).max() / np.abs(truth).max())

    mine = Contender("ours", ours, (jnp.uint32(0),), jitted=True)
    peers = [
        Contender(peer, partial(_CROSS[peer], what.f, what.shape, eps), (), module=_MODULES[peer])
        for peer, eps in what.eps.items()
    ]
    kept, remarks = _tried(mine, peers, _cross_remark)
    asked = ", ".join(f"{peer} {eps:g}" for peer, eps in what.eps.items())
    return Case(
        name=f"cross-{name}",
        description=f"a train of {what.text} from its entries; asked for: ours tol {what.tol:g} and max_rank "
        f"{what.max_rank}, {asked}; {remarks}{what.more}",
        ours=mine,
        peers=kept,
        error=error,
        metric=f"largest error of {_CHECKED:,} random entries over the largest of them",
        tolerance=what.tolerance,
        target_ratios=dict.fromkeys(what.eps, 10 if name == "hilbert" else 1),
        rounds=what.rounds,
        seconds=4,
    )


def batch(num: int) -> Case:
    """Many integrals at once."""
    from jaxnm.tensor_train import from_function_on, integrate

    d, n, rank = 10, 10, 6
    points, weights = np.polynomial.legendre.leggauss(n)
    grid, weights = jnp.asarray((points + 1) / 2), jnp.asarray(weights / 2)
    parameters = np.linspace(1 / 32, 1 / 8, num)

    def integral(a: jax.Array) -> jax.Array:
        f = lambda x, a: (1 + a * jnp.sum(x)) ** (-d - 1.0)
        key = jax.random.key(0)
        result = from_function_on(f, [grid] * d, max_rank=rank, tol=1e-8, key=key, args=(a,), max_sweeps=3)
        return integrate(result.tt, [weights] * d)

    def exact(a: float) -> float:
        """In rational numbers, since the sum cancels."""
        ratio = Fraction(a)
        terms = [(-1) ** k * math.comb(d, k) / (1 + k * ratio) for k in range(d + 1)]
        return float(sum(terms, Fraction(0)) / math.factorial(d) / ratio**d)

    done = 16
    truth = np.array([exact(a) for a in parameters])
    some = slice(0, num, num // done)
    one = jax.jit(integral)
    serial = lambda parameters: jnp.stack([one(a) for a in parameters])

    def error(answer: Any) -> float:
        expected = truth if len(answer) == num else truth[some]
        return float(np.max(np.abs(answer / expected - 1)))

    return Case(
        name=f"cross-vmap-{num}",
        description=f"{num} integrals of Genz' corner peak (1 + a sum x)^-{d + 1} over the unit cube, {d} dimensions, "
        f"a from 1/32 to 1/8, each by a cross of rank {rank} on {n} Gauss-Legendre nodes a dimension, in one vmap",
        ours=Contender("ours, vmap", jax.vmap(integral), (jnp.asarray(parameters),), jitted=True),
        peers=(
            Contender("ours, one by one", serial, (list(jnp.asarray(parameters)[some]),), subset=(done, num)),
        ),
        error=error,
        metric="largest relative error, against the closed form in rational numbers",
        tolerance=1e-4,
        rounds=1,
    )  # fmt: skip


def sites(num: int) -> Case:
    """The compilation for many modes."""
    from jaxnm.tensor_train import from_function

    def of(d: int) -> Callable[[jax.Array], Any]:
        f = lambda index: jnp.sin(jnp.sum(index.astype(float) * jnp.linspace(0, 1, d)))
        return lambda seed: from_function(
            f, (2,) * d, max_rank=2, tol=1e-9, key=jax.random.key(seed), max_sweeps=2
        )  # fmt: skip

    def error(answer: Any) -> float:
        cores = _cores(answer)
        indices = np.random.default_rng(0).integers(0, 2, (100, len(cores)))
        truth = np.sin(indices @ np.linspace(0, 1, len(cores)))
        return float(np.abs(_entries(cores, indices) - truth).max())

    return Case(
        name=f"cross-sites-{num}",
        description=f"a train of the sine of a sum over {num:,} modes of size 2, rank 2; beside it a tenth of them "
        "for the seconds of compilation",
        ours=Contender("ours", of(num), (jnp.uint32(0),), jitted=True),
        peers=(Contender("ours, a tenth of the modes", of(num // 10), (jnp.uint32(0),), jitted=True),),
        error=error,
        metric="largest error of 100 random entries",
        tolerance=1e-7,
        rounds=1,
    )


# ------------------------------------------------------------------------------------------------ arrays


def _random_cores(rng: np.random.Generator, d: int, n: int, rank: int) -> list[np.ndarray]:
    """Normal numbers, scaled so that entries are about one."""
    ranks = [1, *[min(rank, n ** min(k, d - k)) for k in range(1, d)], 1]
    return [rng.normal(size=(before, n, after)) / math.sqrt(before) for before, after in pairwise(ranks)]


def _torchtt_svd(array: np.ndarray, eps: float, rank: int) -> list[np.ndarray]:
    import torch

    tt = _torchtt().TT(torch.from_numpy(array), eps=eps, rmax=rank)
    return [core.numpy() for core in tt.cores]


def _tensorly_svd(array: np.ndarray, rank: int) -> list[np.ndarray]:
    from tensorly.decomposition import tensor_train

    d = array.ndim
    ranks = [1, *[min(rank, 4 ** min(k, d - k)) for k in range(1, d)], 1]
    return list(tensor_train(array, ranks).factors)


def _teneva_svd(array: np.ndarray, rank: int) -> list[np.ndarray]:
    import teneva

    return teneva.svd(array, e=1e-10, r=rank)


def svd(dtype: str) -> Case:
    """A train of a full array."""
    from jaxnm.tensor_train import from_dense

    d, n, rank, noise = 12, 4, 8, 1e-6 if dtype == "float64" else 1e-4
    random = np.random.default_rng(0)
    array = np.ones((1, 1))
    for core in _random_cores(random, d, n, rank):
        array = np.tensordot(array, core, 1).reshape(-1, core.shape[2])
    array = array.reshape((n,) * d)
    array = (array + noise * np.linalg.norm(array) / n ** (d / 2) * random.normal(size=array.shape)).astype(dtype)
    indices = random.integers(0, n, (_CHECKED, d))
    truth = array[tuple(indices.T)]

    def error(answer: Any) -> float:
        return float(np.linalg.norm(_entries(_cores(answer), indices) - truth) / np.linalg.norm(truth))

    given = (jnp.asarray(array),)
    exact = partial(from_dense, max_rank=rank, method="exact")
    mine = Contender("ours, gram", partial(from_dense, max_rank=rank, method="gram"), given, jitted=True)
    peers = [
        Contender("torchTT", partial(_torchtt_svd, eps=noise / 10, rank=rank), (array,), module="torchtt"),
        Contender("TensorLy", partial(_tensorly_svd, rank=rank), (array,), module="tensorly"),
        Contender("ours, exact", exact, given, jitted=True),
    ]
    if dtype == "float64":
        peers.insert(2, Contender("teneva", partial(_teneva_svd, rank=rank), (array,), module="teneva"))
    return Case(
        name=f"tt-svd-{dtype}",
        description=f"TT-SVD of an array of {n}^{d} entries in {dtype}, of ranks up to {rank} but for a share of "
        f"{noise:g} of noise, which method 'gram' is accurate enough for",
        ours=mine,
        peers=tuple(peers),
        error=error,
        metric=f"relative error of {_CHECKED:,} random entries, 2-norm",
        tolerance=2 * noise,
        target_ratios=dict.fromkeys(("torchTT", "TensorLy", "teneva"), 1),
        rounds=1,
    )


def rounding() -> Case:
    """A train of half the ranks."""
    from jaxnm.tensor_train import from_cores, round

    d, n, rank, small = 50, 8, 32, 1e-6
    random = np.random.default_rng(0)
    large, more = _random_cores(random, d, n, rank), _random_cores(random, d, n, rank)
    more[0] = small * more[0]
    whole = [np.concatenate([large[0], more[0]], 2)]
    for one, other in zip(large[1:-1], more[1:-1], strict=True):
        sides = [(0, 0)] * 2
        whole.append(
            np.concatenate([np.pad(one, [*sides, (0, other.shape[2])]), np.pad(other, [*sides, (one.shape[2], 0)])])
        )
    whole.append(np.concatenate([large[-1], more[-1]]))
    indices = random.integers(0, n, (_CHECKED, d))
    truth = _entries(whole, indices)

    def error(answer: Any) -> float:
        return float(np.linalg.norm(_entries(_cores(answer), indices) - truth) / np.linalg.norm(truth))

    def torchtt(eps: float) -> list[np.ndarray]:
        import torch

        train = _torchtt().TT([torch.from_numpy(core) for core in whole])
        return [core.numpy() for core in train.round(eps, rank).cores]

    def teneva(eps: float) -> list[np.ndarray]:
        import teneva

        return teneva.truncate(whole, e=eps, r=rank)

    train = (from_cores([jnp.asarray(core) for core in whole]),)
    mine = Contender("ours, gram", partial(round, max_rank=rank, method="gram"), train, jitted=True)
    peers = (
        Contender("torchTT", torchtt, (1e-7,), module="torchtt"),
        Contender("teneva", teneva, (1e-7,), module="teneva"),
        Contender("ours, qr_svd", partial(round, max_rank=rank, method="qr_svd"), train, jitted=True),
    )
    return Case(
        name="round-64-32",
        description=f"rounding of a train of {d} modes of size {n} from ranks {2 * rank} to {rank}: a train of ranks "
        f"{rank} and {small:g} of another one, which method 'gram' is accurate enough for",
        ours=mine,
        peers=tuple(peers),
        error=error,
        metric=f"relative error of {_CHECKED:,} random entries, 2-norm",
        tolerance=3 * small,
        target_ratios={"torchTT": 1, "teneva": 1},
        rounds=5,
    )


def inner_product() -> Case:
    """The inner product of two trains."""
    from jaxnm.tensor_train import dot, from_cores

    d, n, rank = 100, 8, 16
    random = np.random.default_rng(0)
    ranks = [1, *[rank] * (d - 1), 1]
    sides = list(pairwise(ranks))
    # positive, so that nothing cancels; the product stays near one
    first, second = ([random.uniform(size=(a, n, b)) * 2 / rank / math.sqrt(n) for a, b in sides] for _ in range(2))
    carried = np.ones((1, 1), np.longdouble)
    for one, other in zip(first, second, strict=True):
        half = np.tensordot(carried, one.astype(np.longdouble), (0, 0))
        carried = np.tensordot(half, other.astype(np.longdouble), ([0, 1], [0, 1]))
    truth = carried[0, 0]

    def torchtt() -> Callable[..., Any]:
        import torch

        trains = [_torchtt().TT([torch.from_numpy(core) for core in cores]) for cores in (first, second)]
        return lambda: _torchtt().dot(*trains).numpy()

    def teneva() -> Any:
        import teneva

        return np.asarray(teneva.mul_scalar(first, second))

    peers = [Contender("teneva", teneva, (), module="teneva")]
    if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("torchtt") is not None:
        peers.append(Contender("torchTT", torchtt(), (), module="torchtt"))
    else:
        peers.append(Contender("torchTT", torchtt, (), module="torchtt"))
    trains = tuple(from_cores([jnp.asarray(core) for core in cores]) for cores in (first, second))
    return Case(
        name="dot-100",
        description=f"inner product of two trains of {d} modes of size {n}, ranks {rank}",
        ours=Contender("ours", dot, trains, jitted=True),
        peers=tuple(peers),
        error=lambda answer: float(abs(answer / truth - 1)),
        metric="relative error, against a product in long double",
        tolerance=1e-12,
        target_ratios={"teneva": 1, "torchTT": 1},
        flops=d * 4.0 * n * rank**3,
        rounds=9,
        seconds=3,
    )


# ------------------------------------------------------------------------------------------------ operators


def poisson() -> Case:
    """The Poisson problem in ten dimensions."""
    from jaxnm.tensor_train import from_cores, round
    from jaxnm.tensor_train.laplace import laplace_inverse, laplace_inverse_factors

    d, n, eps = 10, 63, 1e-8
    h = 1 / (n + 1)
    second = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)) / h**2
    indices = np.random.default_rng(0).integers(0, n, (1000, d))
    # x is the integral of exp(-t A) b over t > 0, which is a product over the dimensions; t = exp(s), trapezoidal rule
    step = 0.02
    times = np.exp(np.arange(-44, 3, step))
    values, vectors = np.linalg.eigh(second)
    decays = np.exp(-times[:, None] * values) * vectors.sum(0) @ vectors.T
    truth = step * times @ np.prod(decays[:, indices], -1)

    is_sum = lambda answer: isinstance(answer, list) and answer[0].ndim == 2

    def error(answer: Any) -> float:
        if is_sum(answer):
            found = np.sum(np.prod([factor[:, index] for factor, index in zip(answer, indices.T, strict=True)], 0), 0)
        else:
            found = _entries(_cores(answer), indices)
        return float(np.abs(found - truth).max() / np.abs(truth).max())

    def amen() -> list[np.ndarray]:
        import torch

        one, zero = np.eye(n), np.zeros((n, n))
        middle = np.stack([np.stack([one, zero], -1), np.stack([second, one], -1)])
        cores = [middle[1:], *[middle] * (d - 2), middle[..., :1]]
        matrix = _torchtt().TT([torch.from_numpy(core) for core in cores])
        tt = _torchtt().solvers.amen_solve(matrix, _torchtt().ones([n] * d), eps=eps, verbose=False)
        return [core.numpy() for core in tt.cores]

    rows = [jnp.ones(n)] * d
    right = from_cores([jnp.ones((1, n, 1))] * d)
    rounded = lambda right: round(laplace_inverse(right, spacing=h, eps=eps), max_rank=24, eps=1e-7, method="gram")
    mine = Contender("ours, terms", partial(laplace_inverse_factors, spacing=h, eps=eps), (rows,), jitted=True)
    peers = (
        Contender("ours, train", rounded, (right,), jitted=True),
        Contender("torchTT AMEn", amen, (), module="torchtt"),
    )
    remark = lambda answer: f"{len(answer[0])} terms" if is_sum(answer) else f"rank {_largest_rank(answer)}"
    kept, remarks = _tried(mine, peers, remark)
    return Case(
        name="poisson-10d",
        description=f"-Laplace x = 1 in the unit cube in {d} dimensions, {n} inner points in each: ours as a sum of "
        f"products and as a rounded train, which takes {n}^2 multiplications a term and a dimension and the rounding; "
        f"{remarks}",
        ours=mine,
        peers=kept,
        error=error,
        metric="largest error of 1,000 random entries over the largest of them, against a quadrature of exp(-t A) b",
        tolerance=1e-6,
        rounds=1,
    )


def diffusion() -> Case:
    """A diffusion problem with a coefficient that varies, in ten dimensions, by sweeps over the cores."""
    from jaxnm.tensor_train import distance, from_cores, matrix_from_cores, norm, solve

    d, n, tol = 10, 16, 1e-6
    h = 1 / (n + 1)
    bump = lambda x: np.exp(-8 * (x - 0.5) ** 2)
    slope = (np.eye(n + 1, n) - np.eye(n + 1, n, k=-1)) / h
    mass, stiff = np.diag(bump(np.arange(1, n + 1) * h)), slope.T * bump((np.arange(n + 1) + 0.5) * h) @ slope
    core = np.zeros((4, n, n, 4))
    for k, (same, other) in ((0, (np.eye(n), slope.T @ slope)), (2, (mass, stiff))):
        core[k, :, :, k], core[k + 1, :, :, k], core[k + 1, :, :, k + 1] = same, other, same
    first = np.concatenate([core[1:2, ..., :2], 10 * core[3:4, ..., 2:]], -1)
    operator = [first, *[core] * (d - 2), core[..., :1] + core[..., 2:3]]
    matrix, right = matrix_from_cores(operator), from_cores([np.ones((1, n, 1))] * d)

    def error(answer: Any) -> float:
        found = from_cores([np.ascontiguousarray(core) for core in _cores(answer)])
        return float(distance(matrix @ found, right) / norm(right))

    def amen() -> list[np.ndarray]:
        import torch

        peer = _torchtt().TT([torch.from_numpy(np.ascontiguousarray(core)) for core in operator])
        ones = _torchtt().ones([n] * d, dtype=torch.float64)
        tt = _torchtt().solvers.amen_solve(peer, ones, x0=ones, eps=tol, verbose=False)
        return [core.numpy() for core in tt.cores]

    ours = lambda seed: solve(matrix, right, max_rank=20, tol=tol, key=jax.random.key(seed))
    mine = Contender("ours", ours, (jnp.uint32(0),), jitted=True)
    peers = (Contender("torchTT AMEn", amen, (), module="torchtt"),)
    kept, remarks = _tried(mine, peers, lambda answer: f"rank {_largest_rank(answer)}")
    return Case(
        name="diffusion-10d",
        description=f"-div(a grad x) = 1 in the unit cube in {d} dimensions, {n} inner points in each, "
        f"a = 1 + 10 prod exp(-8 (x_k - 1/2)^2), to a residual of {tol:g}; {remarks}",
        ours=mine,
        peers=kept,
        error=error,
        metric="|A x - b| / |b|, by one product and QR for both",
        tolerance=tol,
        target_ratios={"torchTT AMEn": 1},
    )


CASES: dict[str, Callable[[], Case]] = {
    **GRID_SEARCH_CASES,
    **{f"cross-{name}": partial(cross, name) for name in _FUNCTIONS},
    "cross-vmap-256": partial(batch, 256),
    "cross-sites-2500": partial(sites, 2500),
    "tt-svd-float64": partial(svd, "float64"),
    "tt-svd-float32": partial(svd, "float32"),
    "round-64-32": rounding,
    "dot-100": inner_product,
    "poisson-10d": poisson,
    "diffusion-10d": diffusion,
}
