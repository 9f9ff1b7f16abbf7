"""Where the files that come with `cai` are: constitutions, templates and configs."""

from __future__ import annotations

from pathlib import Path

from cai.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """Return the folder that holds `constitutions/`, `prompts/` and `configs/`.

    An installed wheel carries them inside the package, a source checkout beside it.
    """
    packed = _PACKAGE / "shipped_files"
    return packed if packed.is_dir() else _PACKAGE.parent


def find(path: str, *, near: Path | None = None) -> Path:
    """Return the file or folder that `path` names, looked for here, then in `near`, then among the shipped files.

    Raises UserError naming every place that was tried.
    """
    places = [Path(path).expanduser()]
    if not places[0].is_absolute():
        places += [folder / path for folder in (near, root()) if folder is not None]
    for place in places:
        if place.exists():
            return place.resolve()
    tried = ", ".join(str(p) for p in dict.fromkeys(places))
    raise UserError(f"'{path}': no such file or folder (tried {tried}); check the path, or give an absolute one")
