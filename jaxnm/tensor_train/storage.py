"""Trains and operators in one small file."""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import arguments
from jaxnm.tensor_train.matrices import TTMatrix
from jaxnm.tensor_train.trains import TT

_FORMAT = "jaxnm tensor train, format 1"
_ARRAYS = {"cores", "ranks", "log_scale"}


def save(path: str | os.PathLike, train: TT | TTMatrix) -> Path:
    """Write a train or an operator to one file, which replaces one that is there.

    The file is an .npz archive of the cores, ranks and log_scale, with a description in it; NumPy reads it as well. It
    is written beside its place and moved there.

    Args:
      path: the suffix .npz is appended if it is not there.
      train: not traced, not a batch.

    Returns:
      the path of the file.

    Raises:
      ValueError: under `jit`, cores that do not belong to the shape. TypeError: something else than a train or an
        operator, a dtype that NumPy does not have.

    Not differentiable.

    Example:
      >>> import tempfile
      >>> from jaxnm.tensor_train import from_cores
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save(folder + "/ones", from_cores([jnp.ones((1, 3, 1))] * 4))
      ...     path.name, load(path).shape
      ('ones.npz', (3, 3, 3, 3))
    """
    if not isinstance(train, TT | TTMatrix):
        got = f"of type {type(train).__name__}"
        arguments.refuse("save", "train", got, "a TT or a TTMatrix", "see from_cores", error=TypeError)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(train)):
        arguments.refuse("save", "train", "traced", "known numbers", "call it outside of jit")
    arrays = {name: np.asarray(getattr(train, name)) for name in sorted(_ARRAYS)}
    if arrays["cores"].dtype.kind not in "fc":
        got = f"of dtype {arrays['cores'].dtype}"
        arguments.refuse("save", "train", got, "float16, float32, float64 or complex", "convert it", error=TypeError)
    sizes = [train.shape] if isinstance(train, TT) else [train.rows, train.columns]
    wrong = _defect(arrays, sizes)
    if wrong:
        arguments.refuse("save", "train", wrong, "a sound one", "save the trains of a batch one by one")
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    description = {"format": _FORMAT, "kind": type(train).__name__, "sizes": sizes}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, description=np.array(json.dumps(description)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike) -> TT | TTMatrix:
    """Read a train or an operator from a file of `save`.

    Args:
      path: of the file.

    Returns:
      `TT` or `TTMatrix`, as it was saved, bit for bit; float64 becomes float32 where JAX is without float64.

    Raises:
      FileNotFoundError: no such file. ValueError: a file of another kind, or a damaged one.

    Not differentiable.

    Example:
      >>> load("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.npz'
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        description = json.loads(str(found.pop("description")))
        format_, kind = description["format"], description["kind"]
        sizes = [tuple(int(n) for n in size) for size in description["sizes"]]
        if found.keys() != _ARRAYS or (kind, len(sizes)) not in (("TT", 1), ("TTMatrix", 2)):
            raise KeyError("its parts are not those of a train")
    except FileNotFoundError:
        raise
    except (ValueError, LookupError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error, AttributeError,
            NotImplementedError) as error:  # fmt: skip
        text = " ".join(str(error).split())[:200]
        message = (
            f"load: {str(path)!r} cannot be read ({type(error).__name__}: {text}), expected a file of save; it is "
            "damaged or of another kind"
        )
        raise ValueError(message) from error
    if format_ != _FORMAT:
        arguments.refuse("load", str(path), f"in the format {format_!r}", repr(_FORMAT), "convert it")
    wrong = _defect(found, sizes)
    if wrong:
        arguments.refuse("load", str(path), f"a file with a train {wrong}", "a sound one", "save it again")
    arrays = {name: jnp.asarray(array) for name, array in found.items()}
    return TT(**arrays, shape=sizes[0]) if kind == "TT" else TTMatrix(**arrays, rows=sizes[0], columns=sizes[1])


def _defect(arrays: dict[str, Any], sizes: list[tuple[int, ...]]) -> str:
    """What is wrong with the parts of a train, in words; nothing if it is sound."""
    cores, ranks, log_scale = (arrays[name] for name in ("cores", "ranks", "log_scale"))
    d = len(sizes[0])
    if d == 0 or any(len(size) != d or min(size) < 1 for size in sizes):
        return f"of shape {sizes}"
    largest = [max(size) for size in sizes]
    rank = cores.shape[-1] if cores.ndim else 0
    if cores.dtype.kind not in "fc" or rank < 1 or cores.shape != (d, rank, *largest, rank):
        return f"with cores of shape {cores.shape} and dtype {cores.dtype} for modes {sizes}"
    if log_scale.shape != () or log_scale.dtype != cores.real.dtype:
        return f"with a log_scale of shape {log_scale.shape} and dtype {log_scale.dtype}"
    known = ranks.shape == (d + 1,) and ranks.dtype == np.int32
    if not known or ranks[0] != 1 or ranks[-1] != 1 or ranks.min() < 1 or ranks.max() > rank:
        return f"with ranks {ranks.tolist()}"
    inside = np.ones((d, *cores.shape[1:]), bool)
    for axis, most in ((1, ranks[:-1]), *((2 + k, np.array(size)) for k, size in enumerate(sizes)), (-1, ranks[1:])):
        below = np.arange(cores.shape[axis])[None] < most[:, None]
        inside &= below.reshape(d, *(below.shape[1] if a == axis % cores.ndim else 1 for a in range(1, cores.ndim)))
    return "" if not np.any(cores[~inside]) else "with numbers beyond its ranks or modes"
