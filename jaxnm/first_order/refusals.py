"""Why a transformation has no state-space form, in words, and what can be analyzed instead."""

import traceback
from typing import Any, NoReturn

import numpy as np

from jaxnm import arguments
from jaxnm.first_order.probes import LEAF_OF_ENTRY, SHAPES, Measurement, UnknownStructureError, scales

_AFFINE = "a step that is affine in the state and the gradient, the same on every coordinate"
_ONE_GROUP = "analyze each group alone: pass the transformation that it gets, without the mask or the labels"
_FREEZE = (
    "freeze the preconditioner D: analyze the transformation without it on the spectrum of D^(-1/2) H D^(-1/2), H the "
    "Hessian"
)
_NO_RATE = "analyze it without that part"
_NO_LINEAR_RATE = (
    "at a fixed step it has no linear rate, as steps do not shrink with the gradient; for a normalized one freeze the "
    "factor, and analyze the method without it"
)
_INNER = "analyze the transformation inside"

# Classes of states, and functions, of optax whose kind cannot be seen from steps on plain trees: (got, remedy).
_PARTS = {
    "MultiStepsState": (
        "a MultiSteps, which changes the parameters only once in a period of several gradients",
        "analyze the transformation inside: gradients accumulated at one point make one step with their mean",
    ),
    "SAMState": (
        "sharpness-aware minimization, which alternates ascent and descent steps: one step alone means nothing",
        "write down one period by hand: on a quadratic an ascent step a g makes the gradient (1 + a lam) lam x, for "
        "state_space; or analyze the outer optimizer alone",
    ),
    "LookaheadState": (
        "a lookahead, which keeps slow and fast parameters and brings them together once in a period",
        "write down one period by hand: (1 - a) I + a M^k with the matrix M of the fast optimizer, which "
        "iteration_matrix gives",
    ),
    "GaLoreState": (
        "a projection of matrix gradients on their leading singular vectors (GaLore), which mixes the coordinates of "
        "a matrix and changes with the gradients",
        _INNER + ", which holds within the subspace until it changes",
    ),
    "DifferentiallyPrivateAggregateState": (
        "a differentially private aggregate: it needs the gradients of all examples, and clips each",
        "analyze the transformation that gets the aggregated gradient",
    ),
    "MuonState": (
        "an orthogonalization of matrix gradients (Muon), which mixes the coordinates of a matrix and gives steps "
        "whose size does not depend on that of the gradient",
        "it has no linear rate at a fixed learning rate; analyze the transformation of the other leaves alone",
    ),
    "ScaleBySM3State": (
        "adaptive, with squares of the gradients collected along each axis of a leaf",
        _FREEZE,
    ),
    "PartitionState": ("a transformation bound to the labels of its own tree of parameters", _ONE_GROUP),
    "MaskedState": ("a transformation that treats masked leaves differently", _ONE_GROUP),
}
_PARTS |= {
    "MultiSteps": _PARTS["MultiStepsState"],
    "lookahead": _PARTS["LookaheadState"],
    "scale_by_galore": _PARTS["GaLoreState"],
    "differentially_private_aggregate": _PARTS["DifferentiallyPrivateAggregateState"],
    "partition": _PARTS["PartitionState"],
    "masked": _PARTS["MaskedState"],
    "sam": _PARTS["SAMState"],
}
# MaskedState is left to the measurement where the mask can be applied to the tree of the probes.
_KNOWN_BY_STATE = {name for name in _PARTS if name.endswith("State")} - {"MaskedState", "PartitionState"}


def refuse_part(function: str, part: str) -> None:
    """Refuse a transformation whose state holds an object of the class `part`, if that decides it."""
    if part in _KNOWN_BY_STATE:
        got, remedy = _PARTS[part]
        arguments.refuse(function, "tx", got, _AFFINE, remedy)


def refuse_precision(function: str, name: str, got: Any, dtype: Any) -> NoReturn:
    """Refuse a state that is rounded to another dtype than the parameters."""
    arguments.refuse(
        function,
        "tx",
        f"rounding its state {name} to {np.dtype(got).name} at every step",
        f"states in the default floating dtype, here {np.dtype(dtype).name}",
        "analyze it without that option (accumulator_dtype, mu_dtype) or in that dtype; rounding is noise on top",
    )


def refuse_flattened(function: str, name: str) -> NoReturn:
    """Refuse a state that is one vector of all parameters."""
    got = f"keeping its state {name} as one vector of all parameters (optax.flatten)"
    arguments.refuse(function, "tx", got, _AFFINE, _INNER + " optax.flatten")


def refuse_failure(function: str, error: Exception) -> NoReturn:
    """Refuse a transformation that raised an error on a plain tree of parameters and gradients."""
    if isinstance(error, UnknownStructureError):
        _refuse_structure(function, error.parts)
    part = _failing_part(error)
    missing = _missing_arguments(error)
    if missing:
        got = f"in need of {missing}, which {part or 'its update'} is given beside the gradient (as line searches are)"
        remedy = "such a step depends on the path; analyze the transformation without that part"
    elif part in _PARTS:
        got, remedy = _PARTS[part]
    else:
        got = (
            f"failing on a plain tree of parameters and gradients, in {part or 'its own code'} ({type(error).__name__})"
        )
        remedy = "pass a transformation that works on any tree of arrays, under jit"
    arguments.refuse(function, "tx", got, _AFFINE, remedy)


