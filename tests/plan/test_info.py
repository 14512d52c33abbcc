"""What `jaxgpt info` says, against numbers that others publish or that are counted by hand."""

import pytest

from jaxgpt.cli import main
from jaxgpt.model import presets
from jaxgpt.plan import info

FILE = '''
"""One stage that says what a model is."""
import dataclasses
from jaxgpt.core.experiment import Experiment, Stage
from jaxgpt.model import presets, transformer

@dataclasses.dataclass(frozen=True)
class Train(Stage):
    """Nothing."""
    model: transformer.Config = presets.gpt2()

def get_config():
    return Experiment(name="one", stages=(Train(name="train"),))
'''


def test_llama_by_hand():
    text = "\n".join(info.describe(presets.llama3_1("8B"), length=8192))
    assert "8,030,261,248" in text and "32 x 4096 x 14336" in text
    assert info.cache_bytes(presets.llama3_1("8B")) == 2 * 32 * 8 * 128 * 2 == 131_072
    assert "131,072 bytes a token in bfloat16, 16 GiB for 131,072" in text
    assert f"{6 * (8_030_261_248 - 128_256 * 4096) + 6 * 32 * 4096 * 8192:.4g} to train" in text  # norms count as weights
    assert "fsdp 8 x tensor 8" in text


def test_mixture_by_hand():
    text = "\n".join(info.describe(presets.mixtral("8x7B"), length=4096))
    assert "8 experts of which a token goes to 2, each an mlp of 14336" in text and "32 x 8 x 4096 x 14336" in text
    assert "46,702,792,704" in text and "met by a token" in text and "12,879,925,248" in text
    assert f"{6 * (12_879_925_248 - 32_000 * 4096) + 6 * 32 * 4096 * 4096:.4g} to train" in text


def test_one_device_and_all_rows_are_told():
    rows = list(info.memory_rows(presets.gpt2(), 1024, (1, 8)))
    assert len(rows) == 3 and rows[1].startswith("one device") and rows[2].startswith("fsdp 8")
    whole, eighth = (float(row.split()[-5]) for row in rows[1:])
    assert whole == pytest.approx(8 * eighth, rel=0.02)


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "one.py").write_text(FILE)
    assert main(["info", str(tmp_path / "one.py")]) == 0
    assert "124,439,808" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "one.py"), "--stage", "two"]) == 2
    assert "stage 'two' says what a model is; stages that do: train" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 2
    assert "no stage that trains a model is complete there" in capsys.readouterr().err
