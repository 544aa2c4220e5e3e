"""Tensor trains: arrays of hundreds of modes as chains of small cores, of one padded shape, inside `jit`.

`scaling`: exact powers of two, so that nothing overflows. `trains`: how a train is stored, its cores in and out, its
arithmetic. `products`: entries, inner products, norms by orthogonal factorizations, integrals and marginals; `spectra`:
singular values of the bonds. `rounding`: smaller ranks, with a derivative. `dense`: full arrays in and out. `matrices`:
operators, and sums of many trains. `cross_sweeps`, `cross_search`, `cross_train`, `cross_table`, `cross`: trains of
functions, from some of their entries; `chebyshev`: functions on a box; `black_box`: functions on the host. `quantics`:
vectors of 2^q numbers. `sampling`: a train as a probability; `extremes`: its largest and smallest entry. `optimize`,
`protes`, `ttopt`: functions of integers, minimized. `solve_sites`, `solve`: linear systems; `laplace`: the inverse of a
sum over the dimensions. `storage`: files.
Conventions: ranks are traced and `max_rank` is static; keys are typed; an index is an int32 row of d numbers, never a
linear index. Every tolerance is relative: eps of `round`, `sum_many` and `from_dense` to the Frobenius norm of what is
given, tol of `solve` to that of the right-hand side, eps of `laplace_inverse` to the eigenvalues of the inverse, and
tol of a cross to the largest |value| that it has seen. Distances and norms are absolute.
"""

from jaxnm.tensor_train import quantics as quantics
from jaxnm.tensor_train.black_box import from_black_box as from_black_box
from jaxnm.tensor_train.chebyshev import ChebyshevResult as ChebyshevResult
from jaxnm.tensor_train.chebyshev import ChebyshevTrain as ChebyshevTrain
from jaxnm.tensor_train.chebyshev import chebyshev as chebyshev
from jaxnm.tensor_train.chebyshev import evaluate as evaluate
from jaxnm.tensor_train.cross import CrossResult as CrossResult
from jaxnm.tensor_train.cross import from_function as from_function
from jaxnm.tensor_train.cross import from_function_on as from_function_on
from jaxnm.tensor_train.dense import from_dense as from_dense
from jaxnm.tensor_train.dense import to_dense as to_dense
from jaxnm.tensor_train.extremes import Extreme as Extreme
from jaxnm.tensor_train.extremes import argmax as argmax
from jaxnm.tensor_train.extremes import argmin as argmin
from jaxnm.tensor_train.laplace import kronecker_sum as kronecker_sum
from jaxnm.tensor_train.laplace import laplace_inverse as laplace_inverse
from jaxnm.tensor_train.laplace import laplace_inverse_factors as laplace_inverse_factors
from jaxnm.tensor_train.laplace import laplace_inverse_matrix as laplace_inverse_matrix
from jaxnm.tensor_train.matrices import TTMatrix as TTMatrix
from jaxnm.tensor_train.matrices import matmat as matmat
from jaxnm.tensor_train.matrices import matrix_from_cores as matrix_from_cores
from jaxnm.tensor_train.matrices import matrix_to_cores as matrix_to_cores
from jaxnm.tensor_train.matrices import matvec as matvec
from jaxnm.tensor_train.matrices import sum_many as sum_many
from jaxnm.tensor_train.optimize import AskTell as AskTell
from jaxnm.tensor_train.optimize import OptimizeResult as OptimizeResult
from jaxnm.tensor_train.optimize import grid_point as grid_point
from jaxnm.tensor_train.products import distance as distance
from jaxnm.tensor_train.products import dot as dot
from jaxnm.tensor_train.products import gather as gather
from jaxnm.tensor_train.products import integrate as integrate
from jaxnm.tensor_train.products import marginal as marginal
from jaxnm.tensor_train.products import norm as norm
from jaxnm.tensor_train.protes import protes as protes
from jaxnm.tensor_train.protes import protes_ask_tell as protes_ask_tell
from jaxnm.tensor_train.protes import protes_with_gradients as protes_with_gradients
from jaxnm.tensor_train.rounding import round as round
from jaxnm.tensor_train.sampling import Samples as Samples
from jaxnm.tensor_train.sampling import log_prob as log_prob
from jaxnm.tensor_train.sampling import sample as sample
from jaxnm.tensor_train.solve import SolveResult as SolveResult
from jaxnm.tensor_train.solve import solve as solve
from jaxnm.tensor_train.spectra import singular_values as singular_values
from jaxnm.tensor_train.storage import load as load
from jaxnm.tensor_train.storage import save as save
from jaxnm.tensor_train.trains import TT as TT
from jaxnm.tensor_train.trains import add as add
from jaxnm.tensor_train.trains import from_cores as from_cores
from jaxnm.tensor_train.trains import hadamard as hadamard
from jaxnm.tensor_train.trains import scale as scale
from jaxnm.tensor_train.trains import subtract as subtract
from jaxnm.tensor_train.trains import to_cores as to_cores
from jaxnm.tensor_train.ttopt import ttopt as ttopt
from jaxnm.tensor_train.ttopt import ttopt_ask_tell as ttopt_ask_tell
