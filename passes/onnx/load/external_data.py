"""Which file a tensor's external data may lie in: one that belongs to the model, whoever wrote the model's paths.

The paths stand in the ONNX file, which may be a stranger's, and what they name ends up in a bundle that may be passed
on. So a path must not reach another file of the user's. It is relative, without ``..`` (ONNX says the same), and the
file it leads to, all links followed, must be a regular file and

* the model's own file (weights inside it are read this way), wherever the path that the user gave leads; or
* inside the model's folder; or
* inside ``blobs/`` of the same repository of a Hugging Face cache. There a snapshot is a folder of links:
  ``models--ORG--NAME/snapshots/REVISION/onnx/model.onnx_data -> ../../../blobs/HASH``. The cache puts nothing but files
  of that repository into ``blobs/``, so a link that ends there shows nothing that the model's maker did not publish.

Any other link out of the folder is refused: archives and git repositories carry links, so one that lies in the
model's folder need not be of the user's making.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from targets.errors import UserError
from targets.hub_cache import snapshot_of


def external_file(path: Path, tensor: str, location: str) -> Path:
    """The file of a tensor's external data, all links followed.

    Args:
        path: the ONNX file, as the user gave it.
        tensor: its name, for messages.
        location: `location` of its external data.

    Raises:
        UserError: the path is none of those above, or leads to no regular file.
    """
    if not location:
        raise UserError(f"{path}: {tensor} lies in an external file that has no name")
    if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
        raise UserError(
            f"{path}: {tensor} points outside the model's folder ({location}): a path of external data must be "
            "relative and without '..'"
        )
    folder = path.parent.resolve()
    try:
        own, file = path.resolve(), (folder / location).resolve()
        there, regular = file.exists(), file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, or links in a circle
        raise UserError(f"{path}: {tensor} lies in {location!r}, which is no usable path") from error
    blobs = _blobs(folder)
    if file != own and not file.is_relative_to(folder) and not (blobs and file.is_relative_to(blobs)):
        raise UserError(
            f"{path}: {tensor} points outside the model's folder ({location} is a link to {file}); "
            "copy the file beside the model"
        )
    if not there:
        raise UserError(f"{path}: the weights file {location} is missing; copy it beside the model")
    if not regular:
        raise UserError(f"{path}: {tensor} lies in {location}, which is not a regular file")
    return file


def _blobs(folder: Path) -> Path | None:
    """``blobs/`` of the hub's repository whose snapshot the folder belongs to, or None for any other folder."""
    if (snapshot := snapshot_of(folder)) is None:
        return None
    blobs = snapshot.parents[1] / "blobs"
    return blobs if blobs.is_dir() and not blobs.is_symlink() else None
