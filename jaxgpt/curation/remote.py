"""One text file that an experiment names: from the folder of data, or downloaded once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import sha256, write_bytes
from jaxgpt.curation.document import Document
from jaxgpt.curation.files import is_remote
from jaxgpt.curation.sources import TextFiles


@dataclasses.dataclass(frozen=True)
class RemoteText:
    """A text file by address and hash.

    It is looked for in the folder that the environment variable JAXGPT_DATA names, by its path and by its name alone,
    and downloaded where it is not there.

    Attributes:
      path: inside the folder of data, such as "text/tinyshakespeare.txt".
      url: where it comes from otherwise.
      sha256: of its content.
    """

    path: str
    url: str
    sha256: str

    def files(self, cache_dir: str | os.PathLike) -> list[str]:
        """The file, where it was found or is now.

        Raises:
          UserError: it is neither there nor to be had, or is another file than the hash says.
        """
        if is_remote(str(cache_dir)):
            raise UserError(f"{self.path}: is downloaded to this machine; {cache_dir} must be a folder of it")
        return [str(self._find(Path(cache_dir)))]

    def read(self, path: str) -> Iterator[Document]:
        """Yields the file as one document."""
        yield from TextFiles(path).read(path)

    def _find(self, cache: Path) -> Path:
        folder = os.environ.get("JAXGPT_DATA")
        places = [Path(folder) / self.path, Path(folder) / Path(self.path).name] if folder else []
        for place in [*places, cache / Path(self.path).name]:
            if place.is_file():
                if sha256(place) != self.sha256:
                    raise UserError(f"{place}: its sha256 is {sha256(place)}, expected {self.sha256}; remove it, or "
                                    f"put the file from {self.url} there")
                return place
        return self._download(cache / Path(self.path).name)

    def _download(self, target: Path) -> Path:
        wanted = f"{self.path} ({self.url}, sha256 {self.sha256})"
        try:
            with urllib.request.urlopen(self.url, timeout=60) as response:
                data = response.read()
        except (urllib.error.URLError, OSError) as error:
            folder = os.environ.get("JAXGPT_DATA", "not set")
            raise UserError(f"{wanted}: not found in JAXGPT_DATA ({folder}) and cannot be downloaded "
                            f"({getattr(error, 'reason', error)}); set JAXGPT_DATA to a folder that has it") from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{wanted}: what the address gives has another sha256; put the right file into JAXGPT_DATA")
        return write_bytes(target, data)
