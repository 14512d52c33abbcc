"""libtpu where no TPU is: it holds the TPU's compiler, which `jaxgpt plan` asks, and need not look for devices."""

from __future__ import annotations

import os


def quiet_without_tpu() -> None:
    """Tells libtpu, before JAX loads it, what it would otherwise ask the network for, complaining at length."""
    if any(os.path.exists(f"/dev/{name}") for name in ("accel0", "vfio/0")):
        return
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_ID": "0",
                        "TPU_WORKER_HOSTNAMES": "localhost",
                        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():  # the last: several plans at once
        os.environ.setdefault(name, value)
