"""Downloads from a server on this machine: resumed, checked, unpacked safely, and never there by halves."""

import errno
import hashlib
import io
import stat
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SCENE = {
    "garden/images/a.jpg": bytes(range(256)) * 4000,
    "garden/sparse/0/cameras.bin": b"cameras",
    "bicycle/b.txt": b"b",
}


def packed(files, links=()):
    """A zip, uncompressed so that its length is that of what is in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return buffer.getvalue()


@dataclass
class Host:
    """What the server has, how it behaves, and the ranges it was asked for."""

    files: dict = field(default_factory=dict)
    ranges: bool = True
    etag: str = '"one"'
    cut_after: list = field(default_factory=list)  # for each answer in turn: bytes after which the connection is closed
    codes: list = field(default_factory=list)  # for each answer in turn: an error instead
    asked: list = field(default_factory=list)
    url: str = ""


@pytest.fixture
def host():
    state = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.headers.get("Range"))
            content = state.files.get(self.path)
            if state.codes:
                return self.send_error(state.codes.pop(0))
            if content is None:
                return self.send_error(404)
            first = 0
            wanted, unchanged = self.headers.get("Range"), self.headers.get("If-Range", state.etag) == state.etag
            if state.ranges and wanted and unchanged:
                first = int(wanted.removeprefix("bytes=").rstrip("-"))
                if first >= len(content):
                    return self.send_error(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            body = content[first:]
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(download, host, tmp_path, monkeypatch):
    """Runs the program on a set of one archive, `scenes.zip`; its status."""
    monkeypatch.setattr(download, "WAIT", 0.0)

    def run(*flags, content=None, accept=True, **archive):
        if content is not None:
            host.files["/scenes.zip"] = content
        one = download.Archive(**{"url": f"{host.url}/scenes.zip", "into": "set"} | archive)
        sets = {"set": download.DataSet(title="A set", terms="Only for tests", archives=(one,))}
        return download.main(["set", "--to", str(tmp_path), *(["--accept"] if accept else []), *flags], sets)

    return run


def tree(folder):
    """Files below a folder that a user sees, with their content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".downloads" not in path.relative_to(folder).parts
    }


def scenes(files=SCENE):
    return {f"set/{name}": content for name, content in files.items()}


