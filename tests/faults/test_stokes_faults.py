"""Bad input to jaxnm.stokes ends soon with the documented error or status."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import Status, stokes
from jaxnm.stokes import Boundary, Grid, Velocity

_GRID = Grid((4, 5))
_CHANNEL = Boundary(x=("inflow", "outflow"))
_operators = stokes.discretize(_GRID, _CHANNEL)
_force = stokes.zero_velocity(_GRID, _CHANNEL)
_values = stokes.boundary_values(_GRID, _CHANNEL)
_cut = np.zeros((4, 5), bool)
_cut[2] = True
_hole = np.zeros((4, 5), bool)
_KEY = jax.random.key(0)
_hole[1, 1] = _hole[0, 2] = _hole[1, 3] = _hole[2, 2] = True


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Grid((4,)), ValueError, r"Grid: shape is \(4,\)"),
        (lambda: Grid((4, 0)), ValueError, "Grid: shape is 0"),
        (lambda: Grid((4, 4), (0.0, 0.0), (1.0,)), ValueError, r"Grid: upper is \(1\.0,\), expected 2 numbers"),
        (lambda: stokes.discretize(Grid((1, 4)), Boundary()), ValueError, "of 1 cell on axis x, expected two or more"),
        (
            lambda: stokes.discretize(Grid((4, 4), (0.0, 0.0), (1.0, 0.0)), Boundary()),
            ValueError,
            r"grid\.upper is 0\.0 on axis y, expected finite and above 0\.0",
        ),
        (
            lambda: stokes.discretize(Grid((4, 4), (0.0, 0.0), (1.0, float("inf"))), Boundary()),
            ValueError,
            r"grid\.upper is inf",
        ),
        (lambda: Boundary(x=("periodic", "no_slip")), ValueError, "expected periodic on both sides or none"),
        (lambda: Boundary(y="slippery"), ValueError, "Boundary: y is 'slippery'"),
        (lambda: stokes.discretize(_GRID, Boundary(), viscosity=0.0), ValueError, "viscosity is 0.0, expected a posit"),
        (lambda: stokes.discretize(_GRID, Boundary(), viscosity=float("nan")), ValueError, "viscosity is nan"),
        (lambda: stokes.discretize(_GRID, Boundary(), viscosity=jnp.ones(2)), ValueError, "expected a scalar"),
        (lambda: stokes.discretize(_GRID, Boundary(), solid=_cut), ValueError, r"2 parts, one of 5 cell\(s\) at \(3"),
        (lambda: stokes.discretize(_GRID, Boundary(), solid=_hole), ValueError, r"one of 1 cell\(s\) at \(1, 2\)"),
        (lambda: stokes.discretize(_GRID, Boundary(), solid=np.ones((4, 5), bool)), ValueError, "expected some fluid"),
        (lambda: stokes.discretize(_GRID, Boundary(), solid=np.zeros((5, 4), bool)), ValueError, r"of shape \(5, 4\)"),
        (lambda: stokes.discretize(_GRID, Boundary(), solid=np.zeros((4, 5))), TypeError, "solid is of dtype float"),
        (
            lambda: stokes.discretize(_GRID, Boundary(), inverse_permeability=jnp.ones(4)),
            ValueError,
            r"inverse_permeability is of shape \(4,\)",
        ),
        (lambda: stokes.discretize("grid", Boundary()), TypeError, "expected a Grid"),
        (lambda: stokes.discretize(_GRID, "no_slip"), TypeError, "expected a Boundary"),
        (lambda: stokes.largest_component(np.ones((2, 2), bool), Boundary()), ValueError, "expected some fluid"),
        (lambda: stokes.largest_component(np.ones((2, 2)), Boundary()), TypeError, "expected booleans"),
        (
            lambda: stokes.solve(_operators, _force.replace(u=jnp.zeros((3, 5)))),
            ValueError,
            r"solve: force\.u is of shape \(3, 5\), expected \(4, 5\), the unknown faces",
        ),
        (lambda: stokes.solve(_operators, Velocity(*_force.components, jnp.zeros(3))), ValueError, "of 3 components"),
        (
            lambda: stokes.solve(_operators, jax.tree.map(lambda part: part.astype(int), _force)),
            TypeError,
            r"force\.u is of dtype int",
        ),
        (
            lambda: stokes.solve(_operators, jax.tree.map(lambda part: part.astype(complex), _force)),
            TypeError,
            "expected a real dtype",
        ),
        (lambda: stokes.solve(_operators, (_force.u, _force.v)), TypeError, "expected a Velocity"),
        (lambda: stokes.solve(_GRID, _force), TypeError, "expected StokesOperators"),
        (lambda: stokes.solve(_operators, _force, method="lu"), ValueError, "method is 'lu'"),
        (lambda: stokes.solve(_operators, _force, rtol=0.0), ValueError, "rtol is 0.0"),
        (lambda: stokes.solve(_operators, _force, max_steps=1.5), TypeError, "max_steps is of type float"),
        (lambda: stokes.solve(_operators, _force, divergence=jnp.zeros((5, 4))), ValueError, "divergence is of shape"),
        (
            lambda: stokes.solve(_operators, _force, boundary_values=stokes.boundary_values(_GRID, Boundary())),
            ValueError,
            "of another grid or boundary",
        ),
        (
            lambda: stokes.factorize(stokes.discretize(Grid((3, 3, 3)), Boundary()), method="direct"),
            ValueError,
            "'direct' for three dimensions, expected a two-dimensional box",
        ),
        (
            lambda: stokes.factorize(_operators.replace(solid=jnp.zeros((4, 5), bool)), method="direct"),
            ValueError,
            "'direct' for a domain with solid or drag",
        ),
        *(
            (partial(getattr(stokes, name), _GRID, *args), TypeError, f"{name}: operators is of type Grid")
            for name, args in (
                ("factorize", ()),
                ("full_faces", (_force,)),
                ("at_centres", (_force,)),
                ("vorticity", (_force,)),
                ("stream_function", (_force,)),
                ("flux", (_force, 0)),
                ("force_on_solid", (_force, jnp.zeros((4, 5)))),
                ("schur_complement", ()),
                ("schur_eigenvalues", ()),
            )
        ),
        *(
            (
                partial(getattr(stokes, name), _GRID, key=jax.random.key(0)),
                TypeError,
                f"{name}: operators is of type Grid",
            )
            for name in ("schur_extremes", "inf_sup_constant")
        ),
        (lambda: stokes.discretize(_GRID, Boundary(), viscosity="thin"), TypeError, "viscosity is of type str"),
        (lambda: stokes.full_faces(_operators, (1, 2)), TypeError, "velocity is of type tuple, expected a Velocity"),
        (
            lambda: stokes.solve(_operators, jax.tree.map(lambda part: part.astype(jnp.bfloat16), _force)),
            TypeError,
            r"force\.u is of dtype bfloat16",
        ),
        (lambda: stokes.factorize(_operators, dtype=jnp.float16), TypeError, "factorize: dtype is of dtype float16"),
        (lambda: stokes.permeability(_cut, dtype=jnp.float16), TypeError, "permeability: dtype is of dtype float16"),
        (lambda: stokes.permeability(_cut, spacing=[1.0]), ValueError, "spacing is of 1 numbers, expected one number"),
        (lambda: stokes.permeability(_cut, spacing=(1.0, 1.0, 1.0)), ValueError, "spacing is of 3 numbers"),
        (lambda: stokes.permeability(_cut, spacing=(1.0, -1.0)), ValueError, r"permeability: spacing is -1\.0"),
        (lambda: _values.set("z", "upper", normal=1.0), ValueError, "axis is 'z'"),
        (lambda: _values.set("x", "left", normal=1.0), ValueError, "side is 'left'"),
        (lambda: _values.set("x", "upper", normal=1.0), ValueError, "normal is given on a outflow side"),
        (lambda: _values.set("x", "lower", pressure=1.0), ValueError, "pressure is given on a inflow side"),
        (lambda: _values.set("x", "lower", normal=jnp.ones(4)), ValueError, r"of shape \(4,\), expected a number or"),
        (lambda: _values.set("y", "lower", tangential=(1.0, 2.0)), ValueError, r"of 2 component\(s\)"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_numbers_that_are_not_finite():
    solve = jax.jit(stokes.solve)
    for bad in (jnp.nan, jnp.inf):
        solution = solve(_operators, _force.replace(v=_force.v.at[1, 1].set(bad)), boundary_values=_values)
        assert int(solution.status) == Status.NONFINITE_INPUT
        assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves((solution.velocity, solution.pressure)))
    inflow = _values.set("x", "lower", normal=jnp.full(5, jnp.nan))
    assert int(solve(_operators, _force, boundary_values=inflow).status) == Status.NONFINITE_INPUT
