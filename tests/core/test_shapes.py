import numpy as np
import pytest

from jaxgpt.core.shapes import check


def test_returns_the_size_of_each_name():
    assert check({"B T": {"tokens": np.zeros((2, 3))}, "B": {"lengths": np.zeros(2)}}) == {"B": 2, "T": 3}


def test_names_the_argument_that_disagrees():
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\), expected B T with B=2, T=3"):
        check("B T", tokens=np.zeros((2, 3)), mask=np.zeros((2, 4)))


@pytest.mark.parametrize("spec, shape", [("B T", (2,)), ("B 3", (2, 4)), ("... D E", (4,))])
def test_refuses(spec, shape):
    with pytest.raises(ValueError, match="x has shape"):
        check(spec, x=np.zeros(shape))


def test_wildcards():
    assert check("... D", x=np.zeros((5, 6, 7))) == {"D": 7}
    assert check("_ T", x=np.zeros((1, 3)), y=np.zeros((9, 3))) == {"T": 3}