def the_error(capsys):
    """The one line that the program ends with."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("download: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_set_is_fetched_and_unpacked(fetch, tmp_path):
    assert fetch(content=packed(SCENE)) == 0
    assert tree(tmp_path) == scenes()


def test_the_archive_goes_and_its_record_stays(fetch, tmp_path):
    fetch(content=packed(SCENE))
    assert {path.name for path in (tmp_path / ".downloads").iterdir()} == {"scenes.zip.json", "scenes.zip.lock"}


def test_the_archive_is_kept_if_asked(fetch, tmp_path):
    content = packed(SCENE)
    fetch("--keep", content=content)
    assert (tmp_path / "scenes.zip").read_bytes() == content


def test_what_is_there_is_not_fetched_again(fetch, host):
    fetch(content=packed(SCENE))
    assert fetch() == 0
    assert len(host.asked) == 1


def test_nothing_is_fetched_before_the_terms_are_accepted(fetch, host, tmp_path, capsys):
    assert fetch(content=packed(SCENE), accept=False) == 2
    error = capsys.readouterr().err
    assert "Only for tests" in error and "--accept" in error
    assert host.asked == [] and tree(tmp_path) == {}


def test_a_connection_that_is_cut_off_is_taken_up_where_it_broke(fetch, host, tmp_path):
    host.cut_after = [300_000, 200_000]
    assert fetch(content=packed(SCENE)) == 0
    assert host.asked == [None, "bytes=300000-", "bytes=500000-"]
    assert tree(tmp_path) == scenes()


def test_the_next_call_goes_on_where_the_last_one_stopped(fetch, host, tmp_path, capsys):
    host.cut_after = [400_000, 0, 0, 0, 0, 0]
    assert fetch(content=packed(SCENE)) == 2
    assert "cut off after 400,000 bytes" in the_error(capsys)
    assert tree(tmp_path) == {}
    host.cut_after = []
    assert fetch() == 0
    assert host.asked[-1] == "bytes=400000-"
    assert tree(tmp_path) == scenes()


def test_a_server_without_ranges_is_read_from_the_start(fetch, host, tmp_path):
    host.ranges, host.cut_after = False, [300_000]
    assert fetch(content=packed(SCENE)) == 0
    assert tree(tmp_path) == scenes()


def test_a_file_that_changed_on_the_server_is_not_glued_to_the_old_one(fetch, host, tmp_path):
    host.cut_after = [300_000, 0, 0, 0, 0, 0]
    fetch(content=packed(SCENE))
    host.cut_after, host.etag = [], '"two"'
    other = {"garden/new.jpg": bytes(reversed(range(256))) * 4000}
    assert fetch(content=packed(other)) == 0
    assert tree(tmp_path) == scenes(other)


def test_a_file_that_shrank_on_the_server_is_read_anew(fetch, host, tmp_path):
    host.etag, host.cut_after = '"same"', [1_000_000, 0, 0, 0, 0, 0]
    fetch(content=packed(SCENE))
    host.cut_after = []
    small = {"garden/new.jpg": b"new"}
    assert fetch(content=packed(small)) == 0
    assert tree(tmp_path) == scenes(small)


def test_a_busy_server_is_asked_again(fetch, host, tmp_path):
    host.codes = [503, 429]
    assert fetch(content=packed(SCENE)) == 0
    assert len(host.asked) == 3


@pytest.mark.parametrize(("code", "phrase"), [(404, "404 Not Found"), (403, "403 Forbidden"), (410, "410 Gone")])
def test_a_file_that_is_not_to_be_had_is_one_line(fetch, host, tmp_path, capsys, code, phrase):
    host.codes = [code]
    assert fetch(content=packed(SCENE)) == 2
    assert phrase in the_error(capsys)
    assert len(host.asked) == 1 and tree(tmp_path) == {}


def test_a_server_that_is_not_there_is_one_line(fetch, tmp_path, capsys):
    # Port 1 of this machine: nobody listens, so the connection is refused at once.
    assert fetch(url="http://127.0.0.1:1/scenes.zip") == 2
    assert "127.0.0.1:1 cannot be reached (Connection refused): is this machine online?" in the_error(capsys)


@pytest.mark.parametrize("known", ["in the list", "by --sha256"])
def test_a_wrong_checksum_removes_the_file_and_unpacks_nothing(fetch, tmp_path, capsys, known):
    content, wrong = packed(SCENE), "0" * 64
    status = (
        fetch(content=content, sha256=wrong) if known == "in the list" else fetch("--sha256", wrong, content=content)
    )
    assert status == 2
    error = the_error(capsys)
    assert hashlib.sha256(content).hexdigest() in error and wrong in error
    assert tree(tmp_path) == {} and not (tmp_path / ".downloads" / "scenes.zip.part").exists()


def test_a_right_checksum_lets_it_through(fetch, tmp_path):
    content = packed(SCENE)
    assert fetch("--sha256", f"scenes.zip={hashlib.sha256(content).hexdigest().upper()}", content=content) == 0


def test_where_no_checksum_is_known_the_one_that_came_is_told(fetch, capsys):
    content = packed(SCENE)
    fetch(content=content)
    assert (
        f"no checksum is publicly known; its SHA-256 is {hashlib.sha256(content).hexdigest()}"
        in capsys.readouterr().err
    )


def test_a_file_of_another_size_than_the_known_one_is_refused_before_it_is_read(fetch, tmp_path, capsys):
    assert fetch(content=packed(SCENE), size=12_345) == 2
    assert "12,345 are known of it" in the_error(capsys)
    assert tree(tmp_path) == {} and not (tmp_path / ".downloads" / "scenes.zip.part").exists()


def test_a_page_to_click_on_is_no_data_set(fetch, tmp_path, capsys):
    assert fetch(content=b"<!DOCTYPE html><title>Please confirm</title>") == 2
    assert "is no zip, but begins with b'<!DOCTYPE html>" in the_error(capsys)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("files", "links", "why"),
    [
        ({"../evil.txt": b"x"}, [], "would leave its folder"),
        ({"garden/../../evil.txt": b"x"}, [], "would leave its folder"),
        ({"/tmp/evil.txt": b"x"}, [], "would leave its folder"),
        ({"C:/evil.txt": b"x"}, [], "would leave its folder"),
        ({"..\\evil.txt": b"x"}, [], "would leave its folder"),
        ({"garden/a.txt": b"x"}, [("garden/out", "/etc")], "is a link"),
        ({"garden": b"x", "garden/a.txt": b"x"}, [], "both a file and a folder"),
    ],
)
def test_an_archive_that_would_write_elsewhere_is_refused_whole(fetch, tmp_path, capsys, files, links, why):
    before = set(tmp_path.parent.iterdir())
    assert fetch(content=packed({"fine.txt": b"fine"} | files, links)) == 2
    assert why in the_error(capsys)
    assert tree(tmp_path) == {} and set(tmp_path.parent.iterdir()) == before


def test_the_same_name_twice_is_refused(fetch, tmp_path, capsys):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", b"two")
    assert fetch(content=buffer.getvalue()) == 2
    assert "has 'a.txt' twice" in the_error(capsys)


def test_a_bomb_is_refused(fetch, tmp_path, capsys):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(20_000_000))
    assert fetch(content=buffer.getvalue()) == 2
    assert "would unpack to 20,000,000" in the_error(capsys)
    assert tree(tmp_path) == {}


def test_a_broken_zip_is_removed(fetch, tmp_path, capsys):
    content = bytearray(packed(SCENE))
    content[1000] ^= 1  # within the first picture, whose CRC tells
    assert fetch(content=bytes(content)) == 2
    assert "is a broken zip (Bad CRC-32" in the_error(capsys)
    assert tree(tmp_path) == {}
    assert fetch(content=packed(SCENE)) == 0


def test_what_somebody_else_put_there_stays(fetch, tmp_path, capsys):
    (tmp_path / "set" / "garden").mkdir(parents=True)
    (tmp_path / "set" / "garden" / "mine.txt").write_bytes(b"mine")
    assert fetch(content=packed(SCENE)) == 2
    assert "is already there, and not from here" in the_error(capsys)
    assert tree(tmp_path) == {"set/garden/mine.txt": b"mine"}


def test_an_outer_folder_is_left_out_and_so_is_what_macos_adds(fetch, tmp_path):
    content = packed(
        {f"data/{name}": value for name, value in SCENE.items()} | {"__MACOSX/._a": b"", "data/.DS_Store": b""}
    )
    assert fetch(content=content, top="data") == 0
    assert tree(tmp_path) == scenes()


def test_an_archive_without_its_folder_is_refused(fetch, capsys):
    assert fetch(content=packed(SCENE), top="data") == 2
    assert "holds no data" in the_error(capsys)


@pytest.mark.parametrize("crash", ["unpacking", "moving"])
def test_a_crash_leaves_nothing_half_there_that_the_next_call_does_not_finish(
    fetch, host, download, tmp_path, monkeypatch, crash
):
    name = {"unpacking": "_unpack_one", "moving": "move"}[crash]
    real = getattr(download, name)
    with monkeypatch.context() as patch:
        patch.setattr(download, name, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert fetch(content=packed(SCENE)) == 130
    assert tree(tmp_path) == {} and real is getattr(download, name)
    assert fetch() == 0
    assert tree(tmp_path) == scenes() and len(host.asked) == 1


def test_a_crash_between_two_moves_is_finished_by_the_next_call(fetch, host, download, tmp_path, monkeypatch):
    moved = []
    real = download.os.rename

    def rename(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "rename", rename)
        assert fetch(content=packed(SCENE)) == 130
    assert len(moved) == 1
    assert fetch() == 0
    assert tree(tmp_path) == scenes()


def test_a_full_disk_is_one_line_and_what_came_is_kept(fetch, host, download, tmp_path, monkeypatch, capsys):
    class Full(io.FileIO):
        def write(self, chunk):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = type(tmp_path).open
    with monkeypatch.context() as patch:
        patch.setattr(
            type(tmp_path),
            "open",
            lambda path, mode="r", *rest, **more: (
                Full(path, mode) if mode in ("wb", "ab") else real(path, mode, *rest, **more)
            ),
        )
        assert fetch(content=packed(SCENE)) == 2
    assert "is full; make room" in the_error(capsys)
    assert fetch() == 0


def test_too_small_a_disk_is_told_before_the_download(fetch, download, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    assert fetch(content=packed(SCENE)) == 2
    assert "but 1,000 are free" in the_error(capsys)


def test_two_downloads_of_one_archive_do_not_mix(fetch, download, tmp_path, capsys):
    with download.Place(tmp_path, "scenes.zip").mine():
        assert fetch(content=packed(SCENE)) == 2
    assert "another download of it" in the_error(capsys)


def test_a_mirror_serves_the_same_names(fetch, host, tmp_path):
    assert fetch("--mirror", host.url + "/", url="https://nowhere.invalid/data/scenes.zip", content=packed(SCENE)) == 0
    assert tree(tmp_path) == scenes()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "name a data set"),
        (["mip360"], "no data set 'mip360'"),
        (["hypernerf/vrig_toad"], "no archive 'vrig_toad' in hypernerf"),
        (["dnerf", "--accept", "--sha256", "abc"], "64 hexadecimal digits"),
        (["mipnerf360", "--accept", "--sha256", "0" * 64], "say of which file"),
        (["dnerf", "--accept", "--mirror", "file:///etc"], "must begin with http"),
    ],
)
def test_a_mistake_is_one_line(download, tmp_path, capsys, arguments, why):
    assert download.main([*arguments, "--to", str(tmp_path)]) == 2
    assert why in the_error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_one_archive_of_a_set_can_be_named(download):
    chosen = download.choose(["hypernerf/vrig_broom", "hypernerf/vrig_broom"], download.read_sets())
    assert [archive.name for archive in chosen["hypernerf"]] == ["vrig_broom.zip"]


def test_the_list_names_terms_and_an_address_for_every_archive(download, capsys):
    assert download.main(["--list"]) == 0
    text = capsys.readouterr().out
    sets = download.read_sets()
    assert {"mipnerf360", "nerf_synthetic", "tandt_db", "dnerf", "hypernerf", "neural_3d_video"} == set(sets)
    for one in sets.values():
        assert one.terms and one.terms in text
        for archive in one.archives:
            assert archive.url.startswith("https://") and archive.url in text and archive.name.endswith(".zip")
    names = [archive.name for one in sets.values() for archive in one.archives]
    assert len(set(names)) == len(names)
