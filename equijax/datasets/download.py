"""Downloads and archives: https only, checked, bounded, resumable, and never half there.

Nothing that was downloaded is executed, and nothing is unpacked outside the folder it is meant for.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from equijax.datasets.catalog import catalog_entry
from equijax.errors import EquijaxError

CHUNK = 1 << 20
MAX_ENTRIES = 100_000
"""Largest number of entries of an archive."""
MAX_UNPACKED = 100 * 2**30
"""Largest size of an unpacked archive, bytes."""
MAX_RATIO = 200
"""Largest ratio of unpacked to packed size; text compresses about tenfold, a bomb a thousandfold."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far and the total, if the server says it."""


def offline() -> bool:
    """Whether the environment variable EQUIJAX_OFFLINE forbids downloads."""
    return os.environ.get("EQUIJAX_OFFLINE", "").lower() not in ("", "0", "false")


def download_dataset(name: str, folder: str | Path, *, progress: Progress | None = None) -> Path:
    """Download a data set of the catalog into `folder` and return the file, which is not unpacked.

    A file that is there already is checked and kept. Raises EquijaxError.
    """
    entry = catalog_entry(name)
    if entry.url is None:
        raise EquijaxError(f"{name}: has no direct address; get it from {entry.homepage} ({entry.note})")
    suffix = PurePosixPath(urlsplit(entry.url).path).name
    target = Path(folder) / (suffix if "." in suffix else f"{name}.download")
    return download(entry.url, target, checksum=entry.checksum, max_bytes=entry.max_bytes, progress=progress)


