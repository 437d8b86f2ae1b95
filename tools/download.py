"""Fetches public data sets to where the published settings look for them.

    python tools/download.py --list
    python tools/download.py mipnerf360 --to data             # shows the terms
    python tools/download.py mipnerf360 --to data --accept    # and fetches
    python tools/download.py neural_3d_video/coffee_martini --to data --accept

Stopped or cut off, the same command goes on where it was. An archive is unpacked beside the data set and moved there when it is
whole, so nothing is ever there by halves. What is in a set belongs to its authors; its terms are shown first, and --accept says
that you have read them.
"""

import argparse
import errno
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import socket
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

LIST = Path(__file__).with_name("data_sets.yaml")
CHUNK = 1 << 20
# Seconds without a byte after which a connection is taken for dead.
SILENCE = 60.0
# Tries without a new byte between them, and the seconds before the next one.
TRIES = 5
WAIT = 2.0
# Pictures hardly shrink in a zip; what would grow by more than this is no data set.
GROWTH_MAX = 100
# Kinds of answers after which another try may help.
PASSING = {408, 425, 429, 500, 502, 503, 504}


class DownloadError(Exception):
    """Why something was not downloaded or unpacked, and what would help: one line."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One zip: the folder that its content goes to, below --to, and the folder of the zip that is meant by it.

    `size` in bytes and `sha256` are None where none is publicly known.
    """

    url: str
    into: str
    top: str = ""
    file: str = ""
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name on disk."""
        return self.file or PurePosixPath(urlsplit(self.url).path).name


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What belongs together, and its terms of use, as far as they are known."""

    title: str
    terms: str
    archives: tuple[Archive, ...]


def read_sets(path: Path = LIST) -> dict[str, DataSet]:
    """The data sets of a list like `tools/data_sets.yaml`."""
    return {
        name: DataSet(**one | {"archives": tuple(Archive(**archive) for archive in one["archives"])})
        for name, one in yaml.safe_load(path.read_text()).items()
    }


