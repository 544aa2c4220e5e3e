"""Portable linear-algebra kernels, one idea a file.

`factorizations`: LAPACK behind a guard (a matrix with inf or NaN returns NaN and never hangs), and products in full
precision. `stein`: the discrete Lyapunov equation by doubling. `schur`: the complex Schur form of small matrices, and
their eigenvalues with derivatives, where LAPACK is not at hand. `lanczos`: the ends and the density of the spectrum of
a large symmetric operator that is known by its products. `krylov`: linear systems with such an operator. `transforms`,
`transforms_nd`: cosine, sine and Hartley transforms. `graded`: what stands for them on cells of different sizes.
`lmi`: small linear matrix inequalities. Everything is batched over leading axes, works under `jit`, `vmap`, `jvp` and
`vjp`, and lowers to CPU, CUDA and TPU.
"""

from jaxnm.linalg.extreme_eigenvalues import ExtremeEigenvalues as ExtremeEigenvalues
from jaxnm.linalg.extreme_eigenvalues import extreme_eigenvalues as extreme_eigenvalues
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
from jaxnm.linalg.graded import GradedBasis as GradedBasis
from jaxnm.linalg.graded import graded_basis as graded_basis
from jaxnm.linalg.graded import solve_separable as solve_separable
from jaxnm.linalg.krylov import KrylovSolution as KrylovSolution
from jaxnm.linalg.krylov import conjugate_gradient as conjugate_gradient
from jaxnm.linalg.krylov import minres as minres
from jaxnm.linalg.lanczos import Tridiagonalization as Tridiagonalization
from jaxnm.linalg.lanczos import lanczos as lanczos
from jaxnm.linalg.lmi import MarginSolution as MarginSolution
from jaxnm.linalg.lmi import maximize_margin as maximize_margin
from jaxnm.linalg.schur import SchurForm as SchurForm
from jaxnm.linalg.schur import eigenvalues as eigenvalues
from jaxnm.linalg.schur import left_eigenvectors as left_eigenvectors
from jaxnm.linalg.schur import schur as schur
from jaxnm.linalg.spectral_density import SpectralMeasure as SpectralMeasure
from jaxnm.linalg.spectral_density import TraceEstimate as TraceEstimate
from jaxnm.linalg.spectral_density import smoothed_density as smoothed_density
from jaxnm.linalg.spectral_density import spectral_density as spectral_density
from jaxnm.linalg.spectral_density import trace_of_function as trace_of_function
from jaxnm.linalg.stein import SteinSolution as SteinSolution
from jaxnm.linalg.stein import solve_discrete_lyapunov as solve_discrete_lyapunov
from jaxnm.linalg.transforms import dct as dct
from jaxnm.linalg.transforms import dst as dst
from jaxnm.linalg.transforms import hartley as hartley
from jaxnm.linalg.transforms import idct as idct
from jaxnm.linalg.transforms import idst as idst
from jaxnm.linalg.transforms_nd import dctn as dctn
from jaxnm.linalg.transforms_nd import dstn as dstn
from jaxnm.linalg.transforms_nd import idctn as idctn
from jaxnm.linalg.transforms_nd import idstn as idstn
