"""Tensor trains: arrays of hundreds of modes as chains of small cores, of one padded shape, inside `jit`.

`trains`: how a train is stored, its cores in and out, its arithmetic. `products`: entries, inner products, norms by
orthogonal factorizations, integrals and marginals. `rounding`: smaller ranks, with a derivative. `dense`: full arrays
in and out. `matrices`: operators, and sums of many trains.
Conventions: tolerances are relative to the norm, distances are absolute; ranks are traced and `max_rank` is static;
keys are typed; an index is an int32 row of d numbers, never a linear index.
"""

from jaxnm.tensor_train.dense import from_dense as from_dense
from jaxnm.tensor_train.dense import to_dense as to_dense
from jaxnm.tensor_train.matrices import TTMatrix as TTMatrix
from jaxnm.tensor_train.matrices import matmat as matmat
from jaxnm.tensor_train.matrices import matrix_from_cores as matrix_from_cores
from jaxnm.tensor_train.matrices import matrix_to_cores as matrix_to_cores
from jaxnm.tensor_train.matrices import matvec as matvec
from jaxnm.tensor_train.matrices import sum_many as sum_many
from jaxnm.tensor_train.products import distance as distance
from jaxnm.tensor_train.products import dot as dot
from jaxnm.tensor_train.products import gather as gather
from jaxnm.tensor_train.products import integrate as integrate
from jaxnm.tensor_train.products import marginal as marginal
from jaxnm.tensor_train.products import norm as norm
from jaxnm.tensor_train.rounding import round as round
from jaxnm.tensor_train.trains import TT as TT
from jaxnm.tensor_train.trains import add as add
from jaxnm.tensor_train.trains import from_cores as from_cores
from jaxnm.tensor_train.trains import hadamard as hadamard
from jaxnm.tensor_train.trains import scale as scale
from jaxnm.tensor_train.trains import subtract as subtract
from jaxnm.tensor_train.trains import to_cores as to_cores
