"""A file that an experiment names: from the folder of data, from an earlier download, or told that it cannot be had."""

import hashlib

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.curation.remote import RemoteText

TEXT = "to be, or not to be\n"
SOURCE = RemoteText("text/hamlet.txt", url="http://127.0.0.1:9/hamlet.txt",
                    sha256=hashlib.sha256(TEXT.encode()).hexdigest())  # nobody listens on port 9


def texts(source, cache_dir):
    return [item.text for path in source.files(cache_dir) for item in source.read(path)]


@pytest.mark.parametrize("place", ["text/hamlet.txt", "hamlet.txt"])
def test_found_in_the_folder_of_data(tmp_path, monkeypatch, place):
    (tmp_path / "data" / place).parent.mkdir(parents=True)
    (tmp_path / "data" / place).write_text(TEXT)
    monkeypatch.setenv("JAXGPT_DATA", str(tmp_path / "data"))
    assert SOURCE.files(tmp_path / "cache") == [str(tmp_path / "data" / place)]
    assert texts(SOURCE, tmp_path / "cache") == [TEXT]


def test_found_where_it_was_downloaded_before(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXGPT_DATA", raising=False)
    (tmp_path / "hamlet.txt").write_text(TEXT)
    assert texts(SOURCE, tmp_path) == [TEXT]


def test_another_file_of_that_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_DATA", str(tmp_path))
    (tmp_path / "hamlet.txt").write_text("whether 'tis nobler\n")
    with pytest.raises(UserError, match=f"hamlet.txt: its sha256 is .*, expected {SOURCE.sha256}"):
        SOURCE.files(tmp_path)


def test_without_a_network_the_error_says_what_was_wanted(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXGPT_DATA", raising=False)
    with pytest.raises(UserError) as error:
        SOURCE.files(tmp_path)
    for wanted in ("text/hamlet.txt", SOURCE.url, SOURCE.sha256, "JAXGPT_DATA (not set)"):
        assert wanted in str(error.value)
    assert not list(tmp_path.iterdir())


def test_it_is_kept_on_this_machine():
    with pytest.raises(UserError, match="memory://cache must be a folder of it"):
        SOURCE.files("memory://cache")


def test_downloaded_once_from_a_real_server(tmp_path, monkeypatch):
    import functools
    import http.server
    import threading
    monkeypatch.delenv("JAXGPT_DATA", raising=False)
    (tmp_path / "hamlet.txt").write_text(TEXT)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = RemoteText(SOURCE.path, f"http://127.0.0.1:{server.server_port}/hamlet.txt", SOURCE.sha256)
        cache = tmp_path / "cache"
        assert texts(source, cache) == [TEXT]
        wrong = RemoteText("other.txt", f"http://127.0.0.1:{server.server_port}/hamlet.txt", "0" * 64)
        with pytest.raises(UserError, match="another sha256"):
            wrong.files(cache)
        server.shutdown()
    assert texts(source, cache) == [TEXT]  # the server is gone
