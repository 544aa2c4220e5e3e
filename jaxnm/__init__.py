"""Pure-functional numerical methods in JAX.

Each subpackage is usable alone; all of them share `jaxnm.status` (what a run-time status means and how to cure it),
`jaxnm.linalg` (portable kernels) and `jaxnm.trees` (pytree utilities). `jaxnm.plot` draws the results and needs
matplotlib, so it is imported by name: `import jaxnm.plot.first_order`.
"""

from jaxnm import first_order as first_order
from jaxnm import linalg as linalg
from jaxnm import trees as trees
from jaxnm.status import NumericalFailure as NumericalFailure
from jaxnm.status import Status as Status
from jaxnm.status import raise_if_failed as raise_if_failed

__version__ = "0.1.0"
