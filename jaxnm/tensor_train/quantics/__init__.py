"""Quantics: vectors of 2^q numbers, and operators on them, as trains of q modes of size 2.

Mode k of a train holds bit k of the index, the most significant one first: i = sum_k digits[k] 2^(q - 1 - k). The train
of a function f has the entry f(x_i) at i, where x_i = start + spacing i. Functions of many variables have one group of
q modes a variable, one after the other (`encode` of [m, d] indices, and a reshape), and operators on one of the
variables are put between identities. `digits`: indices and points. `functions`: exponentials, waves, polynomials,
steps. `operators`: shifts, differences, the Fourier transform.
"""

from jaxnm.tensor_train.quantics.digits import decode as decode
from jaxnm.tensor_train.quantics.digits import encode as encode
from jaxnm.tensor_train.quantics.digits import points as points
from jaxnm.tensor_train.quantics.digits import reverse_bits as reverse_bits
from jaxnm.tensor_train.quantics.functions import cos as cos
from jaxnm.tensor_train.quantics.functions import delta as delta
from jaxnm.tensor_train.quantics.functions import exp as exp
from jaxnm.tensor_train.quantics.functions import interpolant as interpolant
from jaxnm.tensor_train.quantics.functions import polynomial as polynomial
from jaxnm.tensor_train.quantics.functions import sin as sin
from jaxnm.tensor_train.quantics.functions import step as step
from jaxnm.tensor_train.quantics.operators import fourier as fourier
from jaxnm.tensor_train.quantics.operators import inverse_laplacian as inverse_laplacian
from jaxnm.tensor_train.quantics.operators import laplacian as laplacian
from jaxnm.tensor_train.quantics.operators import shift as shift