@dataclass(frozen=True)
class Place:
    """The files of one download, in `.downloads` below --to: nothing but these is ever half written."""

    folder: Path
    name: str

    @property
    def part(self) -> Path:
        """What has come so far."""
        return self._file("part")

    @property
    def note(self) -> Path:
        """Of which file of the server's that is the beginning."""
        return self._file("part.json")

    @property
    def unpacking(self) -> Path:
        """Being unpacked; thrown away at the next start."""
        return self._file("unpacking")

    @property
    def unpacked(self) -> Path:
        """Unpacked whole, and being moved to its place; the next start goes on."""
        return self._file("unpacked")

    @property
    def done(self) -> Path:
        """That it is there: its address, SHA-256 and what it put where."""
        return self._file("json")

    def _file(self, ending: str) -> Path:
        return self.folder / ".downloads" / f"{self.name}.{ending}"

    def forget(self) -> None:
        """Removes what has come so far."""
        for path in (self.part, self.note):
            path.unlink(missing_ok=True)

    @contextmanager
    def mine(self) -> Iterator[None]:
        """Holds off another download of the same archive to the same folder.

        Raises:
            DownloadError: there is one.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with self._file("lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DownloadError(f"{self.name}: another download of it to {self.folder} is running") from None
            yield


def get(archive: Archive, folder: Path, *, sha256: str | None, keep: bool, show: Progress) -> None:
    """One archive, fetched, checked, unpacked and in its place; or nothing, with what has come kept for the next time.

    Raises:
        DownloadError: one line.
    """
    place = Place(folder, archive.name)
    with place.mine():
        if _is_done(place):
            show.console.print(f"{archive.name}: is already there")
            return
        if not place.unpacked.is_dir():
            fetch(archive, place, show)
            found = check(archive, place, sha256)
            if not (sha256 or archive.sha256):
                show.console.print(
                    f"{archive.name}: no checksum is publicly known; its SHA-256 is {found}", soft_wrap=True
                )
            unpack(archive, place, show)
            place.note.write_text(json.dumps({"sha256": found}))
        entries = move(archive, place)
        record = {"url": archive.url, **json.loads(place.note.read_text()), "entries": entries}
        place.done.write_text(json.dumps(record, indent=1) + "\n")
        if keep:
            os.replace(place.part, folder / archive.name)
        place.forget()
        show.console.print(f"{archive.name}: in {folder / archive.into}", soft_wrap=True)


def fetch(archive: Archive, place: Place, show: Progress) -> None:
    """The archive's bytes, whole, in `place.part`, going on with those that are there if the server's file is the same.

    Raises:
        DownloadError: it is not to be had, or was cut off too often; what has come stays.
    """
    task = show.add_task(archive.name, total=archive.size)
    failures = 0
    try:
        while failures < TRIES:
            before = _size(place.part)
            try:
                if _fetch_on(archive, place, show, task):
                    return
                trouble = "the connection was closed"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                    place.forget()  # the server's file is shorter than what is here
                elif error.code not in PASSING:
                    raise DownloadError(_refused(archive, error.code)) from None
                trouble = f"the server says {error.code}"
            except PermissionError:
                raise  # of the disk's, not of the net's
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(error, urllib.error.URLError) and not _size(place.part):
                    raise DownloadError(_unreachable(archive, reason)) from None
                trouble = str(reason) or type(reason).__name__
            failures = 1 if _size(place.part) > before else failures + 1
            if failures < TRIES:
                time.sleep(WAIT)
        raise DownloadError(
            f"{archive.name}: cut off after {_size(place.part):,} bytes ({trouble}); the same command goes on from there"
        )
    finally:
        show.remove_task(task)


def _fetch_on(archive: Archive, place: Place, show: Progress, task: Any) -> bool:
    """One request for what is missing; whether the file is then whole."""
    noted = _noted(place, archive.url)
    have = _size(place.part) if noted else 0
    if have and have == noted.get("total"):
        return True
    headers = {"User-Agent": "nfc-gs", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if noted.get("validator"):
            headers["If-Range"] = noted["validator"]
    with urllib.request.urlopen(urllib.request.Request(archive.url, headers=headers), timeout=SILENCE) as answer:
        goes_on, total = _what_comes(answer, have, noted.get("total"), place)
        if archive.size is not None and total is not None and total != archive.size:
            place.forget()
            raise DownloadError(
                f"{archive.name}: the server's file has {total:,} bytes, but {archive.size:,} are known of it: it is another "
                f"one ({archive.url})"
            )
        if not goes_on:
            have = 0
        _check_room(archive.name, place.folder, (total or 0) - have)
        # A weak validator says nothing of bytes.
        tag = answer.headers.get("ETag") or ""
        validator = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")
        place.note.write_text(json.dumps({"url": archive.url, "validator": validator, "total": total}))
        show.update(task, total=total, completed=have)
        with place.part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                _write(file, chunk, archive.name)
                show.advance(task, len(chunk))
    return total is None or _size(place.part) == total


def _what_comes(answer: Any, have: int, noted: int | None, place: Place) -> tuple[bool, int | None]:
    """Whether an answer goes on after `have` bytes (otherwise it begins anew), and the whole file's size."""
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT and have:
        unit, _, said = answer.headers.get("Content-Range", "").partition(" ")
        span, _, whole = said.partition("/")
        total = int(whole) if whole.isdigit() else None
        if unit != "bytes" or not span.startswith(f"{have}-") or (noted is not None and total != noted):
            place.forget()
            raise http.client.HTTPException(f"asked for bytes from {have}, it sent {unit} {said!r}")
        return True, total
    length = answer.headers.get("Content-Length", "")
    return False, int(length) if length.isdigit() else None


