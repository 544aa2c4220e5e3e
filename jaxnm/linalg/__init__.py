"""Portable linear-algebra kernels, one idea a file.

`factorizations`: LAPACK behind a guard (a matrix with inf or NaN returns NaN and never hangs), and products in full
precision. `stein`: the discrete Lyapunov equation by doubling. `schur`: the complex Schur form of small matrices, and
their eigenvalues with derivatives, where LAPACK is not at hand. Everything is batched over leading axes, works under
`jit`, `vmap`, `jvp` and `vjp`, and lowers to CPU, CUDA and TPU.
"""

from jaxnm.linalg.factorizations import QR as QR
from jaxnm.linalg.factorizations import SVD as SVD
from jaxnm.linalg.factorizations import Eigh as Eigh
from jaxnm.linalg.factorizations import cholesky as cholesky
from jaxnm.linalg.factorizations import eigh as eigh
from jaxnm.linalg.factorizations import einsum as einsum
from jaxnm.linalg.factorizations import matmul as matmul
from jaxnm.linalg.factorizations import qr as qr
from jaxnm.linalg.factorizations import safe_norm as safe_norm
from jaxnm.linalg.factorizations import solve as solve
from jaxnm.linalg.factorizations import svd as svd
from jaxnm.linalg.schur import SchurForm as SchurForm
from jaxnm.linalg.schur import eigenvalues as eigenvalues
from jaxnm.linalg.schur import left_eigenvectors as left_eigenvectors
from jaxnm.linalg.schur import schur as schur
from jaxnm.linalg.stein import SteinSolution as SteinSolution
from jaxnm.linalg.stein import solve_discrete_lyapunov as solve_discrete_lyapunov
