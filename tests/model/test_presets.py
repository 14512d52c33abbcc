"""The families: each size has the parameters that its authors publish, and the features that make the family."""

import pytest

from jaxgpt.core.config import from_json, to_json
from jaxgpt.model import presets, transformer

PUBLISHED = {  # each tensor counted once: a head that is the embedding does not count again
    presets.gpt2: {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200},
    presets.llama2: {"7B": 6_738_415_616, "13B": 13_015_864_320, "70B": 68_976_648_192},
    presets.llama3: {"8B": 8_030_261_248, "70B": 70_553_706_496},
    presets.llama3_1: {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800},
    presets.llama3_2: {"1B": 1_235_814_400, "3B": 3_212_749_824},
    presets.llama3_3: {"70B": 70_553_706_496},
    presets.mistral: {"7B": 7_241_732_096},
    presets.qwen2_5: {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "3B": 3_085_938_688, "7B": 7_615_616_512,
                      "14B": 14_770_033_664, "32B": 32_763_876_352, "72B": 72_706_203_648},
    presets.qwen3: {"0.6B": 596_049_920, "1.7B": 1_720_574_976, "4B": 4_022_468_096, "8B": 8_190_735_360,
                    "14B": 14_768_307_200, "32B": 32_762_123_264},
    presets.mixtral: {"8x7B": 46_702_792_704, "8x22B": 140_620_634_112},
    presets.qwen3_moe: {"30B-A3B": 30_532_122_624, "235B-A22B": 235_093_634_560},
}
CASES = [(family, size, count) for family, sizes in PUBLISHED.items() for size, count in sizes.items()]


@pytest.mark.parametrize("family, size, expected", CASES, ids=[f"{f.__name__}-{s}" for f, s, _ in CASES])
def test_presets_have_the_published_parameters(family, size, expected):
    config = family(size)
    assert transformer.count_params(config) == expected
    assert from_json(transformer.Config, to_json(config)) == config


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_size_that_does_not_exist_is_refused_with_those_that_do(family):
    with pytest.raises(ValueError, match=f"{family.__name__}\\('9T'\\): no such size; valid: .*{list(PUBLISHED[family])[-1]}"):
        family("9T")


@pytest.mark.parametrize("config, expected", [  # published as 12.9, 39, 3.3 and 22 billion
    (presets.mixtral("8x7B"), 12_879_925_248), (presets.mixtral("8x22B"), 39_152_031_744),
    (presets.qwen3_moe("30B-A3B"), 3_353_032_704), (presets.qwen3_moe("235B-A22B"), 22_190_763_520)])
def test_a_token_of_a_mixture_meets_the_published_parameters(config, expected):
    assert transformer.count_params(config, active=True) == expected


def test_what_makes_a_family():
    assert presets.llama3_1().rope_scaling.factor == 8 and presets.llama3_2().rope_scaling.factor == 32
    assert presets.llama3_2("3B").tied and not presets.llama3_1("8B").tied
    assert presets.mistral().windows == (4096,)
    assert presets.qwen3("32B").H * presets.qwen3("32B").heads != presets.qwen3("32B").width
    assert presets.qwen3().qk_norm and presets.qwen2_5().qkv_bias
