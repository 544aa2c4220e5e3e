"""What rate will my optimizer have, why, and how badly can it overshoot first?

`state_space` holds the one representation, z+ = A z + B grad f(C z), and its blocks on a quadratic; `methods` the named
methods in it, `semi_iteration` Chebyshev's; `linearization` brings any affine optax transformation into it. `spectral`
has the spectral radius and the transient growth of a block, `rates` the worst case over an interval of curvatures,
`lyapunov` the quadratic Lyapunov functions, `non_normality` what the spectral radius hides: resolvents, the numerical
radius, the Kreiss constant. `hessian` computes the curvatures of a model, and `analysis` puts it on one card.

Beyond quadratics: `function_classes` has the inequalities of smooth strongly convex functions, `lyapunov_inequalities`
the matrix inequalities that a Lyapunov function solves, `certificates` the smallest rate that they prove, and
`verification` checks such a proof exactly, `float_proof` under `jit`.

Read in the order state_space, methods, spectral, rates, lyapunov, linearization, hessian, analysis; then the rest.
Source of the theory: arXiv:2310.15880, with corrections that the guide lists and computes.
"""

from jaxnm.first_order.analysis import Analysis as Analysis
from jaxnm.first_order.analysis import analyze as analyze
from jaxnm.first_order.analysis import analyze_learning_rates as analyze_learning_rates
from jaxnm.first_order.certificates import RateCertificate as RateCertificate
from jaxnm.first_order.certificates import certify_rate as certify_rate
from jaxnm.first_order.certificates import check_lyapunov as check_lyapunov
from jaxnm.first_order.float_proof import is_proved as is_proved
from jaxnm.first_order.hessian import Spectrum as Spectrum
from jaxnm.first_order.hessian import hessian_spectrum as hessian_spectrum
from jaxnm.first_order.linearization import Linearization as Linearization
from jaxnm.first_order.linearization import from_optax as from_optax
from jaxnm.first_order.lyapunov import SchurLyapunov as SchurLyapunov
from jaxnm.first_order.lyapunov import casoratian as casoratian
from jaxnm.first_order.lyapunov import eigen_lyapunov as eigen_lyapunov
from jaxnm.first_order.lyapunov import lyapunov_decrease as lyapunov_decrease
from jaxnm.first_order.lyapunov import schur_lyapunov as schur_lyapunov
from jaxnm.first_order.methods import gauss_seidel_nesterov as gauss_seidel_nesterov
from jaxnm.first_order.methods import gradient_descent as gradient_descent
from jaxnm.first_order.methods import heavy_ball as heavy_ball
from jaxnm.first_order.methods import nesterov as nesterov
from jaxnm.first_order.methods import optimal_gauss_seidel_nesterov as optimal_gauss_seidel_nesterov
from jaxnm.first_order.methods import optimal_gradient_descent as optimal_gradient_descent
from jaxnm.first_order.methods import optimal_heavy_ball as optimal_heavy_ball
from jaxnm.first_order.methods import optimal_nesterov as optimal_nesterov
from jaxnm.first_order.methods import optimistic_gradient as optimistic_gradient
from jaxnm.first_order.methods import quasi_hyperbolic as quasi_hyperbolic
from jaxnm.first_order.methods import robust_momentum as robust_momentum
from jaxnm.first_order.methods import three_parameter as three_parameter
from jaxnm.first_order.methods import triple_momentum as triple_momentum
from jaxnm.first_order.non_normality import CertifiedMaximum as CertifiedMaximum
from jaxnm.first_order.non_normality import kreiss_constant as kreiss_constant
from jaxnm.first_order.non_normality import numerical_radius as numerical_radius
from jaxnm.first_order.non_normality import pseudospectrum as pseudospectrum
from jaxnm.first_order.non_normality import resolvent_norm as resolvent_norm
from jaxnm.first_order.rates import is_stable as is_stable
from jaxnm.first_order.rates import quadratic_rate as quadratic_rate
from jaxnm.first_order.rates import stability_limit as stability_limit
from jaxnm.first_order.rates import worst_curvature as worst_curvature
from jaxnm.first_order.semi_iteration import chebyshev as chebyshev
from jaxnm.first_order.semi_iteration import time_varying_rate as time_varying_rate
from jaxnm.first_order.spectral import TransientGrowth as TransientGrowth
from jaxnm.first_order.spectral import spectral_radius as spectral_radius
from jaxnm.first_order.spectral import transient_growth as transient_growth
from jaxnm.first_order.state_space import StateSpace as StateSpace
from jaxnm.first_order.state_space import iteration_matrix as iteration_matrix
from jaxnm.first_order.state_space import state_space as state_space
from jaxnm.first_order.verification import Verification as Verification
from jaxnm.first_order.verification import read_certificate as read_certificate
from jaxnm.first_order.verification import verify as verify
from jaxnm.first_order.verification import write_certificate as write_certificate
