"""Checkpoints with orbax: state, data position and config in one step's folder, complete or absent, never half.

    directory/200/{params,rest,data,config}      written to a temporary name, renamed when whole

Parameters are an item of their own, so that a later stage or a chat reads them without the optimizer's state.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax

from jaxgpt.core import distributed
from jaxgpt.core.config import first_difference
from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write, check_space
from jaxgpt.core.state import TrainState


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: where they lie.
      config: JSON value that says what the state belongs to (the model's settings); another one is refused.
      keep: how many of the newest stay.
    """

    def __init__(self, directory: str | Path, *, config: dict, keep: int = 2):
        import orbax.checkpoint as ocp
        self.directory, self.config = Path(directory).absolute(), config
        self._ocp = ocp
        if distributed.is_main():
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.iterdir():  # orbax counts half a checkpoint as a step, and would then skip it
                if path.name.isdigit() and not _is_complete(path):
                    shutil.rmtree(path)
        distributed.wait()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True,
                                               cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options,
                                              item_names=("params", "rest", "data", "config"))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        found = distributed.from_main(max(complete_steps(self.directory), default=-1))
        return None if found < 0 else found

    def save(self, step: int, state: TrainState, data: dict) -> None:
        """Starts to write a checkpoint; the run goes on meanwhile, and may donate `state` at once.

        Raises:
          UserError: the disk is full (told here or at the next call; earlier checkpoints are intact).
        """
        args = self._ocp.args
        rest = {"opt_state": state.opt_state, "step": state.step, "rng": state.rng, "extra": state.extra}
        self.wait()
        # Before orbax begins: out of space half-way, its threads fill the screen with tracebacks.
        if distributed.is_main():
            check_space(self.directory / str(step), sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2 ** 18)
        try:
            self._manager.save(step, args=args.Composite(
                params=args.StandardSave(state.params), rest=args.StandardSave(rest),
                data=args.JsonSave(data), config=args.JsonSave(self.config)))
        except Exception as error:  # orbax raises what its storage layer raises
            raise cannot_write(self.directory / str(step), error) from error

    def restore(self, abstract_state: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The state and data position of a step (the newest where None), laid out as `abstract_state` says.

        Raises:
          UserError: the checkpoint is another model's, or damaged.
        """
        step = self.latest() if step is None else step
        folder = self.directory / str(step)
        args = self._ocp.args
        _check_config(folder, self.config)
        rest = {"opt_state": abstract_state.opt_state, "step": abstract_state.step, "rng": abstract_state.rng,
                "extra": abstract_state.extra}
        try:
            found = self._manager.restore(step, args=args.Composite(
                params=args.StandardRestore(abstract_state.params), rest=args.StandardRestore(rest),
                data=args.JsonRestore()))
        except Exception as error:  # orbax raises what its storage layer raises
            raise _cannot_read(folder, error) from error
        return TrainState(params=found["params"], **found["rest"]), found["data"]

    def wait(self) -> None:
        """Returns when what was saved is on disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise cannot_write(self.directory, error) from error

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self.wait()
        self._manager.close()


def complete_steps(directory: str | Path) -> list[int]:
    """Steps in a folder whose checkpoint is whole (an interrupted one has no metadata of its own)."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir()
                  if path.name.isdigit() and _is_complete(path))


def _is_complete(folder: Path) -> bool:
    return (folder / "_CHECKPOINT_METADATA").exists()


def _cannot_read(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{folder}: this checkpoint cannot be read; remove it to go on from the one before, if there is "
                     f"one ({reason[:160]})")


def load_params(path: str | Path, abstract_params: Any, *, config: dict | None = None) -> Any:
    """The parameters of one checkpoint (a step's folder), without the rest of its state.

    Args:
      path: DIRECTORY/STEP.
      abstract_params: shapes, types and, where wanted, shardings: all hosts then load together; without, each its own.
      config: what the parameters must belong to, as given to `Checkpoints`; None to take any.

    Raises:
      UserError: no such checkpoint, another model's, or a damaged one.
    """
    import orbax.checkpoint as ocp
    path = Path(path).absolute()
    if not _is_complete(path):
        raise UserError(f"{path}: no complete checkpoint there")
    if config is not None:
        _check_config(path, config)
    options: dict = {}
    alone = not any(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(abstract_params))
    if alone and distributed.count() > 1:
        me = jax.process_index()
        options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract_params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here),
        abstract_params)
    try:
        with ocp.StandardCheckpointer(**options) as checkpointer:
            return checkpointer.restore(path / "params", abstract_params)
    except Exception as error:  # orbax raises what its storage layer raises
        raise _cannot_read(path, error) from error


def load_config(path: str | Path) -> dict:
    """The config saved with a checkpoint (a step's folder)."""
    from jaxgpt.core.files import read_json
    return read_json(Path(path) / "config" / "metadata")


def _check_config(folder: Path, config: dict) -> None:
    difference = first_difference(load_config(folder), config)
    if difference:
        raise UserError(f"{folder}: this checkpoint is another model's: {difference}; "
                        "choose another --workdir, or put the setting back")