def _refuse_structure(function: str, parts: tuple[str, ...]) -> NoReturn:
    known = [_PARTS[part] for part in parts if part in _KNOWN_BY_STATE]
    masked = ("keeping a different state for different leaves (a mask, labels, or the number of axes)", _ONE_GROUP)
    got, remedy = known[0] if known else masked
    arguments.refuse(function, "tx", got, _AFFINE, remedy)


def _failing_part(error: Exception) -> str:
    """The name of the optax function or class in which an error was raised."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == "optax":
            name = frame.f_code.co_qualname.partition(".")[0]
            if name not in ("chain", "named_chain", "with_extra_args_support") and not name.startswith(("_", "<")):
                return name
    return ""


def _missing_arguments(error: Exception) -> str:
    """The names of the keyword arguments that a call lacked, in Python's own words."""
    text = str(error)
    found = text.partition("keyword-only argument")[2] if isinstance(error, TypeError) else ""
    if found:
        return found.partition(":")[2].strip().replace("'", "`")
    wanted = [name for name in ("value_fn", "value", "grad_fn", "obj_fn") if name in text.split()]
    return f"`{wanted[0]}`" if wanted else ""


def refuse_step(function: str, measured: Measurement, tolerance: float) -> NoReturn:
    """Refuse a transformation whose steps differ from their affine prediction, with the cause that fits them."""
    got, remedy = _cause(measured, tolerance)
    arguments.refuse(function, "tx", f"not affine in its state and the gradient: {got}", _AFFINE, remedy)


def _cause(measured: Measurement, tolerance: float) -> tuple[str, str]:
    """(got, remedy)."""
    squares = _states_of_degree(measured, 2)
    if squares:
        return f"adaptive, its state {squares[0]} collects squares of the gradients", _FREEZE
    changed = int(np.argmax(measured.context_changes))
    if measured.context_changes[changed] > tolerance:
        name = measured.context_names[changed]
        return f"its state {name}, which is not one number per parameter, depends on the gradient", _FREEZE
    if np.max(measured.leafwise) <= tolerance:
        return _leaves_apart(measured, tolerance), _ONE_GROUP
    if measured.by_count[0] <= tolerance:
        return "it is affine at some steps and not at others, so that one step alone means nothing", _NO_RATE
    return _by_size(measured)


def _leaves_apart(measured: Measurement, tolerance: float) -> str:
    groups: list[list[int]] = []
    matrices = np.moveaxis(np.asarray(measured.leaf_matrices), -1, 0)
    for leaf, matrix in enumerate(matrices):
        same = lambda group, matrix=matrix: np.allclose(matrices[group[0]], matrix, rtol=tolerance, atol=0)
        home = next((group for group in groups if same(group)), None)
        if home is None:
            groups.append([leaf])
        else:
            home.append(leaf)
    shapes = list(SHAPES.values())
    words = [" and ".join(str(shapes[leaf]) for leaf in group) for group in groups]
    return (
        f"it treats leaves differently: those of shape {', those of shape '.join(words)} (a mask, weight decay by ndim)"
    )


def _by_size(measured: Measurement) -> tuple[str, str]:
    """The cause by how a step grows with the gradient, and by which gradients it depends on."""
    small, large = _degree(measured, 0, 0, 2), _degree(measured, 0, 5, 7)
    middle = _degree(measured, 0, 2, 4)
    leaves = np.arange(len(SHAPES))[:, None] == LEAF_OF_ENTRY[None]
    first = np.cumsum(leaves, 1) == 1
    within, across = np.any(measured.mixing & leaves & ~first), np.any(measured.mixing & ~leaves)
    norm = " by a number of the whole tree" if across else " by a number of each leaf" if within else ""
    is_degree = lambda degree, power: abs(degree - power) < 0.05
    if is_degree(middle, 0) and norm:
        return f"normalized{norm}, the size of the gradient does not matter", _NO_LINEAR_RATE
    if is_degree(middle, 0):
        return "sign-based or normalized, the size of the gradient does not matter", _NO_LINEAR_RATE
    if is_degree(small, 1) and large < 0.95:
        return f"clipped{norm}, large gradients give steps that are too small", (
            "analyze it without the clipping, which near a solution does nothing"
        )
    if norm:
        place = "in the whole tree" if across else "of its leaf"
        return f"the step of a coordinate depends on the other coordinates {place}", (
            "analyze it without the part that mixes them (centering, norms, trust ratios)"
        )
    return "its steps are a nonlinear function of the gradient, the parameters or the state", (
        "analyze it without its nonlinear part"
    )


def _degree(measured: Measurement, row: int, low: int, high: int) -> float:
    """The power of the gradient with which a row of the step grows between two of the scales; NaN where it is zero."""
    sizes = np.max(np.abs(measured.by_gradient[:, row].astype(float)), -1)
    values = scales(measured.by_gradient.dtype)
    with np.errstate(all="ignore"):
        return float(np.log(sizes[high] / sizes[low]) / np.log(values[high] / values[low]))


def _states_of_degree(measured: Measurement, power: int) -> list[str]:
    rows = range(1, len(measured.state_names))
    return [measured.state_names[row] for row in rows if abs(_degree(measured, row, 2, 4) - power) < 0.05]
