import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.tools.choose import choose


def test_tools_by_name(tmp_path):
    (tmp_path / "a.txt").write_text("Otters swim.")
    found = choose(f"calculator, search:{tmp_path}")
    assert found["calculator"]("6*7") == "42" and "Otters swim." in found["search"]("otter")
    assert choose("") == {}


@pytest.mark.parametrize("text", ["abacus", "search", "calculator:x", "python:3"])
def test_unknown_tools_are_refused_with_those_there_are(text):
    with pytest.raises(UserError, match=f"tools: {text}: no such tool; there are calculator, python, search:FOLDER"):
        choose(text)
