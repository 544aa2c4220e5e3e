"""Stationary Stokes flow on staggered grids: operators, exact and iterative solvers, spectrum of the Schur complement.

`grid`: boxes of cells, the kinds of their sides, velocities on faces. `domain`: which fluid cells a flow can reach.
`operators`: A, B, B^T and the saddle-point matrix. `boundary_values`: what is prescribed on the sides. `counting`: the
exact number of non-unit eigenvalues of the Schur complement; `schur`: the complement itself and its spectrum.
`spectral`, `direct`: fast transforms along an axis, and the exact solver of two-dimensional boxes. `multigrid`,
`preconditioners`: cycles for domains with solids. `connectivity`: the parts of a traced mask. `units`, `saddle`,
`solvers`: cells of unit size, the system solved and measured in them, and the public `solve` and `factorize`. `flow`,
`permeability`: what one wants to know of a flow. Conventions: momentum `-nu lap u + grad p = f`, `div u = g`, B = -div,
S = nu B A^-1 B^T.
"""

from jaxnm.stokes.boundary_values import BoundaryValues as BoundaryValues
from jaxnm.stokes.boundary_values import boundary_values as boundary_values
from jaxnm.stokes.boundary_values import full_faces as full_faces
from jaxnm.stokes.counting import count_nonunit_eigenvalues as count_nonunit_eigenvalues
from jaxnm.stokes.domain import largest_component as largest_component
from jaxnm.stokes.flow import StreamExtrema as StreamExtrema
from jaxnm.stokes.flow import at_centres as at_centres
from jaxnm.stokes.flow import flux as flux
from jaxnm.stokes.flow import force_on_solid as force_on_solid
from jaxnm.stokes.flow import stream_extrema as stream_extrema
from jaxnm.stokes.flow import stream_function as stream_function
from jaxnm.stokes.flow import vorticity as vorticity
from jaxnm.stokes.grid import Boundary as Boundary
from jaxnm.stokes.grid import Grid as Grid
from jaxnm.stokes.grid import Velocity as Velocity
from jaxnm.stokes.grid import face_shapes as face_shapes
from jaxnm.stokes.grid import positions as positions
from jaxnm.stokes.grid import zero_velocity as zero_velocity
from jaxnm.stokes.operators import StokesOperators as StokesOperators
from jaxnm.stokes.operators import discretize as discretize
from jaxnm.stokes.permeability import Permeability as Permeability
from jaxnm.stokes.permeability import permeability as permeability
from jaxnm.stokes.schur import SchurComplement as SchurComplement
from jaxnm.stokes.schur import inf_sup_constant as inf_sup_constant
from jaxnm.stokes.schur import schur_complement as schur_complement
from jaxnm.stokes.schur import schur_eigenvalues as schur_eigenvalues
from jaxnm.stokes.schur import schur_extremes as schur_extremes
from jaxnm.stokes.solvers import SolveStats as SolveStats
from jaxnm.stokes.solvers import StokesFactor as StokesFactor
from jaxnm.stokes.solvers import StokesSolution as StokesSolution
from jaxnm.stokes.solvers import factorize as factorize
from jaxnm.stokes.solvers import solve as solve
