"""Training on disk: folders of checkpoints that a run resumes from, and parameters in one small file.

Both say what they were made by, are written beside their place and then moved there, and are refused where they do not
fit, so that nothing is read wrongly and nothing is overwritten.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxnm import arguments

_RUN = "jaxnm training run, format 1"
_PARAMETERS = "jaxnm parameters, format 1"
_KEPT = 2
_UNFINISHED = "orbax-checkpoint-tmp"


# ------------------------------------------------------------------------------------------------ what is described


def describe_cell(cell: nnx.Module) -> dict[str, Any]:
    """The class of a cell and its static numbers and names, as JSON has them."""
    static = {name: value for name, value in vars(cell).items() if isinstance(value, bool | int | float | str)}
    return {"cell": type(cell).__name__, **{name: static[name] for name in sorted(static) if not name.startswith("_")}}


def digest(*arrays: Any) -> str:
    """A checksum of the values, shapes and dtypes of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves and their paths; typed keys as the integers that they are made of."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    return [(name(path), jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _unflatten(like: Any, arrays: list[np.ndarray]) -> Any:
    """Arrays in the place of the leaves of `like`, and of their kind."""
    old, structure = jax.tree.flatten(like)
    new = [
        jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else jnp.asarray(array)
        for leaf, array in zip(old, arrays, strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def signature(tree: Any) -> list[list[Any]]:
    """Name, shape and dtype of every leaf."""
    return [[name, list(np.shape(leaf)), str(jnp.result_type(leaf))] for name, leaf in _named_leaves(tree)]


# ------------------------------------------------------------------------------------------------ folders of a run


class RunFolder:
    """The checkpoints of one training run in a folder, by orbax; the last two are kept.

    Each holds the bytes of a state, one leaf after the other, and a description of the run with the names, shapes and
    dtypes of the leaves, in `<folder>/<step>/`. A checkpoint comes into being by a rename, so that a run killed at any
    time leaves the one before it whole.

    Args:
      function: name for the messages.
      folder: is made if needed; refused if it holds anything else.
      configuration: what makes this run the same run, as JSON has it.

    Raises:
      ValueError: the folder is a file, holds something else, a checkpoint that cannot be read, or one of another run.
    """

    def __init__(self, function: str, folder: str | os.PathLike, configuration: Mapping[str, Any]):
        self.function, self.folder = function, Path(folder).resolve()
        self.configuration = json.loads(json.dumps(configuration))
        self.step = self._last_step()
        self.description = None if self.step is None else self._read_description(self.step)
        self._manager: Any = None

    def _last_step(self) -> int | None:
        if self.folder.exists() and not self.folder.is_dir():
            self._refuse("a file", "a folder", "choose another name")
        entries = [entry for entry in self.folder.iterdir() if _UNFINISHED not in entry.name] if self._exists else []
        foreign = [entry.name for entry in entries if not (entry.is_dir() and entry.name.isdecimal())]
        if foreign:
            self._refuse(f"a folder with {sorted(foreign)[0]!r}", "an empty folder or one of a training run")
        steps = [int(entry.name) for entry in entries]
        return max(steps, default=None)

    @property
    def _exists(self) -> bool:
        return self.folder.is_dir()

    def _read_description(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        place = self.folder / str(step) / "description"
        with self._reading(step), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            found = reader.restore(place)
            format_, configuration = found["format"], found["configuration"]
            _ = found["leaves"], found["checksum"]
        if format_ != _RUN:
            self._refuse(f"a folder in the format {format_!r}", f"{_RUN!r}")
        for name in sorted(self.configuration.keys() | configuration.keys()):
            old, new = configuration.get(name), self.configuration.get(name)
            if old != new:
                self._refuse(
                    f"of a run with {name} = {_short(old)}",
                    f"{_short(new)}, as in this call",
                    "resume with what the run began with, or choose another folder",
                )
        return found

    def restore(self, like: Any) -> Any:
        """The state of the last checkpoint; `like` is one of the same structure, shapes and dtypes."""
        import orbax.checkpoint as ocp

        step, description, leaves = self.step, self.description, _named_leaves(like)
        if step is None or description is None:
            raise LookupError("there is no checkpoint")
        if description["leaves"] != signature(like):
            pairs = itertools.zip_longest(description["leaves"], signature(like))
            old, new = next((old, new) for old, new in pairs if old != new)
            self._refuse(f"of a run whose state has {old}", f"{new}", "resume with the same optimizer")
        kinds = [(np.shape(leaf), np.dtype(jnp.result_type(leaf))) for _, leaf in leaves]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
        with self._reading(step), ocp.StandardCheckpointer() as reader:
            found = reader.restore(self.folder / str(step) / "state", {"bytes": np.zeros(sum(sizes), np.uint8)})
            flat = np.asarray(found["bytes"])
            if digest(flat) != description["checksum"]:
                raise ValueError("its checksum is wrong")
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        arrays = [part.view(dtype).reshape(shape) for part, (shape, dtype) in zip(parts, kinds, strict=True)]
        return _unflatten(like, arrays)

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint, and then remove the oldest one if there are more than two."""
        import orbax.checkpoint as ocp

        # one array of bytes: orbax reads arrays side by side, and leaves errors about behind where several are damaged
        parts = [np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8) for _, leaf in _named_leaves(state)]
        flat = np.concatenate(parts)
        description = {
            "format": _RUN,
            "configuration": self.configuration,
            "leaves": signature(state),
            "checksum": digest(flat),
        }
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({"bytes": flat}), description=ocp.args.JsonSave(description)
            ),
            force=True,
        )
        self.step, self.description = step, description

    def close(self) -> None:
        """Let go of the threads of orbax."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        # orbax raises errors of many kinds at what it did not write
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        except Exception as error:
            message = (
                f"{self.function}: checkpoint_dir is {str(self.folder)!r}, whose checkpoint {step} cannot be read "
                f"({type(error).__name__}: {_short(error)}), expected one of a training run; nothing was written: "
                "remove that checkpoint to go on from the one before it, or choose another folder"
            )
            raise ValueError(message) from error
        finally:
            logger.setLevel(level)

    def _refuse(self, got: str, expected: str, remedy: str = "choose another folder; nothing was written") -> NoReturn:
        arguments.refuse(self.function, f"checkpoint_dir {str(self.folder)!r}", got, expected, remedy)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else text[:200] + "..."


# ------------------------------------------------------------------------------------------------ one file


def save_parameters(
    path: str | os.PathLike, model: Any, params: Any | None = None, *, meta: Mapping[str, Any] | None = None
) -> Path:
    """Write the parameters of a cell to one small file.

    The file is an .npz archive, one array a parameter, with a description in it; NumPy reads it as well. It is written
    beside its place and moved there.

    Args:
      path: the suffix .npz is appended if it is not there.
      model: a cell of `cells` or `unrolling`, or the graph definition of one.
      params: as in `graphdef, params = nnx.split(cell)`; by default those of the cell.
      meta: anything that JSON can hold, such as the steps and the seed of the training.

    Returns:
      the path of the file.

    Raises:
      TypeError: meta that JSON cannot hold. ValueError: params that are not those of the model, as far as a graph
        definition can tell.

    Not differentiable.

    Example:
      >>> import tempfile
      >>> from jaxnm.filtering.cells import MePFRNN
      >>> cell = MePFRNN(5, rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save_parameters(folder + "/cell", cell, meta={"seed": 0})
      ...     params, meta = load_parameters(path, cell)
      >>> path.name, meta["seed"]
      ('cell.npz', 0)
    """
    graphdef, params = _split("save_parameters", model, params)
    if isinstance(model, nnx.Module):
        got, wanted = (signature(tree) for tree in (params, nnx.split(model)[1]))
        different = next((pair for pair in itertools.zip_longest(got, wanted) if pair[0] != pair[1]), None)
        if different is not None:
            found, expected = (str(leaf) for leaf in different)
            arguments.refuse("save_parameters", "params", f"with {found}", expected, "pass those of this model")
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    description = {
        "format": _PARAMETERS,
        "model": describe_cell(nnx.merge(graphdef, params)),
        "meta": dict(meta or {}),
    }
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(params)}
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


def load_parameters(path: str | os.PathLike, model: Any) -> tuple[Any, dict[str, Any]]:
    """Read the parameters of a cell from a file of `save_parameters`.

    Args:
      path: of the file.
      model: a cell of the same kind and widths as the one that was saved, a pair (graphdef, params) of one, or a
        function of `nnx.Rngs` that makes one.

    Returns:
      (params, meta): params as in `graphdef, params = nnx.split(cell)`, of the dtypes of the model; meta as saved.

    Raises:
      FileNotFoundError: no such file. ValueError: a file of another kind, a damaged one, or one of another model.

    Not differentiable.

    Example:
      >>> from jaxnm.filtering.cells import MePFRNN
      >>> load_parameters("nowhere.npz", MePFRNN(5, rngs=nnx.Rngs(0)))
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.npz'
    """
    graphdef, params = _split("load_parameters", model, None)
    expected = describe_cell(nnx.merge(graphdef, params))
    like = _named_leaves(params)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        description = json.loads(str(found.pop("description")))
        format_, saved, meta = description["format"], description["model"], description["meta"]
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, AttributeError) as error:
        message = (
            f"load_parameters: {str(path)!r} cannot be read ({type(error).__name__}: {_short(error)}), expected a file "
            "of save_parameters; it is damaged or of another kind"
        )
        raise ValueError(message) from error
    if format_ != _PARAMETERS:
        arguments.refuse("load_parameters", str(path), f"in the format {format_!r}", repr(_PARAMETERS), "convert it")
    for name in sorted(expected.keys() | saved.keys()):
        if expected.get(name) != saved.get(name):
            arguments.refuse(
                "load_parameters",
                str(path),
                f"of a model with {name} = {saved.get(name)!r}",
                repr(expected.get(name)),
                "load it into a model like the one that was saved",
            )
    shapes = {name: array.shape for name, array in found.items()}
    wanted = {name: np.shape(leaf) for name, leaf in like}
    if shapes != wanted:
        different = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))[0]
        got = f"a file whose parameter {different!r} has the shape {shapes.get(different)}"
        arguments.refuse("load_parameters", str(path), got, str(wanted.get(different)), "load it into a model like it")
    arrays = [found[name].astype(jnp.result_type(leaf)) for name, leaf in like]
    return _unflatten(params, arrays), meta


def _split(function: str, model: Any, params: Any | None) -> tuple[Any, Any]:
    """(graphdef, params) from a cell, a pair, a function that makes a cell, or a graph definition and params."""
    if isinstance(model, nnx.Module):
        graphdef, own = nnx.split(model)
        return graphdef, own if params is None else params
    if isinstance(model, nnx.GraphDef) and params is not None:
        return model, params
    if isinstance(model, tuple) and len(model) == 2:
        return model
    if callable(model):
        return nnx.split(model(nnx.Rngs(0)))
    got = f"of type {type(model).__name__}"
    arguments.refuse(function, "model", got, "a cell, or (graphdef, params)", "pass nnx.split(cell)", error=TypeError)
