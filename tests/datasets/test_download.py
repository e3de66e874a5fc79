"""Downloads against a server on this machine, and archives that try to do harm."""

import contextlib
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest

from equijax.datasets.catalog import CATALOG, catalog_entry
from equijax.datasets.config import ReadOptions
from equijax.datasets.download import download, download_dataset, unpack
from equijax.errors import EquijaxError

BODY = bytes(range(256)) * 40_000
SHA = "sha256:" + hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == '"v1"':
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("ETag", '"v1"')
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        body = BODY[start:]
        if self.path == "/cut" and not start:
            body = body[: len(body) // 2]
        # A client that has seen enough hangs up.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.requests = []
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        yield httpd
        httpd.shutdown()
        thread.join()


def fetch(server, path, target, **settings):
    options = {"checksum": SHA, "max_bytes": 2 * len(BODY), "allow_loopback_http": True, **settings}
    return download(server.url + path, target, **options)


def test_download_and_keep(server, tmp_path):
    seen = []
    target = fetch(server, "/a", tmp_path / "sub" / "a.bin", progress=lambda n, total: seen.append((n, total)))
    assert target.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [p.name for p in target.parent.iterdir()] == ["a.bin"]
    fetch(server, "/a", target)
    assert len(server.requests) == 1
    target.write_bytes(b"other")
    with pytest.raises(EquijaxError, match="exists and its sha256 is not"):
        fetch(server, "/a", target)


def test_wrong_checksum_is_discarded(server, tmp_path):
    with pytest.raises(EquijaxError, match=r"sha256 is .*; expected 0000.*; the download was discarded"):
        fetch(server, "/a", tmp_path / "a", checksum="sha256:" + "0" * 64)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "a.part").exists()
    md5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
    assert fetch(server, "/a", tmp_path / "a", checksum=f"md5:{md5}").exists()
    with pytest.raises(EquijaxError, match="is not a checksum"):
        fetch(server, "/a", tmp_path / "b", checksum="sha256:12")


def test_interrupted_download_continues(server, tmp_path):
    with pytest.raises(EquijaxError, match=r"the connection ended after .* run again to continue"):
        fetch(server, "/cut", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    half = (tmp_path / "a.part").stat().st_size
    assert 0 < half < len(BODY)
    assert fetch(server, "/cut", tmp_path / "a").read_bytes() == BODY
    assert server.requests[-1] == ("/cut", f"bytes={half}-")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_rest_of_another_file_is_not_appended(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.part.etag").write_text('"v0"')
    assert fetch(server, "/a", tmp_path / "a", checksum=None).read_bytes() == BODY
    (tmp_path / "b.part").write_bytes(b"x" * 1000)
    assert fetch(server, "/a", tmp_path / "b", checksum=None).read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "match"), [("/a", r"10240000 bytes; expected at most"), ("/endless", "more than 1000")]
)
def test_size_limit(server, tmp_path, path, match):
    with pytest.raises(EquijaxError, match=match):
        fetch(server, path, tmp_path / "a", max_bytes=1000)
    assert not (tmp_path / "a").exists()


def test_only_https(server, tmp_path):
    for url in (server.url + "/a", "ftp://127.0.0.1/a", "file:///etc/passwd", "http://example.org/a", "/etc/passwd"):
        with pytest.raises(EquijaxError, match="only https addresses are downloaded"):
            download(url, tmp_path / "a", checksum=None, max_bytes=10)
    for url in ("http://example.org/a", "file:///etc/passwd"):
        with pytest.raises(EquijaxError, match=r"only https addresses are downloaded|is not allowed"):
            fetch(server, f"/redirect?{url}", tmp_path / "a")
    assert fetch(server, f"/redirect?{server.url}/a", tmp_path / "a").read_bytes() == BODY


def test_server_errors_and_nobody_there(server, tmp_path):
    with pytest.raises(EquijaxError, match="the server answers 404"):
        fetch(server, "/missing", tmp_path / "a")
    with pytest.raises(EquijaxError, match="run again to continue"):
        download("http://127.0.0.1:1/a", tmp_path / "a", checksum=None, max_bytes=10, allow_loopback_http=True)
    assert list(tmp_path.iterdir()) == []