def check(archive: Archive, place: Place, sha256: str | None) -> str:
    """The file's SHA-256, which is `sha256` or the known one where there is one; what is wrong is removed.

    Raises:
        DownloadError: the size or the checksum is another one, or the file is no zip.
    """
    wanted, found = sha256 or archive.sha256, hashlib.sha256()
    with place.part.open("rb") as file:
        start = file.read(64)
        found.update(start)
        while chunk := file.read(CHUNK):
            found.update(chunk)
    size = _size(place.part)
    if archive.size is not None and size != archive.size:
        place.forget()
        raise DownloadError(f"{archive.name}: has {size:,} bytes, but must have {archive.size:,}; it was removed")
    if wanted is not None and found.hexdigest() != wanted:
        place.forget()
        raise DownloadError(f"{archive.name}: its SHA-256 is {found.hexdigest()}, but must be {wanted}; it was removed")
    if not zipfile.is_zipfile(place.part):
        place.forget()
        raise DownloadError(
            f"{archive.name}: is no zip, but begins with {start[:24]!r}; it was removed. Where the host wants a person to "
            f"click, fetch {archive.url} by hand and serve it with --mirror"
        )
    return found.hexdigest()


def unpack(archive: Archive, place: Place, show: Progress) -> None:
    """Unpacks into `place.unpacked`, after every name in the archive has been looked at.

    Raises:
        DownloadError: the archive is broken, or would write where it must not, or put what is already there.
    """
    shutil.rmtree(place.unpacking, ignore_errors=True)
    try:
        with zipfile.ZipFile(place.part) as packed:
            members = [member for member in packed.infolist() if not _is_rubbish(member.filename)]
            for member in members:
                _check_member(member, archive.name)
            _check_all(members, archive, place)
            place.unpacking.mkdir(parents=True)
            task = show.add_task(f"unpacking {archive.name}", total=sum(member.file_size for member in members))
            try:
                for member in members:
                    _unpack_one(packed, member, place.unpacking, archive.name)
                    show.advance(task, member.file_size)
            finally:
                show.remove_task(task)
        os.replace(place.unpacking, place.unpacked)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        place.forget()
        raise DownloadError(f"{archive.name}: is a broken zip ({error}); it was removed") from None
    finally:
        shutil.rmtree(place.unpacking, ignore_errors=True)


def move(archive: Archive, place: Place) -> list[str]:
    """Moves what was unpacked to its place, entry by entry, and tells of all that is there."""
    source, target = place.unpacked / archive.top, place.folder / archive.into
    target.mkdir(parents=True, exist_ok=True)
    # What an interrupted start moved is known by this list, which stands before the first move.
    listed = place.unpacked / ".entries"
    if not listed.is_file():
        partial = listed.with_name(".entries.partial")
        partial.write_text(
            json.dumps(sorted(path.name for path in source.iterdir() if not path.name.startswith(".entries")))
        )
        os.replace(partial, listed)
    entries = json.loads(listed.read_text())
    for entry in entries:
        if (source / entry).exists():
            try:
                os.rename(source / entry, target / entry)
            except OSError as error:
                raise DownloadError(
                    f"{target / entry}: cannot be put there ({error.strerror}); move away what is"
                ) from None
    shutil.rmtree(place.unpacked)
    return [str((Path(archive.into) / entry).as_posix()) for entry in entries]


def _check_member(member: zipfile.ZipInfo, name: str) -> None:
    """Refuses what could write outside of the folder, or anything but files and folders."""
    path, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
    odd = "\0" in member.orig_filename or "\\" in member.filename or PureWindowsPath(member.filename).drive
    if path.is_absolute() or ".." in path.parts or odd or not path.parts:
        raise DownloadError(f"{name}: refused: {member.orig_filename!r} in it would leave its folder")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"
        raise DownloadError(f"{name}: refused: {member.filename!r} in it is {what}")
    if member.flag_bits & 1:
        raise DownloadError(f"{name}: refused: {member.filename!r} in it is encrypted")


