"""The manifest: which images there are, as Parquet files whose row groups are the units of work.

Columns: `id` (0, 1, 2 … over all images), `uri` (a path, or s3:// and gs://), `offset` (where an image begins in a tar
file; null: the whole file), `size` in bytes and `modified` in nanoseconds, both null where a list does not say.
"""

import csv
import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs, parquet

from masp.core.errors import DataError, UsageError
from masp.data.images import SUFFIXES

MANIFEST, NOTE = "manifest", "manifest.json"
CHUNK, SHARD = 1024, 1_024_000
FORMAT = 1
BLOCK = 2**20  # bytes that are read at a time
COLUMNS = pa.schema(
    [("id", pa.int64()), ("uri", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("modified", pa.int64())]
)
PATH_COLUMNS = ("uri", "path", "image", "image_path", "file", "filename")
REMOTE = ("s3://", "gs://")

Row = tuple[str, int | None, int | None, int | None]
"""An image: uri, offset, size, modified."""


@lru_cache(64)
def _store(address: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(address)[0]


def remote(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it of an object, whose name is taken as it stands: nothing in it is decoded.

    There is one client for each bucket in a process. Where the store is and who asks, the environment says.

    Raises:
        OSError: no such store, or it does not answer.
    """
    scheme, _, path = uri.partition("://")
    try:
        return _store(f"{scheme}://{path.partition('/')[0]}"), path
    except pa.ArrowException as error:
        raise OSError(str(error)) from None


@dataclass(frozen=True)
class StorePath:
    """A folder on this machine or in an object store.

    Attributes:
        files: its file system.
        path: the folder in it.
        local: whether files are renamed into place; an object store puts them there in one step.
    """

    files: fs.FileSystem
    path: str
    local: bool

    @staticmethod
    def of(place: str | Path) -> "StorePath":
        """The folder that a path or an address names.

        Raises:
            UsageError: an address with options.
            OSError: no such store, or it does not answer.
        """
        text = str(place)
        if text.startswith(REMOTE):
            if "?" in text:
                todo = "Say them in the environment: AWS_ENDPOINT_URL, AWS_REGION …"
                raise UsageError(f"{text} has options", "an address without ?…", todo)
            return StorePath(*remote(text), False)
        return StorePath(fs.LocalFileSystem(), str(Path(text).absolute()), True)

    def __truediv__(self, name: str) -> "StorePath":
        return StorePath(self.files, f"{self.path.rstrip('/')}/{name}", self.local)

    def write(self, content: bytes) -> None:
        """Put a file here, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with self.writing() as out:
            out.write(content)

    @contextmanager
    def writing(self) -> Iterator[pa.NativeFile]:
        """A file that is written a part at a time; it is here once the block has ended.

        Where the block fails, an object store may hold what was written until then; so a reader may trust only a file
        that a later one names.

        Raises:
            OSError: it cannot be written.
        """
        parent, _, name = self.path.rpartition("/")
        self.files.create_dir(parent, recursive=True)
        target = f"{parent}/.partial-{name}" if self.local else self.path
        with self.files.open_output_stream(target) as out:
            yield out
        if self.local:
            self.files.move(target, self.path)

    def sha256(self) -> str:
        """The hash of a file, which is read a block at a time.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        digest = hashlib.sha256()
        with self.files.open_input_stream(self.path) as source:
            while block := source.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def read(self) -> bytes:
        """The content of a file.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        with self.files.open_input_stream(self.path) as source:
            return source.read()

    def listing(self) -> list[fs.FileInfo]:
        """The finished files and the folders directly inside, sorted by name; none where there is no such folder."""
        found = self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted((one for one in found if not one.base_name.startswith(".")), key=lambda one: one.path)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        images: number of images.
        chunk: images of a chunk.
        shards: images of each file.
        hashes: SHA-256 of each file.
        sources: what it was made of, as it was named.
    """

    images: int
    chunk: int
    shards: tuple[int, ...]
    hashes: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The hash of the whole manifest."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()

    def chunks(self, shard: int) -> int:
        """Chunks of a shard."""
        return -(-self.shards[shard] // self.chunk)


def shard_name(shard: int) -> str:
    """The name of a shard, and of the folder of its labels."""
    return f"shard-{shard:06}"


def write_manifest(sources: Sequence[str], out: str | Path, chunk: int = CHUNK, shard: int = SHARD) -> Manifest:
    """List images into a new manifest. Nothing but names and sizes is read, and memory does not grow with the number.

    Args:
        sources: folders, tar files (WebDataset), lists (.txt: a path on each line), tables (.csv, .tsv, .parquet with a
            column of paths), each here or in an object store.
        out: where `manifest/` and `manifest.json` go.
        chunk: images of a unit of work.
        shard: images of a file, a multiple of `chunk`.

    Raises:
        UsageError: there is a manifest already, or sizes that make no sense.
        DataError: a source that cannot be read, or no images at all.
    """
    if chunk < 1 or shard < chunk or shard % chunk:
        raise UsageError(f"chunks of {chunk} and shards of {shard} images", "shards that are a multiple of the chunks")
    place = StorePath.of(out)
    if place.files.get_file_info((place / NOTE).path).type != fs.FileType.NotFound:
        raise UsageError(f"{out} holds a manifest already", "a new folder", "Name another --out, or label this one.")
    rows = (row for source in sources for row in images_in(source))
    shards: list[int] = []
    hashes: list[str] = []
    while (written := _write_shard(rows, place, len(shards), sum(shards), (chunk, shard // chunk))) is not None:
        shards.append(written[0])
        hashes.append(written[1])
    if not shards:
        raise DataError(f"no images in {', '.join(sources)}", f"files that end in {', '.join(sorted(SUFFIXES))}")
    made = Manifest(sum(shards), chunk, tuple(shards), tuple(hashes), tuple(sources))
    (place / NOTE).write((json.dumps({"format": FORMAT, **asdict(made)}, indent=1) + "\n").encode())
    return made


def read_manifest(folder: str | Path) -> Manifest:
    """The description of a manifest.

    Raises:
        DataError: there is none, or a damaged one.
    """
    try:
        content: dict[str, Any] = json.loads((StorePath.of(folder) / NOTE).read())
        known = content.pop("format") == FORMAT
        shards, hashes, sources = (tuple(content.pop(name)) for name in ("shards", "hashes", "sources"))
        if not known:
            raise ValueError("another format")
        return Manifest(shards=shards, hashes=hashes, sources=sources, **content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        todo = "Write one: masp label plan SOURCE --out DIR."
        raise DataError(f"{folder} holds no manifest ({error})", "a folder that masp label plan wrote", todo) from None


def read_chunk(folder: str | Path, shard: int, chunk: int) -> pa.Table:
    """The images of one chunk; nothing else of the manifest is read but its footer.

    Raises:
        DataError: the file is missing or damaged.
    """
    place = StorePath.of(folder) / MANIFEST / f"{shard_name(shard)}.parquet"
    try:
        with place.files.open_input_file(place.path) as source:
            return parquet.ParquetFile(source).read_row_group(chunk)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place.path} cannot be read ({error})", "the manifest that masp label plan wrote") from None


def check_shard(folder: str | Path, manifest: Manifest, shard: int) -> None:
    """Make sure that a file of the manifest is the one that was hashed.

    Raises:
        DataError: it is missing or has changed.
    """
    place = StorePath.of(folder) / MANIFEST / f"{shard_name(shard)}.parquet"
    try:
        sha256 = place.sha256()
    except OSError as error:
        raise DataError(f"{place.path} cannot be read ({error})", "every file of the manifest") from None
    if sha256 != manifest.hashes[shard]:
        raise DataError(f"{place.path} has changed", "the manifest as it was planned", "Plan it again in a new folder.")


def _write_shard(
    rows: Iterator[Row], place: StorePath, shard: int, first: int, sizes: tuple[int, int]
) -> tuple[int, str] | None:
    """The next images as a file, a row group for each chunk: how many there were, and its hash; None without any."""
    chunk, chunks = sizes
    parts = iter(lambda: list(islice(rows, chunk)), [])
    if (begin := next(parts, None)) is None:
        return None
    file, count = place / MANIFEST / f"{shard_name(shard)}.parquet", 0
    with file.writing() as out, parquet.ParquetWriter(out, COLUMNS) as writer:
        for part in chain([begin], islice(parts, chunks - 1)):
            ids = pa.array(range(first + count, first + count + len(part)), pa.int64())
            values = zip(zip(*part, strict=True), COLUMNS.types[1:], strict=True)
            columns = [pa.array(column, kind) for column, kind in values]
            writer.write_table(pa.table([ids, *columns], schema=COLUMNS), row_group_size=chunk)
            count += len(part)
    return count, file.sha256()


def images_in(source: str) -> Iterator[Row]:
    """The images of a source, in an order that is the same every time.

    Raises:
        DataError: it cannot be read, or is a table without a column of paths.
    """
    place = StorePath.of(source)
    info = place.files.get_file_info(place.path)
    suffix = Path(place.path).suffix.lower()
    try:
        if info.type == fs.FileType.Directory:
            yield from _in_folder(place, source.partition("://")[0] if not place.local else "")
        elif info.type != fs.FileType.File:
            raise DataError(f"{source} does not exist", "a folder, a list, a table or a tar file", "Check the path.")
        elif suffix == ".tar":
            yield from _in_tar(place, source)
        elif suffix in (".txt", ".csv", ".tsv", ".parquet"):
            home = place.path.rpartition("/")[0] if place.local else ""
            for uri in _listed(place, suffix):
                yield (uri if "://" in uri or Path(uri).is_absolute() else f"{home}/{uri}", None, None, None)
        else:
            raise DataError(f"{source} is a file", "a folder, or .txt, .csv, .tsv, .parquet, .tar", "Name its folder.")
    except (OSError, pa.ArrowException, tarfile.TarError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read ({error})") from None


def _in_folder(place: StorePath, scheme: str) -> Iterator[Row]:
    inner: list[str] = []
    for info in place.listing():
        if info.type == fs.FileType.Directory:
            inner.append(info.base_name)
        elif Path(info.base_name).suffix.lower() in SUFFIXES:
            yield (f"{scheme}://{info.path}" if scheme else info.path, None, info.size, info.mtime_ns)
    for name in inner:
        yield from _in_folder(place / name, scheme)


def _in_tar(place: StorePath, source: str) -> Iterator[Row]:
    uri = place.path if place.local else source
    with place.files.open_input_file(place.path) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
        for member in archive:
            if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                yield uri, member.offset_data, member.size, int(member.mtime) * 1_000_000_000


def _listed(place: StorePath, suffix: str) -> Iterator[str]:
    """The paths in a list or a table; empty ones are passed over."""
    if suffix == ".parquet":
        with place.files.open_input_file(place.path) as source:
            table = parquet.ParquetFile(source)
            column = _path_column(place.path, table.schema_arrow.names)
            for batch in table.iter_batches(columns=[column]):
                yield from (str(value) for value in batch.column(0).to_pylist() if value)
        return
    with place.files.open_input_stream(place.path) as source:
        lines = _lines(source)
        if suffix == ".txt":
            yield from (line.strip() for line in lines if line.strip())
            return
        rows = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",")
        names = next(rows, [])
        index = names.index(_path_column(place.path, names))
        yield from (row[index] for row in rows if len(row) > index and row[index])


def _path_column(file: str, names: Sequence[str]) -> str:
    found = next((name for usual in PATH_COLUMNS for name in names if name.casefold() == usual), None)
    if found is None:
        raise DataError(f"{file} has the columns {', '.join(names)}", f"one of {', '.join(PATH_COLUMNS)}")
    return found


def _lines(source: Any) -> Iterable[str]:
    """Lines of a stream of bytes, a block at a time."""
    rest = b""
    while block := source.read(BLOCK):
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.decode("utf-8-sig") + "\n" for line in whole)
    if rest:
        yield rest.decode("utf-8-sig")