def download(
    url: str,
    target: str | Path,
    *,
    checksum: str | None,
    max_bytes: int,
    allow_loopback_http: bool = False,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch `url` to `target` and return it.

    Bytes go to `target` + ".part", from where an interrupted download continues when the server can; the file
    appears under its name only after its length and `checksum` ("sha256:..." or "md5:...") have been verified. A
    `target` that exists is kept when the checksum agrees and refused when it does not. Only https is followed, also
    after redirects; `allow_loopback_http` admits plain http to this machine, for tests. Raises EquijaxError.
    """
    target = Path(target)
    algorithm, expected = _parse_checksum(checksum)
    if target.exists():
        if expected is not None and _digest(target, algorithm) != expected:
            raise EquijaxError(
                f"{target}: exists and its {algorithm} is not {expected}; move it away to download again"
            )
        return target
    _check_url(url, allow_loopback_http)
    if offline():
        raise EquijaxError(f"{url}: EQUIJAX_OFFLINE is set, and {target} is not there")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _fetch(url, part, max_bytes, allow_loopback_http, progress, timeout)
    if expected is not None:
        found = _digest(part, algorithm)
        if found != expected:
            part.unlink()
            raise EquijaxError(f"{url}: {algorithm} is {found}; expected {expected}; the download was discarded")
    with open(part, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, target)
    part.with_name(part.name + ".etag").unlink(missing_ok=True)
    return target


def _fetch(
    url: str, part: Path, max_bytes: int, allow_loopback_http: bool, progress: Progress | None, timeout: float
) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "equijax", "Accept-Encoding": "identity"}
    # The tag of the first answer makes the server send the rest only if the file there is still the same.
    tag = part.with_name(part.name + ".etag")
    if start and tag.exists():
        headers |= {"Range": f"bytes={start}-", "If-Range": tag.read_text()}
    opener = urllib.request.build_opener(_CheckedRedirects(allow_loopback_http))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                start = 0  # The server sends the whole file.
                tag.unlink(missing_ok=True)
                if (etag := response.headers.get("ETag", "")).startswith('"'):
                    tag.write_text(etag)
            length = response.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            if total is not None and total > max_bytes:
                raise EquijaxError(f"{url}: {total} bytes; expected at most {max_bytes}")
            _copy(response, part, start, total, max_bytes, url, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:  # Everything had arrived before: the checksum decides.
            return
        raise EquijaxError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise EquijaxError(f"{url}: {reason}; {part} keeps what has arrived, run again to continue") from None


def _copy(
    response: Any, part: Path, start: int, total: int | None, max_bytes: int, url: str, progress: Progress | None
) -> None:
    received = start
    with open(part, "ab" if start else "wb") as stream:
        while chunk := response.read(CHUNK):
            received += len(chunk)
            if received > max_bytes:
                raise EquijaxError(f"{url}: more than {max_bytes} bytes")
            stream.write(chunk)
            if progress is not None:
                progress(received, total)
    if total is not None and received < total:
        raise ConnectionError(f"the connection ended after {received} of {total} bytes")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects to anything that would not have been allowed in the first place."""

    def __init__(self, allow_loopback_http: bool) -> None:
        self.allow_loopback_http = allow_loopback_http

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_url(newurl, self.allow_loopback_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str, allow_loopback_http: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if allow_loopback_http and parts.scheme == "http" and parts.hostname in LOOPBACK:
        return
    raise EquijaxError(f"{url}: only https addresses are downloaded")


def _parse_checksum(checksum: str | None) -> tuple[str, str | None]:
    if checksum is None:
        return "sha256", None
    algorithm, _, digest = checksum.partition(":")
    lengths = {"sha256": 64, "md5": 32}
    if len(digest) != lengths.get(algorithm) or set(digest.lower()) - set("0123456789abcdef"):
        raise EquijaxError(f"'{checksum}' is not a checksum; expected sha256:... or md5:...")
    return algorithm, digest.lower()


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    max_bytes: int = MAX_UNPACKED,
    max_entries: int = MAX_ENTRIES,
    max_ratio: float = MAX_RATIO,
) -> list[Path]:
    """Unpack a tar (also gz, bz2, xz) or zip archive into a new `folder`; the files it now holds.

    Absolute paths, `..`, links, devices, too many entries, too many bytes and absurd compression are refused before
    or while writing, and then `folder` does not exist. Raises EquijaxError.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise EquijaxError(f"{folder}: exists; expected a new folder to unpack {archive.name} into")
    if not archive.is_file():
        raise EquijaxError(f"{archive}: no such file")
    limit = int(min(max_bytes, max(max_ratio * archive.stat().st_size, 2**20)))
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    partial.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            names = _unpack_zip(archive, partial, limit, max_entries)
        else:
            names = _unpack_tar(archive, partial, limit, max_entries)
        os.replace(partial, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise EquijaxError(f"{archive}: cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [folder / name for name in names]


def _unpack_tar(archive: Path, folder: Path, limit: int, max_entries: int) -> list[str]:
    names: list[str] = []
    written = 0
    with tarfile.open(archive, "r:*") as tar:
        for count, member in enumerate(tar, start=1):
            _check_count(archive, count, max_entries)
            name = _safe_name(archive, member.name)
            if member.isdir():
                (folder / name).mkdir(parents=True, exist_ok=True)
                continue
            if not member.isreg():
                raise EquijaxError(f"{archive}: '{member.name}' is a link or device; expected plain files")
            source = tar.extractfile(member)
            if source is None:
                raise EquijaxError(f"{archive}: '{member.name}' cannot be read")
            written += _write(archive, source, folder / name, limit - written)
            names.append(name)
    return names


def _unpack_zip(archive: Path, folder: Path, limit: int, max_entries: int) -> list[str]:
    names: list[str] = []
    written = 0
    with zipfile.ZipFile(archive) as zipped:
        members = zipped.infolist()
        _check_count(archive, len(members), max_entries)
        for member in members:
            name = _safe_name(archive, member.filename)
            mode = member.external_attr >> 16
            if member.is_dir():
                (folder / name).mkdir(parents=True, exist_ok=True)
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise EquijaxError(f"{archive}: '{member.filename}' is a link or device; expected plain files")
            with zipped.open(member) as source:
                written += _write(archive, source, folder / name, limit - written)
            names.append(name)
    return names


def _check_count(archive: Path, count: int, max_entries: int) -> None:
    if count > max_entries:
        raise EquijaxError(f"{archive}: more than {max_entries} entries")


def _safe_name(archive: Path, name: str) -> str:
    """The name with forward slashes, when it stays inside the folder and is one that every system can hold."""
    path = PurePosixPath(name.replace("\\", "/"))
    parts = [part for part in path.parts if part != "."]
    if path.is_absolute() or ".." in parts or ":" in name or "\0" in name or len(name) > 1000:
        raise EquijaxError(f"{archive}: the entry '{name[:80]}' leads out of the archive")
    return "/".join(parts)


def _write(archive: Path, source: IO[bytes], target: Path, limit: int) -> int:
    """Copy a member, counting what really comes out: sizes declared in an archive may lie."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with open(target, "xb") as stream:
        for chunk in _chunks(source):
            written += len(chunk)
            if written > limit:
                raise EquijaxError(f"{archive}: unpacks to more than is allowed for its size; it may be a bomb")
            stream.write(chunk)
    return written


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk
