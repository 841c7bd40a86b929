"""Finding the image that a table names: by its path, the end of its path, or its number without a suffix."""

from pathlib import Path

from masp.core.errors import DataError
from masp.data.file_listing import images_from
from masp.data.readers.common import exists, inside


class ImageLookup:
    """The images below a folder, by the names that tables give them.

    A name that is a path inside the folder is taken as it is. For the others the folder is listed once; then the
    image's path has to end as the name does, so that "joy/1.jpg" is never "fear/1.jpg".

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """The image, or None where there is none.

        Raises:
            DataError: the name lies outside the folder, or fits two images.
        """
        direct = inside(self.root, name)
        if direct.suffix and exists(direct):
            return direct
        if self._by_name is None:
            self._by_name = self._listed()
        folders = direct.relative_to(self.root).parts[:-1]
        if folders[:1] == (self.root.name,):
            folders = folders[1:]
        found = [path for path in self._by_name.get(direct.name, ()) if _lies_in(path, folders)]
        if len(found) > 1:
            raise DataError(f"{name!r:.60} fits {found[0]} and {found[1]}", "one image", "Write the whole path.")
        return found[0] if found else None

    def _listed(self) -> dict[str, list[Path]]:
        names: dict[str, list[Path]] = {}
        for path in images_from([self.root]):
            for name in {path.name, path.stem}:
                names.setdefault(name, []).append(path)
        return names


def _lies_in(path: Path, folders: tuple[str, ...]) -> bool:
    return not folders or path.parent.parts[-len(folders) :] == folders
