"""The embedded default corpus: a small web that is on every machine which can run jaxgpt.

Three kinds of pages: those that `pydoc` renders for the standard library, the topics of the language reference that
come with it, and the docstrings of the packages jaxgpt stands on. About 9 MB of English that explains Python and arrays
once repeats are dropped, under the licences of Python and of those packages; it is read where it is and never copied
into the project. The pages are written as WARC files, so that they go the way that pages of the web go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import write_json
from jaxgpt.curation.document import Document, Drop, document
from jaxgpt.curation.files import is_remote
from jaxgpt.curation.warc import Warc, write_warc

# Modules that import quietly on every system: no window, no test suite, nothing that later Pythons have removed.
MODULES = tuple("""
    abc argparse array ast asyncio asyncio.base_events asyncio.events asyncio.futures asyncio.locks
    asyncio.queues asyncio.runners asyncio.streams asyncio.subprocess asyncio.taskgroups asyncio.tasks
    asyncio.timeouts asyncio.transports atexit base64 bdb binascii bisect builtins bz2 cProfile calendar
    cmath cmd code codecs codeop collections collections.abc colorsys compileall concurrent.futures
    concurrent.futures.process concurrent.futures.thread configparser contextlib contextvars copy copyreg
    csv ctypes ctypes.util curses curses.ascii curses.textpad dataclasses datetime dbm dbm.dumb decimal
    difflib dis doctest email email.charset email.contentmanager email.encoders email.errors email.generator
    email.header email.headerregistry email.message email.mime.text email.parser email.policy email.utils
    encodings encodings.aliases encodings.idna ensurepip enum errno faulthandler fcntl filecmp fileinput
    fnmatch fractions ftplib functools gc genericpath getopt getpass gettext glob graphlib grp gzip hashlib
    heapq hmac html html.entities html.parser http http.client http.cookiejar http.cookies http.server
    imaplib importlib importlib.abc importlib.machinery importlib.metadata importlib.resources
    importlib.util inspect io ipaddress itertools json json.decoder json.encoder json.scanner json.tool
    keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes
    mmap modulefinder multiprocessing multiprocessing.connection multiprocessing.context
    multiprocessing.managers multiprocessing.pool multiprocessing.queues multiprocessing.shared_memory netrc
    ntpath numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib
    poplib posixpath pprint profile pstats pty pwd py_compile pyclbr pydoc queue quopri random re reprlib
    resource rlcompleter runpy sched secrets select selectors shelve shlex shutil signal site smtplib socket
    socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sys sysconfig
    syslog tabnanny tarfile tempfile termios textwrap threading time timeit token tokenize tomllib trace
    traceback tracemalloc tty types typing unicodedata unittest unittest.async_case unittest.case
    unittest.loader unittest.main unittest.mock unittest.runner unittest.suite urllib urllib.error
    urllib.parse urllib.request urllib.response urllib.robotparser uuid venv warnings wave weakref
    webbrowser wsgiref wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.util wsgiref.validate
    xml.dom xml.dom.minidom xml.dom.pulldom xml.etree.ElementTree xml.parsers.expat xml.sax xml.sax.handler
    xml.sax.saxutils xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
