"""The rows of jaxnm.stokes: operators, velocities and boundary values are arguments, corners of grids included."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import arguments, stokes
from tests.contracts.row import Law, Row, law, matrix, number, of

_CHANNEL = stokes.Boundary(x=("inflow", "do_nothing"))
_TORUS = stokes.Boundary("periodic", "periodic")
_SOLID = np.zeros((4, 5), bool)
_SOLID[1, 1:3] = True


def _grid(dtype: Any, *shape: int) -> stokes.Grid:
    """With corners that are arrays, so that the rows trace, map over and differentiate them."""
    shape = shape or (4, 5)
    corner = lambda values: tuple(jnp.asarray(value, dtype) for value in values[: len(shape)])
    return stokes.Grid(shape, corner((0.1, -0.2, 0.0)), corner((1.0, 1.1, 0.8)))


def _operators(dtype: Any, boundary: stokes.Boundary = _CHANNEL, *shape: int) -> stokes.StokesOperators:
    return stokes.discretize(_grid(dtype, *shape), boundary, viscosity=jnp.asarray(0.7, dtype))


def _velocity(dtype: Any, boundary: stokes.Boundary = _CHANNEL, *shape: int) -> stokes.Velocity:
    shapes = stokes.face_shapes(_grid(dtype, *shape), boundary)
    return stokes.Velocity(*(matrix(dtype, *part, seed=seed) for seed, part in enumerate(shapes)))


def _values(dtype: Any) -> stokes.BoundaryValues:
    values = stokes.boundary_values(_grid(dtype), _CHANNEL)
    values = values.set("x", "lower", normal=matrix(dtype, 5), tangential=matrix(dtype, 4))
    return values.set("y", "upper", tangential=jnp.asarray(0.3, dtype)).set("x", "upper", pressure=matrix(dtype, 5))


def _set(lower: jax.Array, inflow: jax.Array, lid: jax.Array) -> stokes.BoundaryValues:
    grid = stokes.Grid((4, 5), (lower, lower), (lower + 1, lower + 2))
    values = stokes.boundary_values(grid, _CHANNEL).set("x", "lower", normal=lambda x, y: inflow * (y + x))
    return values.set("y", "upper", tangential=lid)


def _discretize(grid: stokes.Grid, viscosity: jax.Array, drag: jax.Array) -> stokes.StokesOperators:
    return stokes.discretize(grid, _CHANNEL, viscosity=viscosity, solid=_SOLID, inverse_permeability=drag)


def _pressed(operators: stokes.StokesOperators, velocity: stokes.Velocity, pressure: jax.Array) -> jax.Array:
    return stokes.force_on_solid(operators.replace(solid=arguments.constant(_SOLID, bool)), velocity, pressure)


def _solve(
    method: str,
    operators: stokes.StokesOperators,
    force: stokes.Velocity,
    values: stokes.BoundaryValues | None = None,
    drag: jax.Array | None = None,
) -> stokes.StokesSolution:
    if drag is not None:
        operators = _discretize(operators.grid, operators.viscosity, drag)
    rtol = 1e-12 if force.u.dtype == jnp.float64 else 1e-5
    return stokes.solve(operators, force, boundary_values=values, method=method, rtol=rtol, max_steps=100)


def _positive(dtype: Any) -> jax.Array:
    return 1 + matrix(dtype, 4, 5) ** 2


_KEY = jax.random.key(0)
_HOST = "a static number or mask, computed on the host while tracing; see tests/stokes"
_EIGENVALUES = "eigenvalues of a square root of a singular matrix; those at the ends are, as schur_extremes shows"
_extremes = lambda name: lambda operators: getattr(stokes, name)(operators, key=_KEY, num_steps=20)

# powers of a unit of length (1), of viscosity (2) and of velocity (3), where an argument has several
_CORNERS = stokes.Grid((4, 5), (1, 1), (1, 1))


def _powers(drag: int | None = None) -> stokes.StokesOperators:
    plain = stokes.discretize(stokes.Grid((4, 5)), _CHANNEL)
    return plain.replace(grid=_CORNERS, viscosity=2, inverse_permeability=drag)


_VALUES = stokes.BoundaryValues(_CORNERS, _CHANNEL, {(0, 0, 0): 3, (0, 0, 1): 3, (1, 1, 0): 3, (0, 1, -1): 4})
_of_velocity = lambda power: law(_powers(), 3, _VALUES, result=power)
_SOLUTION = {".velocity": 3, ".pressure": 4, ".stats": None}

STOKES_ROWS = [
    *(
        Row(
            f"stokes.{name}", of(lambda x: None, number(1.0)), "an integer or a mask", _HOST, order=None, scaling=_HOST
        )
        for name in ("count_nonunit_eigenvalues", "largest_component", "face_shapes")
    ),
    Row(
        "stokes.zero_velocity",
        of(jax.jit(lambda x: stokes.zero_velocity(_grid(x.dtype), _CHANNEL, x.dtype)), number(1.0)),
        scaling="zero in any unit",
    ),
    Row(
        "stokes.positions",
        of(lambda grid: stokes.positions(grid, _CHANNEL, 1, grid.lower[0].dtype), _grid),
        scaling=law(1, result=1),
    ),
    Row(
        "stokes.boundary_values",
        of(jax.jit(_set), number(0.2), number(0.5), number(1.0)),
        scaling=law(0, 1, 1, result={".values": 1}),
    ),
    Row(
        "stokes.discretize",
        # whether the mask was known while tracing is a static fact, which jit changes
        of(lambda *args: _discretize(*args).replace(connected=False), _grid, number(0.7), _positive),
        scaling=law(1, 2, -2, result={".grid": 1, ".viscosity": 2, ".inverse_permeability": -2}),
    ),
    *(
        Row(
            f"stokes.{name}", of(getattr(stokes, name), _operators, _velocity, _values), scaling=_of_velocity(power)
        )
        for name, power in (("full_faces", 3), ("at_centres", 3), ("vorticity", 2), ("stream_function", 4))
    ),
    Row(
        "stokes.flux",
        of(lambda *args: stokes.flux(args[0], args[1], 0, args[2]), _operators, _velocity, _values),
        scaling=_of_velocity(4),
    ),
    Row(
        "stokes.stream_extrema",
        of(stokes.stream_extrema, _grid, lambda d: matrix(d, 5, 6, seed=2)),
        scaling=law(1, 2, result={".minimum": 2, ".maximum": 2, ".minimum_position": 1, ".maximum_position": 1}),
    ),
    Row(
        "stokes.force_on_solid",
        of(_pressed, _operators, _velocity, lambda d: matrix(d, 4, 5, seed=3)),
        scaling=law(_powers(), 3, 4, result=5),
    ),
    Row(
        "stokes.permeability",
        of(
            lambda spacing, drag: stokes.permeability(
                spacing=spacing, inverse_permeability=drag, rtol=1e-12 if drag.dtype == jnp.float64 else None,
                dtype=drag.dtype,
            ),
            number(0.3),
            _positive,
        ),
        heavy=True,
        tolerance=1e-9,
        rounding=(".stats",),
        scaling=law(1, -2, result={".tensor": 2, ".stats": None}),
    ),
    Row(
        "stokes.schur_complement",
        of(lambda operators, p: stokes.schur_complement(operators)(p), _operators, lambda d: matrix(d, 4, 5)),
        scaling=law(_powers(), 1, result=1),
    ),
    Row(
        "stokes.schur_eigenvalues",
        of(stokes.schur_eigenvalues, _operators),
        _EIGENVALUES,
        heavy=True,
        default_dtype=True,
        order=0,
        scaling=law(_powers(), result=0),
    ),
    Row(
        "stokes.schur_extremes",
        of(lambda operators: _extremes("schur_extremes")(operators).smallest, _operators),
        "the first derivative of eigenvalues; those of the vectors are unknown, see linalg.extreme_eigenvalues",
        heavy=True,
        default_dtype=True,
        tolerance=1e-9,
        order=1,
        scaling=law(_powers(), result=0),
    ),
    Row(
        "stokes.inf_sup_constant",
        of(_extremes("inf_sup_constant"), _operators),
        "the first derivative of an eigenvalue; that of its vector is unknown",
        heavy=True,
        default_dtype=True,
        tolerance=1e-9,
        order=1,
        scaling=law(_powers(), result=0),
    ),
    Row(
        "stokes.factorize",
        of(lambda operators: stokes.factorize(operators, dtype=operators.viscosity.dtype), _operators),
        "solve differentiates the equations, not the factors, which any cells of another size may have",
        order=None,
        scaling="in cells of unit size, up to a power of two, so that scales fall out but for factors below two",
    ),
    Row(
        "stokes.solve",
        of(partial(_solve, "direct"), _operators, _velocity, _values),
        heavy=True,
        tolerance=1e-9,
        rounding=(".stats",),
        scaling=(Law((_powers(), 3, _VALUES), _SOLUTION),),
    ),
]  # fmt: skip

# solve by iterations, with drag; the other methods have their tests in tests/stokes
STOKES_LARGER = [
    Row(
        "stokes.solve",
        of(partial(_solve, "minres"), _operators, _velocity, _values, _positive),
        heavy=True,
        rounding=(".stats",),
        scaling=(Law((_powers(), 3, _VALUES, -2), _SOLUTION),),
    ),
]