def test_offline(server, tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIJAX_OFFLINE", "1")
    with pytest.raises(EquijaxError, match="EQUIJAX_OFFLINE is set"):
        fetch(server, "/a", tmp_path / "a")
    assert not server.requests
    (tmp_path / "a").write_bytes(BODY)
    assert fetch(server, "/a", tmp_path / "a").read_bytes() == BODY


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            item = tarfile.TarInfo(info) if isinstance(info, str) else info
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return path


def link(name, target, kind):
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, target
    return item


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_good_archives(tmp_path, mode):
    archive = make_tar(tmp_path / "a.tar", [("x/a.xyz", b"abc" * 100), ("./b.xyz", b"d")], mode)
    assert sorted(unpack(archive, tmp_path / "out")) == [tmp_path / "out/b.xyz", tmp_path / "out/x/a.xyz"]
    assert (tmp_path / "out/x/a.xyz").read_bytes() == b"abc" * 100
    with pytest.raises(EquijaxError, match="expected a new folder"):
        unpack(archive, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("x/a.xyz", b"abc")
    assert unpack(tmp_path / "a.zip", tmp_path / "zip") == [tmp_path / "zip/x/a.xyz"]


HOSTILE = {
    "parent": [("../../evil", b"x")],
    "absolute": [("/tmp/evil", b"x")],
    "windows": [("..\\evil", b"x")],
    "drive": [("C:evil", b"x")],
    "symlink": [(link("a", "/etc/passwd", tarfile.SYMTYPE), b"")],
    "hardlink": [(link("a", "../../evil", tarfile.LNKTYPE), b"")],
    "device": [(link("a", "", tarfile.CHRTYPE), b"")],
    "through a link": [(link("d", "/tmp", tarfile.SYMTYPE), b""), ("d/evil", b"x")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tar(tmp_path, case):
    archive = make_tar(tmp_path / "a.tar.gz", [("good", b"x"), *HOSTILE[case]])
    with pytest.raises(EquijaxError, match=r"leads out of the archive|is a link or device"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_hostile_zip(tmp_path):
    symlink = zipfile.ZipInfo("a")
    symlink.external_attr = 0o120777 << 16
    for name in ("../../evil", "/evil", symlink):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(name, "/etc/passwd")
        with pytest.raises(EquijaxError, match=r"leads out of the archive|is a link or device"):
            unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_bombs(tmp_path):
    archive = make_tar(tmp_path / "ratio.tar.gz", [("zeros", b"\0" * 2**24)])
    with pytest.raises(EquijaxError, match="it may be a bomb"):
        unpack(archive, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros", b"\0" * 2**24)
    with pytest.raises(EquijaxError, match="it may be a bomb"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    many = make_tar(tmp_path / "many.tar", [(f"f{i}", b"") for i in range(60)], "w")
    with pytest.raises(EquijaxError, match="more than 50 entries"):
        unpack(many, tmp_path / "out", max_entries=50)
    with pytest.raises(EquijaxError, match="it may be a bomb"):
        unpack(make_tar(tmp_path / "big.tar", [("a", b"x" * 5000)], "w"), tmp_path / "out", max_bytes=4000)
    assert not (tmp_path / "out").exists()


def test_broken_archives(tmp_path):
    good = make_tar(tmp_path / "a.tar.gz", [("a", bytes(range(256)) * 400)]).read_bytes()
    for data in (b"", b"not an archive at all" * 50, good[: len(good) // 2]):
        (tmp_path / "b.tar.gz").write_bytes(data)
        with pytest.raises(EquijaxError, match="cannot be unpacked"):
            unpack(tmp_path / "b.tar.gz", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_catalog():
    assert set(CATALOG) == {"3bpa", "acac", "rmd17", "qm9", "spice", "mptrj", "oc20", "qh9"}
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert entry.licence
        assert entry.citation
        assert entry.url is None or entry.url.startswith("https://")
        assert entry.reader in (None, "extxyz", "ase_db", "npz", "hdf5")
        assert entry.reader is not None or entry.note
        # What the catalog says about labels is a valid part of a config.
        ReadOptions.model_validate(entry.options())
        if entry.checksum is not None:
            algorithm, digest = entry.checksum.split(":")
            assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
    with pytest.raises(EquijaxError, match="'rmd18' is not a data set of the catalog; did you mean 'rmd17'"):
        catalog_entry("rmd18")


def test_data_sets_without_an_address(tmp_path):
    with pytest.raises(EquijaxError, match=r"qh9: has no direct address; get it from https://github.com/divelab"):
        download_dataset("qh9", tmp_path)