def _check_all(members: Sequence[zipfile.ZipInfo], archive: Archive, place: Place) -> None:
    paths = [PurePosixPath(member.filename) for member in members]
    twice = [str(path) for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DownloadError(f"{archive.name}: refused: it has {twice[0]!r} twice")
    size, packed = sum(member.file_size for member in members), _size(place.part)
    if size > GROWTH_MAX * packed:
        raise DownloadError(f"{archive.name}: refused: its {packed:,} bytes would unpack to {size:,}")
    top = PurePosixPath(archive.top)
    inside = [path.relative_to(top) for path in paths if path.is_relative_to(top) and path != top]
    if not inside:
        raise DownloadError(f"{archive.name}: holds no {archive.top or 'file'}, so it is not what it should be")
    for entry in sorted({path.parts[0] for path in inside}):
        there = place.folder / archive.into / entry
        if there.exists():
            raise DownloadError(
                f"{there}: is already there, and not from here; move it away, or name another folder with --to"
            )
    _check_room(archive.name, place.folder, size)


def _unpack_one(packed: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, name: str) -> None:
    path = folder / member.filename
    try:
        if member.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except (FileExistsError, NotADirectoryError):
        raise DownloadError(f"{name}: refused: {member.filename!r} in it is both a file and a folder") from None
    with file, packed.open(member) as source:
        while chunk := source.read(CHUNK):
            _write(file, chunk, name)


def _is_rubbish(name: str) -> bool:
    """What macOS adds to an archive."""
    return name.startswith("__MACOSX/") or PurePosixPath(name).name == ".DS_Store"


def _is_done(place: Place) -> bool:
    """Whether the archive was put in its place before and what it brought is still there."""
    try:
        entries = json.loads(place.done.read_text())["entries"]
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return all((place.folder / entry).exists() for entry in entries)


def _noted(place: Place, url: str) -> dict[str, Any]:
    """What is known of the file whose beginning is here; nothing if it is of another address."""
    try:
        noted: dict[str, Any] = json.loads(place.note.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return noted if noted.get("url") == url else {}


def _write(file: Any, chunk: bytes, name: str) -> None:
    """Writes, and tells a full disk from a broken connection."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"{name}: the disk of {file.name} is full; make room, the same command goes on"
            ) from None
        raise DownloadError(f"{name}: {file.name} cannot be written: {error.strerror}") from None


def _check_room(name: str, folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise DownloadError(f"{name}: needs {wanted:,} bytes, but {free:,} are free on the disk of {folder}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _refused(archive: Archive, code: int) -> str:
    said = f"{code} {http.HTTPStatus(code).phrase}" if code in set(http.HTTPStatus) else str(code)
    return f"{archive.name}: {archive.url} answers {said}; it may have moved: name another host with --mirror"


def _unreachable(archive: Archive, reason: Any) -> str:
    host = urlsplit(archive.url).netloc
    if isinstance(reason, socket.gaierror):
        return f"{archive.name}: {host} cannot be found ({reason.strerror}): is this machine online?"
    return f"{archive.name}: {host} cannot be reached ({getattr(reason, 'strerror', None) or reason}): is this machine online?"


def choose(names: Sequence[str], sets: Mapping[str, DataSet]) -> dict[str, list[Archive]]:
    """The archives that names like `dnerf` or `hypernerf/vrig_broom` mean, by set.

    Raises:
        DownloadError: there is no such set, or no such archive of it.
    """
    chosen: dict[str, list[Archive]] = {}
    for name in names:
        key, _, one = name.partition("/")
        if key not in sets:
            raise DownloadError(f"no data set {key!r}: there are {', '.join(sets)}")
        stems = {archive.name.removesuffix(".zip"): archive for archive in sets[key].archives}
        if one and one not in stems:
            raise DownloadError(f"no archive {one!r} in {key}: there are {', '.join(stems)}")
        wanted = [stems[one]] if one else list(stems.values())
        chosen[key] = [*chosen.get(key, []), *(a for a in wanted if a not in chosen.get(key, []))]
    return chosen


def checksums(words: Sequence[str], archives: Sequence[Archive]) -> dict[str, str]:
    """SHA-256 by archive's name, of words like FILE=HEX, or HEX where there is one archive only.

    Raises:
        DownloadError: a word is neither.
    """
    found = {}
    for word in words:
        name, _, digest = word.rpartition("=")
        if not name and len(archives) == 1:
            name = archives[0].name
        if name not in {archive.name for archive in archives}:
            known = ", ".join(archive.name for archive in archives)
            raise DownloadError(f"--sha256 {word}: say of which file it is, as FILE=HEX ({known})")
        if len(digest) != hashlib.sha256().digest_size * 2 or set(digest.lower()) - set("0123456789abcdef"):
            raise DownloadError(f"--sha256 {word}: a SHA-256 has 64 hexadecimal digits")
        found[name] = digest.lower()
    return found


def mirrored(archive: Archive, mirror: str | None) -> Archive:
    """The archive as another host has it, under its own name."""
    if mirror is None:
        return archive
    if urlsplit(mirror).scheme not in ("http", "https"):
        raise DownloadError(f"--mirror {mirror}: must begin with http:// or https://")
    fields = {name: getattr(archive, name) for name in ("into", "top", "file", "size", "sha256")}
    return Archive(url=f"{mirror.rstrip('/')}/{archive.name}", **fields)


def listing(sets: Mapping[str, DataSet]) -> str:
    """What there is, for --list."""
    lines = []
    for key, one in sets.items():
        lines += [f"{key}: {one.title}", f"  terms: {one.terms}"]
        for archive in one.archives:
            size = f"{archive.size:,} bytes" if archive.size else "size not known"
            known = f"SHA-256 {archive.sha256}" if archive.sha256 else "no checksum known"
            lines.append(f"  {archive.name.removesuffix('.zip')}: {archive.url} ({size}, {known})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, sets: Mapping[str, DataSet] | None = None) -> int:
    """Parses, shows the terms, fetches; 2 after a mistake or a failure, told in one line, and 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME[/ARCHIVE]", help="data sets, or single archives of them")
    parser.add_argument("--list", action="store_true", help="what there is, with terms, sizes and checksums")
    parser.add_argument(
        "--to",
        type=Path,
        default=os.environ.get("NFC_GS_DATA", "data"),
        metavar="FOLDER",
        help="default: $NFC_GS_DATA or data",
    )
    parser.add_argument(
        "--accept", action="store_true", help="you have read the terms of these data sets and keep to them"
    )
    parser.add_argument(
        "--sha256", action="append", default=[], metavar="[FILE=]HEX", help="must be the archive's checksum"
    )
    parser.add_argument("--mirror", metavar="URL", help="take the archives, of the same names, from this address")
    parser.add_argument("--keep", action="store_true", help="keep the archives beside the data")
    chosen = parser.parse_args(argv)
    sets = read_sets() if sets is None else sets
    console = Console(stderr=True, highlight=False, markup=False)
    try:
        if chosen.list:
            print(listing(sets))
            return 0
        if not chosen.names:
            raise DownloadError(f"name a data set: {', '.join(sets)}; --list tells of them")
        wanted = choose(chosen.names, sets)
        archives = [mirrored(archive, chosen.mirror) for some in wanted.values() for archive in some]
        known = checksums(chosen.sha256, archives)
        for key in wanted:
            console.print(f"{key}: {sets[key].title}\nTerms: {sets[key].terms}", soft_wrap=True)
        if not chosen.accept:
            raise DownloadError("nothing was downloaded: read the terms above, and add --accept if you keep to them")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as show:
            for archive in archives:
                get(
                    archive,
                    chosen.to.expanduser().absolute(),
                    sha256=known.get(archive.name),
                    keep=chosen.keep,
                    show=show,
                )
    except (DownloadError, OSError) as error:
        print(f"download: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("download: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