""".split())
PACKAGES = (
    "jax", "flax", "optax", "orbax", "numpy", "tiktoken", "grain", "tensorflow_datasets", "array_record", "etils",
    "absl")
FILES = 8  # so many workers can share the pages
DATE = "2000-01-01T00:00:00Z"  # the same bytes on every day
FORBIDDEN = ("__main__", "antigravity", "idlelib", "test", "this", "tkinter", "turtle", "turtledemo")


@dataclasses.dataclass(frozen=True)
class PythonDocs:
    """Python's documentation as it lies on this machine.

    Attributes:
      modules: standard-library modules whose pydoc pages to take; None for the list in this file.
      packages: installed packages whose docstrings to take, read without importing them.
      topics: whether to take the language reference.
      max_megabytes: when there is more text than this, an even thinning by hash keeps about that much.
    """

    modules: tuple[str, ...] | None = None
    packages: tuple[str, ...] = PACKAGES
    topics: bool = True
    max_megabytes: float = 16.0

    def __post_init__(self):
        if self.max_megabytes <= 0:
            raise ValueError(f"max_megabytes: must be above 0, not {self.max_megabytes}")
        for name in self.modules or ():
            if name.split(".")[0] in FORBIDDEN:
                raise ValueError(f"modules: importing '{name}' has side effects; leave it out")

    def files(self, cache_dir: str | os.PathLike) -> list[str]:
        """Renders the pages and writes them into `cache_dir`: WARC files, and skipped.json for what could not be had.

        Raises:
          UserError: the rendering fails, or the folder is not of this machine.
        """
        if is_remote(str(cache_dir)):
            raise UserError(f"PythonDocs: its pages are made on this machine; {cache_dir} must be a folder of it")
        folder, pages, skipped = Path(cache_dir), [], {}
        for record in self._render(folder):
            if record["kind"] == "skipped":
                skipped[record["name"]] = record["reason"]
            else:
                url = address(record["kind"], record["name"])
                pages.append(document(record["html"], source_of(url), url=url, date=DATE, media_type="text/html"))
        write_json(folder / "skipped.json", skipped)
        shares: dict[int, list[Document]] = {}
        for page in thin(pages, int(self.max_megabytes * 1e6)):
            shares.setdefault(hashlib.sha256(page.url.encode()).digest()[0] % FILES, []).append(page)
        for old in folder.glob("python-*.warc.gz"):
            old.unlink()
        for number, share in sorted(shares.items()):
            write_warc(folder / f"python-{number}.warc.gz", share)
        return [str(folder / f"python-{number}.warc.gz") for number in sorted(shares)]

    def read(self, path: str) -> Iterator[Document | Drop]:
        """Yields the pages of one of the files."""
        for item in Warc(path).read(path):
            yield item if isinstance(item, Drop) else dataclasses.replace(item, source=source_of(item.url))

    def _render(self, folder: Path) -> Iterator[dict]:
        """Runs _render.py in a fresh interpreter with an empty environment and reads what it wrote."""
        folder.mkdir(parents=True, exist_ok=True)
        request, partial = folder / "request.json", folder / ".pages.jsonl.partial"
        modules = MODULES if self.modules is None else self.modules
        write_json(request, {"modules": modules, "packages": self.packages, "topics": self.topics})
        # A fixed hash seed (which -I would ignore) and -P instead of -I: sets print in one order, and this folder's
        # file names shadow no module.
        program = Path(__file__).with_name("_render.py")
        command = [sys.executable, "-s", "-P", "-B", str(program), str(request), str(partial)]
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "TERM": "dumb", "HOME": "/"}
        if "LD_LIBRARY_PATH" in os.environ:  # some interpreters do not start without it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        try:
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=900)
        except subprocess.TimeoutExpired as error:
            raise UserError("PythonDocs: rendering the pages took more than 15 minutes") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"PythonDocs: rendering the pages failed with status {done.returncode}: {last}")
        with open(partial, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
        partial.unlink()


def address(kind: str, name: str) -> str:
    """The address of a page, on a host that cannot be (RFC 6761).

    >>> address("pydoc", "json"), address("docstrings", "numpy.linalg")
    ('https://python.invalid/pydoc/json.html', 'https://numpy.invalid/docstrings/numpy.linalg.html')
    """
    host = name.split(".")[0] if kind == "docstrings" else "python"
    return f"https://{host}.invalid/{kind}/{quote(name)}.html"


def source_of(url: str) -> str:
    """What a page is counted under, by its address.

    >>> source_of("https://numpy.invalid/docstrings/numpy.linalg.html")
    'numpy/docstrings'
    """
    parts = urlsplit(url)
    return f"{parts.netloc.removesuffix('.invalid')}/{parts.path.split('/')[1]}"


def thin(documents: list[Document], max_bytes: int) -> list[Document]:
    """Keeps documents in the order of a hash of their ids until `max_bytes` are reached, then puts them back in order.

    Tags of HTML do not count.

    >>> [d.text for d in thin([document("aaaa", "s"), document("bb", "s"), document("cc", "s")], max_bytes=4)]
    ['bb', 'cc']
    """
    kept, total = set(), 0
    for item in sorted(documents, key=lambda item: hashlib.sha256(b"thin" + item.id.encode()).digest()):
        size = len(re.sub(r"<[^<>]*>", "", item.text).encode("utf-8"))
        if total + size <= max_bytes:
            kept.add(item.id)
            total += size
    return [item for item in documents if item.id in kept]
